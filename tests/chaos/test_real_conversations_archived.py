"""
The main job on real input, to its end: recorded conversations go to S3 and return.

The recordings lie beside the checkout, in the shared folder; without them there is
nothing to be shown here.
"""

import asyncio
from functools import partial

import msgspec
import pytest

from everbus.bus import Mad, TimelineEntry
from everbus.bus.messages import TimelinePage
from everbus.compose.recordings import Recording, read_recordings, roles_of
from everbus.compose.replay import content_check, replay, tokens_for
from everbus.compose.retried_calls import read_retrying
from everbus.compose.verify.contents import digest_of
from everbus.compose.verify.readers import timeline_entries
from everbus.compose.verify.violations import Violations
from tests.chaos.test_real_conversations import REAL
from tests.stack import a_stack

ALL = 200
# So many are read at once; what is measured here is not speed.
AT_ONCE = 8


@pytest.mark.skipif(not REAL.exists(), reason=f"no recordings at {REAL}")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [20, pytest.param(ALL, marks=pytest.mark.campaign)])
async def test_real_conversations_are_archived_and_come_back_equal(
    tmp_path, count
) -> None:
    """
    Appended by a MAD per role, suspended, archived, purged from MongoDB, and brought
    back: equal to the file, and byte for byte what they were before.
    """
    recordings = read_recordings(REAL, "archived", count)
    assert len(recordings) == count
    async with (
        a_stack(tmp_path) as stack,
        stack.replica(),
        stack.mad() as mad,
        stack.hands() as hands,
        hands.draining(),
    ):
        tokens = tokens_for(stack.settings(), roles_of(recordings))
        report = await replay(recordings, stack.bus.url, tokens)
        assert report.violations == ()
        before = await every(recordings, partial(suspended, mad))

        archived = await hands.archive()
        assert (archived.archived, archived.failed) == (count, 0)
        await hands.upkeep.purge()
        assert await stack.held["timeline"].count_documents({}) == 0
        assert await stack.client.keys("eb:*:session:*") == []

        assert await every(recordings, partial(whole, mad)) == before
        await hands.upkeep.restore()
        entries = await stack.held["timeline"].count_documents({})
        assert entries == report.messages
        assert await every(recordings, partial(whole, mad)) == before


async def every(recordings, call) -> list[str]:
    """
    What *call* tells of each, AT_ONCE of them at a time.
    """
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(recording: Recording) -> str:
        async with turns:
            return await call(recording)

    return list(await asyncio.gather(*map(one, recordings)))


async def suspended(mad: Mad, recording: Recording) -> str:
    """
    Let it rest; the digest that it has from now on.
    """
    entries = await compared(mad, recording)
    session = await mad.suspend_session(recording.session_id)

    return digest_of(msgspec.structs.replace(session, full_context={}), entries)


async def whole(mad: Mad, recording: Recording) -> str:
    """
    The digest of all that there is of it.
    """
    get = partial(mad.get_session, recording.session_id, full=True)
    session = await read_retrying(get)

    return digest_of(session, await compared(mad, recording))


async def compared(mad: Mad, recording: Recording) -> list[TimelineEntry]:
    """
    The whole timeline, compared with the recording.
    """

    async def page(after: int) -> TimelinePage:
        read = partial(mad.timeline, recording.session_id, after=after, limit=1000)
        return await read_retrying(read)

    violations, entries = Violations(), []
    check = content_check(recording, violations)
    async for entry in timeline_entries(page):
        check.see(entry)
        entries.append(entry)
    check.end()
    assert violations.clean, violations.first

    return entries

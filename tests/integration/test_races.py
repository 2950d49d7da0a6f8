"""
Many MADs on one session: one winner a version, and no append lost.
"""

import asyncio
from collections import defaultdict
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from everbus.bus import VersionConflict
from tests.builders import an_envelope
from tests.integration.conftest import ON_EACH_SERVER, a_grant, in_order

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.usefixtures("manager"),
]

MADS = [f"mad{n}" for n in range(50)]
VERSIONS = 300
APPENDS = 60


@pytest_asyncio.fixture(loop_scope="module")
async def team(mad):
    """
    Fifty MADs, each connected on its own.
    """
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(mad(name)) for name in MADS]


async def a_shared_session(owner):
    """
    A session with which every MAD of the team may work.
    """
    session = await owner.create_session(owner.name)
    return await owner.update_session(session.id, {"acl": MADS})


class Race:
    """
    Who won which version, and what the losers were told.
    """

    def __init__(self, session, last):
        self.session = session
        self.last = last
        self.winners = defaultdict(list)
        self.told = []

    async def run(self, mad):
        """
        Try for one version after the other, each time the one that is due.
        """
        version = self.session.version
        while version < self.last:
            version = await self.attempt(mad, version)

    async def attempt(self, mad, version):
        patch = {"context_summary": {str(version): mad.name}}
        try:
            after = await mad.update_session(
                self.session.id, patch, expected_version=version, timeout=30
            )
        except VersionConflict as conflict:
            self.told.append((version, conflict.current_version))
            return conflict.current_version
        self.winners[version].append(mad.name)
        self.told.append((version, after.version))
        return after.version


@ON_EACH_SERVER
async def test_each_version_has_exactly_one_winner_among_fifty_mads(team, bus):
    """
    G4: the losers are told the current version and leave no trace.
    """
    begun = await a_shared_session(team[0])
    race = Race(begun, begun.version + VERSIONS)

    async with asyncio.TaskGroup() as racing:
        for one in team:
            racing.create_task(race.run(one))

    won = range(begun.version, race.last)
    assert list(won) == sorted(race.winners)
    assert {1} == {len(names) for names in race.winners.values()}
    assert len(race.told) > 2 * VERSIONS, "nobody raced"
    assert all(told > tried for tried, told in race.told)
    ended = await team[0].get_session(begun.id)
    assert ended.version == begun.version + len(race.winners) == race.last
    assert ended.context_summary == {
        str(version): names[0] for version, names in race.winners.items()
    }
    assert await bus.versions(begun.id) == list(range(1, race.last + 1))


async def test_of_updates_that_meet_in_one_batch_one_wins(team, bus):
    """
    G4 where no version on the server can tell them apart: one entry, one commit.
    """
    begun = await a_shared_session(team[0])
    partition = bus.partition(begun.id)
    racing = [
        an_envelope(
            "session.update",
            session=begun.id,
            body={"patch": {"context_summary": {"winner": n}}},
            id=f"meet-{n}",
            grant=a_grant(MADS[0]),
            reply=True,
            expected_version=begun.version,
        )
        for n in range(50)
    ]

    await bus.publish(MADS[0], partition, *racing)
    replies = [await bus.reply(MADS[0], partition, one.id) for one in racing]

    assert [one.code for one in replies] == ["ok"] + 49 * ["version_conflict"]
    told = {one.details["current_version"] for one in replies[1:]}
    assert told == {begun.version + 1}
    ended = await team[0].get_session(begun.id)
    assert ended.context_summary == {"winner": 0}
    assert ended.version == begun.version + 1


@ON_EACH_SERVER
async def test_no_append_of_fifty_mads_is_lost_or_conflicts(team, bus):
    """
    G3, G8: seqs without gap or double, and each MAD's words in its own order.
    """
    session = await a_shared_session(team[0])

    for n in range(APPENDS):
        for one in team:
            one.append(session.id, n)
        # Lets the publishers write, so that batches of many MADs mix.
        await asyncio.sleep(0)
    await asyncio.gather(*(one.flush() for one in team))
    await bus.until_settled(*MADS)

    entries = await bus.entries(session.id)
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    assert len(entries) == APPENDS * len(team)
    for one in team:
        assert in_order(entries, one.name) == list(range(APPENDS))
        assert await bus.letters(one.name) == []
    assert await bus.state(session.id) == (session.version, len(entries))

"""
Writes through outages: each takes effect once, or says that it did not.
"""

import pytest

from everbus.bus.errors import (
    AlreadyExists,
    Expired,
    Overloaded,
    ReplyTimeout,
    Unavailable,
)
from everbus.bus.messages import CommandOutcome
from everbus.compose import retried_calls
from everbus.compose.retried_calls import read_retrying, write_once

APPLIED = CommandOutcome("applied", "ok")
PENDING, UNKNOWN = CommandOutcome("pending"), CommandOutcome("unknown")
EXPIRED = CommandOutcome("rejected", "expired", "too late")


def no_reply(command="i.0.1"):
    return ReplyTimeout("no reply", command_id=command)


class FakeMad:
    """
    Writes and tells outcomes by a script; an exception in it is raised.
    """

    def __init__(self, writes, outcomes=()):
        self.writes, self.outcomes = list(writes), list(outcomes)
        self.asked = []

    async def write(self):
        return played(self.writes)

    async def outcome(self, command_id):
        self.asked.append(command_id)
        return played(self.outcomes)


def played(script):
    step = script.pop(0)
    if isinstance(step, Exception):
        raise step
    return step


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(retried_calls, "RETRY_S", 0.0)


async def test_a_write_without_a_reply_is_asked_for_and_never_repeated():
    """
    A second write would be a second message.
    """
    mad = FakeMad([no_reply("i.0.7")], [no_reply("x"), UNKNOWN, PENDING, APPLIED])

    await write_once(mad, mad.write)

    assert mad.asked == ["i.0.7"] * 4
    assert (mad.writes, mad.outcomes) == ([], [])


async def test_a_write_that_expired_unanswered_is_made_anew():
    mad = FakeMad([no_reply(), "done"], [EXPIRED])

    await write_once(mad, mad.write)

    assert mad.writes == []


@pytest.mark.parametrize(
    "refusal", [Unavailable("not sent"), Overloaded("full"), Expired("late")]
)
async def test_a_refusal_without_effect_is_followed_by_another_try(refusal):
    mad = FakeMad([refusal, "done"])

    await write_once(mad, mad.write)

    assert (mad.writes, mad.asked) == ([], [])


async def test_a_final_refusal_is_raised():
    mad = FakeMad([AlreadyExists("taken")])

    with pytest.raises(AlreadyExists):
        await write_once(mad, mad.write)


async def test_a_final_refusal_that_only_the_outcome_tells_is_raised():
    told_late = CommandOutcome("rejected", "already_exists", "taken")
    mad = FakeMad([no_reply()], [told_late])

    with pytest.raises(AlreadyExists, match="taken"):
        await write_once(mad, mad.write)


async def test_an_outcome_that_is_never_told_ends_the_patience(monkeypatch):
    monkeypatch.setattr(retried_calls, "GIVE_UP_AFTER_S", 0.05)
    mad = FakeMad([no_reply("i.0.7")], [PENDING] * 1_000_000)

    with pytest.raises(ReplyTimeout, match=r"i\.0\.7 was unknown after 0\.05 s"):
        await write_once(mad, mad.write)


async def test_a_bus_that_stays_away_ends_the_patience(monkeypatch):
    monkeypatch.setattr(retried_calls, "GIVE_UP_AFTER_S", 0.0)
    mad = FakeMad([Unavailable("away")] * 2)

    with pytest.raises(Unavailable, match="away"):
        await write_once(mad, mad.write)
    with pytest.raises(Unavailable, match="away"):
        await read_retrying(mad.write)


async def test_a_read_is_simply_repeated():
    mad = FakeMad([no_reply(), Unavailable("behind"), "page"])

    assert await read_retrying(mad.write) == "page"
    assert mad.asked == []

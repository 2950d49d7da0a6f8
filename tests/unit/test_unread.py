"""
Replies that nobody receives are bounded for each receiver.
"""

from types import SimpleNamespace

import pytest

from everbus.gateway.identity.principal import Principal
from everbus.gateway.lane.replies import UnreadLimits, UnreadReplies, receiver_of

LIMITS = UnreadLimits(most_bytes=1000, most_items=10, ttl_ms=60_000)


class Bus:
    """
    The streams that are there; counts the questions.
    """

    def __init__(self):
        self.there = set()

    async def exchange(self, commands):
        return [sum(key in self.there for key in keys) for _, *keys in commands]


class Told:
    def __init__(self):
        self.now = 0.0
        self.bus = Bus()
        self.unread = UnreadReplies(LIMITS, lambda: self.now)

    def reply(self, name, size=10, mad="fiedler", now_ms=0):
        self.bus.there.add(name)
        self.unread.note(delivery(mad), name, size, now_ms)

    async def look(self, now_ms=0):
        self.now += 1
        await self.unread.look(self.bus, now_ms)

    def is_full(self, mad="fiedler"):
        return self.unread.is_full(delivery(mad))


def delivery(mad, principal=None):
    return SimpleNamespace(entry=SimpleNamespace(mad=mad), principal=principal)


@pytest.mark.parametrize(("count", "size"), [(10, 1), (2, 500)])
async def test_who_does_not_read_is_full_and_nobody_else(count, size):
    told = Told()
    for n in range(count):
        told.reply(f"r{n}", size)
    told.reply("other", mad="bo")

    await told.look()

    assert told.is_full()
    assert not told.is_full("bo")


async def test_who_reads_is_never_full():
    told = Told()
    for n in range(100):
        told.reply(f"r{n}", 400)
        told.bus.there.clear()
        await told.look()

        assert not told.is_full()


async def test_who_reads_at_last_may_go_on():
    told = Told()
    for n in range(20):
        told.reply(f"r{n}")
    await told.look()
    told.bus.there = {"r3", "r19"}

    await told.look()

    assert not told.is_full()
    assert not told.unread.is_due


async def test_what_has_expired_is_not_unread():
    told = Told()
    for n in range(20):
        told.reply(f"r{n}")

    await told.look(now_ms=60_000)

    assert not told.is_full()


def test_callers_of_an_edge_are_counted_apart():
    ada, bo = (Principal(name, "user", 0.0, "acme") for name in ("ada", "bo"))

    assert receiver_of(delivery("edge", ada)) != receiver_of(delivery("edge", bo))
    assert receiver_of(delivery("fiedler", ada)) == "fiedler"

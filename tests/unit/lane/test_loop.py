"""
The turns of a lane on a scripted wire: what it sends in which order, and when it ends.
"""

import asyncio

import pytest

from everbus.bus import keys
from everbus.bus.errors import Unavailable
from everbus.bus.wire import WireFailed
from everbus.gateway.lane import loop
from everbus.gateway.lane.connection import LaneLost
from everbus.gateway.lane.loop import Lane, LaneParts
from tests.lane_parts import (
    ARRIVED_MS,
    NOW,
    OWNER,
    REPLICATION,
    FakeWire,
    a_decider,
    packed,
)

ADA = keys.ingress(0, "ada").encode()
GROUP = [b"name", keys.GROUP.encode(), b"last-delivered-id", b"0-0"]
ENTRY = f"{ARRIVED_MS}-1"


class NoTiersAtAll:
    async def load_each(self, claims, found, wanted):
        for claim in claims:
            found(claim.session, Unavailable("nothing below"))

    async def answer(self, session, wanted):
        raise Unavailable("nothing below")


class Server:
    """
    An ingress with one command, as its consumer group tells of it.
    """

    def __init__(self, *commits):
        self.commits = list(commits)
        self.left = [[ENTRY.encode(), [b"c", packed("session.create", body=BODY)]]]
        self.pending = []
        self.lane: Lane
        self.wire = FakeWire(
            INFO=REPLICATION,
            lineage=[3, 77, 0],
            TIME=[b"1790000000", b"0"],
            XGROUP=b"OK",
            XINFO=[GROUP],
            XREAD=None,
            HGETALL=[],
            LRANGE=[],
            HMGET=lambda command: [None] * (len(command) - 2),
            MGET=lambda command: [None] * (len(command) - 1),
            mark=b"OK",
            read=self.read,
            commit=self.commit,
        )

    def read(self, command):
        if "news" in command:
            entries, self.left = self.left, []
            self.pending += entries
        else:
            entries = self.pending if command[-1] == "0" else []
        return [NOW.ms, [[ADA, list(entries)]] if entries else None]

    def commit(self, command):
        answer = self.commits.pop(0) if self.commits else [b"ok", 0]
        if isinstance(answer, Exception):
            raise answer
        if answer[0] == b"ok":
            self.pending.clear()
            self.lane.stop()
        return answer

    def committed(self):
        return [command for command in self.wire.sent if command[0] == "commit"]


BODY = {"user_id": "ada"}


@pytest.fixture
def serving(monkeypatch):
    """
    Runs a lane on a server until it ends.
    """
    monkeypatch.setattr(loop, "FIRST_RETRY_S", 0.001)

    async def run(server):
        monkeypatch.setattr(loop, "LaneConnection", lambda *_: server.wire)
        parts = LaneParts("redis://127.0.0.1:1", 1, a_decider, NoTiersAtAll(), "one")
        server.lane = Lane(0, OWNER, parts)
        server.lane.admit(frozenset({"ada"}))
        await asyncio.wait_for(server.lane.run(), 5)

    return run


async def test_a_turn_commits_what_the_turn_before_has_read(serving):
    server = Server()

    await serving(server)

    [commit] = server.committed()
    assert ENTRY in map(str, commit)
    assert server.lane.oldest_age_s() == 0.0
    words = server.wire.words()
    assert words.index("read") < words.index("commit")


@pytest.mark.parametrize("trouble", [WireFailed("cut"), ZeroDivisionError("a defect")])
async def test_after_a_failed_commit_it_begins_with_the_pending_entries(
    serving, trouble
):
    """
    Pending is exactly what was not committed: the same command, tried alone.
    """
    server = Server(trouble)

    await serving(server)

    assert server.wire.opened == 2
    assert "mark" in server.wire.words()
    first, second = server.committed()
    assert ENTRY in map(str, first)
    assert ENTRY in map(str, second)


async def test_a_stale_cache_is_forgotten_and_the_command_decided_anew(serving):
    server = Server([b"stale", 0])

    await serving(server)

    assert server.wire.opened == 2
    assert len(server.committed()) == 2


async def test_a_lane_with_another_owner_ends(serving):
    with pytest.raises(LaneLost):
        await serving(Server([b"superseded"]))

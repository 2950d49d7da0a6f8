"""
SIGKILL at every step of writing, suspending, archiving and returning.

Conversations are led round and round through all tiers, and compared each time,
while a victim dies at one named point after another: archiver, replica, MongoDB or
S3. At the end Redis is emptied, and every session has to be whole all the same.
"""

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import pytest_asyncio

from everbus.archiver.lease import NAME as LEASE
from everbus.bus import Mad
from everbus.gateway.failpoints import ARCHIVER, DRAIN, RETURN, VAULT
from everbus.gateway.store import key_names
from everbus.gateway.store.cold import format
from tests.conversations import Conversation
from tests.replicas import Part, letters, start, until
from tests.servers import RealServer
from tests.stack import (
    CHUNK_ENTRIES,
    PARTITIONS,
    Stack,
    a_stack,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

# What an archiver passes here; nothing is deleted.
MOVING = tuple(p for p in (*DRAIN, *VAULT, *ARCHIVER) if p != "removal")
# Passed while the suspension of a session is on its way through the archiver.
SUSPENDING = tuple(f"suspending {point}" for point in DRAIN)
# What a replica passes when a suspension is committed.
COMMITTING = ("before_commit", "after_commit")
SESSIONS = 4
ROUND_ENTRIES = 20
# Then a conversation is left alone, and another one begun.
MOST_ENTRIES = 200
WITHIN_S = 60.0
# How long a replica lives at most before it may be struck again.
LIFE_S = 2.0
TIMES = pytest.mark.parametrize(
    "times",
    [
        pytest.param(1, marks=pytest.mark.timeout(200)),
        pytest.param(20, marks=[pytest.mark.campaign, pytest.mark.timeout(1800)]),
    ],
)
# What was made hot by a command that was then refused is not archived before that.
HOT_TTL_S = 2.0
HOT = {"hot_ttl_s": HOT_TTL_S}
QUICKLY = {"archive_every_s": 0.1, "archive_after_days": 0, **HOT}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(tmp_path_factory) -> AsyncIterator[Stack]:
    async with a_stack(tmp_path_factory.mktemp("stack")) as stack:
        yield stack


@pytest_asyncio.fixture(loop_scope="module")
async def stack(servers: Stack, monkeypatch) -> Stack:
    monkeypatch.setattr(format, "CHUNK_ENTRIES", CHUNK_ENTRIES)
    await servers.empty()
    return servers


class Traffic:
    """
    Conversations on their way round and round: written, suspended, archived, read.

    Attributes:
        made: all of them, also those that are left alone by now.
        rounds: how often one came back whole.
        suspending: how many suspensions MongoDB does not hold yet.
    """

    def __init__(self, stack: Stack, mad: Mad) -> None:
        self.made: list[Conversation] = []
        self.rounds = 0
        self.suspending = 0
        self._stack = stack
        self._mad = mad
        self._stop = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Traffic"]:
        """
        Under way while the block runs; at its end each has come round.
        """
        async with asyncio.TaskGroup() as leading:
            for n in range(SESSIONS):
                leading.create_task(self._lead(random.Random(n)))
            try:
                yield self
            finally:
                self._stop.set()

    async def _lead(self, chance: random.Random) -> None:
        one = await self._begun()
        while True:
            await self._round(one, chance)
            self.rounds += 1
            if self._stop.is_set():
                return
            if len(one.entries) >= MOST_ENTRIES:
                one = await self._begun()

    async def _begun(self) -> Conversation:
        one = await Conversation.begin(self._mad)
        self.made.append(one)
        await one.say(2 * ROUND_ENTRIES)

        return one

    async def _round(self, one: Conversation, chance: random.Random) -> None:
        await one.say(ROUND_ENTRIES)
        await one.change()
        self.suspending += 1
        try:
            await one.suspend()
        finally:
            self.suspending -= 1
        stub = {"archival_status": "S3"}
        if chance.random() < 0.5:
            # Else it is read while its entries are still being purged.
            stub["unpurged"] = None
        await self._stack.until_document(one.id, **stub)
        await one.check()
        if chance.random() < 0.5:
            await self._stack.until_document(one.id, unrestored=None)
            await one.check()


class Striker:
    """
    Kills a victim at the instant at which a point is passed, each a number of times.

    Attributes:
        left: point → how often it is still to die there.
    """

    def __init__(
        self,
        points: tuple[str, ...],
        times: int,
        pid: Callable[[], int],
        mend: Callable[[], Awaitable[None]],
    ) -> None:
        self.left = Counter(dict.fromkeys(points, times))
        self.kills = 0
        self.traffic: Traffic | None = None
        self._pid = pid
        self._mend = mend
        self._mending: asyncio.Task[None] | None = None
        self._spare = False

    def passing(self, point: str) -> None:
        """
        To be given to whatever passes the points.

        Every other time it does nothing, or nothing would ever get on.
        """
        self._spare = not self._spare
        if self._spare:
            return
        if self._mending is not None and not self._mending.done():
            return
        if self._mending is not None:
            self._mending.result()
        chosen = self._chosen(point)
        if chosen is None:
            return
        self.left[chosen] -= 1
        self.kills += 1
        os.kill(self._pid(), signal.SIGKILL)
        self._mending = asyncio.ensure_future(self._mend())

    async def through(self, within_s: float) -> None:
        """
        Return when it has died everywhere as often as it had to.
        """
        await until(lambda: not +self.left, within_s, f"all of {self.left}")
        if self._mending is not None:
            await self._mending

    def _chosen(self, point: str) -> str | None:
        if self.traffic is not None and self.traffic.suspending:
            suspending = f"suspending {point}"
            if self.left[suspending] > 0:
                return suspending
        return point if self.left[point] > 0 else None


@asynccontextmanager
async def led(stack: Stack, striker: Striker | None = None) -> AsyncIterator[Traffic]:
    async with stack.mad() as mad:
        traffic = Traffic(stack, mad)
        if striker is not None:
            striker.traffic = traffic
        async with traffic.running():
            yield traffic


async def check_all(stack: Stack, traffic: Traffic) -> None:
    """
    Every conversation is whole in the tiers below Redis.
    """
    assert traffic.rounds >= SESSIONS
    assert await letters(stack.client, PARTITIONS) == []
    await stack.client.flushall()
    async with stack.replica(**HOT), stack.mad() as mad:
        for one in traffic.made:
            one.mad = mad
            await one.check()


def revived(server: RealServer) -> Callable[[], Awaitable[None]]:
    async def revive() -> None:
        await server.kill()
        await server.restart()

    return revive


@TIMES
@pytest.mark.parametrize("victim", ["mongo", "s3"])
async def test_a_server_killed_at_any_step_costs_no_session(stack, victim, times):
    """
    It dies while an archiver or a reader is at that very step, and is started again.
    """
    server: RealServer = getattr(stack, victim)
    points = (*MOVING, *RETURN, *SUSPENDING)
    striker = Striker(points, times, lambda: server.pid, revived(server))
    async with (
        stack.replica(fail=striker.passing, **HOT),
        stack.hands(fail=striker.passing) as hands,
        hands.at_it(HOT_TTL_S),
        led(stack, striker) as traffic,
    ):
        await striker.through(WITHIN_S * times)
    assert striker.kills == len(points) * times
    await check_all(stack, traffic)


@TIMES
async def test_a_replica_killed_at_any_step_costs_no_session(stack, times):
    """
    While the archiver is at that step; and in its own, when a session returns.
    """
    managers = Managers(stack)
    async with managers, stack.hands(fail=managers.striker(times).passing) as hands:
        async with hands.at_it(HOT_TTL_S), led(stack, managers.striking) as traffic:
            await managers.striking.through(WITHIN_S * times)
            for point in (*RETURN, *COMMITTING) * times:
                await managers.die(f"{point}:{random.randint(1, 2)}")
        kills = managers.striking.kills
    assert kills == len((*MOVING, *SUSPENDING)) * times
    await check_all(stack, traffic)


class Managers:
    """
    One manager at a time, as a process; killed, it has a successor.
    """

    striking: Striker

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._part: Part
        self._life_s = 0.0
        self._count = 0

    async def __aenter__(self) -> None:
        await self._start()

    async def __aexit__(self, *_: object) -> None:
        await self._part.end(signal.SIGKILL)

    def striker(self, times: int) -> Striker:
        self._life_s = LIFE_S if times > 1 else 0.0
        self.striking = Striker(
            (*MOVING, *SUSPENDING), times, lambda: self._part.pid, self._succeed
        )
        return self.striking

    async def die(self, fail_point: str) -> None:
        """
        Put one in its place that dies at that point, and wait until it has.
        """
        await self._part.end(signal.SIGKILL)
        await self._start(fail_point=fail_point)
        assert await self._part.ended(WITHIN_S) == -signal.SIGKILL
        await self._succeed()

    async def _succeed(self) -> None:
        await self._part.ended()
        await self._start()
        await self._part.logged("lane.taken")
        # A pace: where each one dies at its first return, no session ever does, and
        # whoever asks for it is told nothing.
        await asyncio.sleep(random.uniform(0, self._life_s))

    async def _start(self, **settings: str) -> None:
        self._count += 1
        name = f"m{self._count}"
        env = self._stack.environment(replica=name, **HOT, **settings)
        self._part = await start(self._stack.folder, "manager", name, env)


@TIMES
async def test_an_archiver_killed_at_any_step_costs_no_session(stack, times):
    """
    A process of its own, that dies by itself; the next one finds what it left.
    """
    chance = random.Random(times)
    async with stack.replica(**HOT), AsyncExitStack() as last:
        async with led(stack) as traffic:
            for point in MOVING * times:
                await die(stack, f"{point}:{chance.randint(1, 3)}")
            # It lives until all have come round.
            await last.enter_async_context(stack.archiver(**QUICKLY))
        await stack.drained()
    await check_all(stack, traffic)


@TIMES
async def test_an_archiver_killed_while_it_suspends_a_session_costs_nothing(
    stack, times
):
    """
    It has the suspension in its hands, and nothing else.
    """
    async with stack.replica(**HOT), stack.mad() as mad:
        for _ in range(times):
            one = await Conversation.begin(mad)
            await one.say(ROUND_ENTRIES)
            async with stack.hands() as hands, hands.draining(hot_ttl_s=HOT_TTL_S):
                await stack.drained()
            await one.suspend(durability="hot")
            for point in DRAIN:
                await die(stack, f"{point}:1")
                await one.check()
            async with stack.hands() as hands, hands.draining(hot_ttl_s=HOT_TTL_S):
                await stack.drained()
            await one.check()


async def die(stack: Stack, fail_point: str) -> None:
    """
    Run an archiver until it is dead by that point.
    """
    async with stack.archiver(fail_point=fail_point, **QUICKLY) as armed:
        assert await armed.ended(WITHIN_S) == -signal.SIGKILL, armed.output()
    # Its successor need not wait for its lease.
    await stack.client.delete(key_names.owner(LEASE))

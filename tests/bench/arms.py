"""
The arms of the spine: what one MAD asks of the replicas of one server.

Each arm notes its figures and counts what it sent; `check` compares that with the
versions of the sessions: a fast loss is no result.
"""

import asyncio
import time
from typing import NamedTuple

import msgspec
import redis.asyncio as redis

from everbus.bus import keys
from everbus.bus.cluster_wire import wire_to
from everbus.bus.errors import Overloaded
from everbus.bus.messages import SCHEMA, Envelope, pack
from everbus.gateway.lane.sequence import ProducerWindow
from everbus.gateway.store import key_names
from tests.bench import rig, watch_loop
from tests.bench.patches import Patch, UpdateBodies, another_of

SESSIONS = 1000
PATCH = {"work_in_progress": {"a": "x" * 100, "b": "y" * 100, "c": "z" * 60}}
IN_FLIGHT = 1000
COMMANDS_A_COMMIT = "commands a commit"
# What the rest of the machine did meanwhile; above a tenth the pass is worth little.
OTHERS = "others' CPU, cores"
# How often it is looked whether all is committed.
POLL_S = 0.005


class Used(NamedTuple):
    """
    CPU seconds used so far: by the replicas, the servers, this process, all there are.
    """

    workers: float
    servers: float
    publisher: float
    busy: float
    at: float


class Arms:
    """
    One station, its sessions, and the arms that are measured on it.

    Args:
        figures: where the figures are kept, name → a value a pass.
        prefix: what the names of its figures begin with.
        patch: what each update changes.
    """

    def __init__(
        self,
        station: rig.Station,
        figures: dict[str, list[float]],
        prefix: str = "",
        patch: Patch = PATCH,
    ) -> None:
        self._station = station
        self._mad = station.mad
        self._wire = wire_to(station.url)
        self._client = watch_loop.client_for(station.server.url)
        self._bare = redis.Redis.from_url(station.server.url)
        self._figures = figures
        self._prefix = prefix
        self._patch = patch
        self._sent = 0
        self._bodies = UpdateBodies(patch)
        self.body = self._bodies.another()
        self.ids: list[str] = []

    async def open(self) -> None:
        """
        Create the sessions.
        """
        made = await asyncio.gather(
            *(self._mad.create_session(f"u{i}", timeout=60) for i in range(SESSIONS))
        )
        self.ids = [session.id for session in made]

    async def close(self) -> None:
        """
        Close what this opened.
        """
        await self._wire.close()
        await self._client.aclose()
        await self._bare.aclose()

    def note(self, name: str, value: float) -> None:
        """
        Keep one figure of one pass.
        """
        self._figures.setdefault(self._prefix + name, []).append(value)

    def command(self) -> bytes:
        """
        One command as it lies on the ingress.
        """
        grant = self._mad._requests._publisher.grant
        return pack(
            msgspec.structs.replace(self._envelope(0), id="0" * 24, grant=grant)
        )

    async def no_reply(self, count: int) -> None:
        """
        Updates that want no reply, from the first publish to the last commit.
        """
        before, commits = await self._settled(), await self._commits()
        used = self._used()
        started = time.perf_counter()
        await self._publish(count)
        await self._until(before + count)
        self.note("no reply, commands/s", count / (time.perf_counter() - started))
        self._note_cpu(used, count, "")
        self.note(COMMANDS_A_COMMIT, count / (await self._commits() - commits))

    async def backlog(self, count: int) -> None:
        """
        As many that wait when the replicas begin; while they work, nobody publishes.
        """
        before = await self._settled()
        with self._station.paused():
            await self._publish(count)
            await self._mad.flush(timeout=60)
            used = self._used()
            started = time.perf_counter()
        await self._until(before + count)
        self.note("backlog, commands/s", count / (time.perf_counter() - started))
        self._note_cpu(used, count, "backlog, ", publisher=False)

    async def with_reply(self, count: int, in_flight: int = IN_FLIGHT) -> float:
        """
        Requests, so many at once in one process; how many a second.
        """

        async def caller(first: int) -> None:
            for i in range(first, count, in_flight):
                await self._update(i)

        used, commits = self._used(), await self._commits()
        started = time.perf_counter()
        await asyncio.gather(*(caller(first) for first in range(in_flight)))
        rate = count / (time.perf_counter() - started)
        self._note_cpu(used, count, "with reply, ")
        made = await self._commits() - commits
        self.note(f"with reply, {COMMANDS_A_COMMIT}", count / made)
        self.note("with reply, requests/s", rate)

        return rate

    async def half_load(self, rate: float, seconds: float) -> None:
        """
        Requests that are due at half of *rate*, whatever becomes of the others.

        A request's time counts from when it was due, so that a stall is seen.
        """
        count = max(100, int(rate / 2 * seconds))
        took: list[float] = []

        async def request(i: int, due: float) -> None:
            await self._update(i)
            took.append(time.perf_counter() - due)

        started = time.perf_counter()
        async with asyncio.TaskGroup() as under_way:
            n = 0
            while n < count:
                due = int((time.perf_counter() - started) * rate / 2)
                for i in range(n, min(due, count)):
                    under_way.create_task(request(i, started + i / rate * 2))
                n = max(n, min(due, count))
                await asyncio.sleep(0.001)
        took.sort()
        self.note("half load p50 ms", 1000 * rig.median(took))
        self.note("half load p99 ms", 1000 * took[int(0.99 * count)])

    async def appends(self, count: int) -> None:
        """
        Fire-and-forget appends of one publisher, until they are on the bus.
        """
        started = time.perf_counter()
        for i in range(count):
            while True:
                try:
                    self._mad.append(self.ids[i % SESSIONS], {"text": "x" * 200})
                    break
                except Overloaded:
                    await self._mad.flush(timeout=60)
        await self._mad.flush(timeout=60)
        self.note("appends published/s", count / (time.perf_counter() - started))
        await self._quiet()

    async def one_session(self, writers: int, each: int) -> None:
        """
        Many writers on one session, no expected version.
        """
        session = await self._mad.create_session("crowd")

        async def writer() -> None:
            for _ in range(each):
                patch = another_of(self._patch)
                await self._mad.update_session(session.id, patch, timeout=60)

        started = time.perf_counter()
        await asyncio.gather(*(writer() for _ in range(writers)))
        took = time.perf_counter() - started
        self.note(f"{writers} writers on one session, /s", writers * each / took)
        last = await self._mad.get_session(session.id)
        if last.version != 1 + writers * each:
            raise AssertionError(f"lost updates: version {last.version}")

    async def watch(self, count: int, at_once: int) -> None:
        """
        The same work with WATCH/MULTI/EXEC per command on 16 lanes.
        """
        await watch_loop.prepare(self._client, self.ids, count, self.body)
        started = time.perf_counter()
        done = await watch_loop.run(self._client, at_once)
        took = time.perf_counter() - started
        self.note(f"WATCH per command, {at_once} a read, /s", done / took)
        await watch_loop.forget(self._client)

    async def latency(self, count: int) -> None:
        """
        Request to reply with one in flight, each beside a bare PING of redis-py.

        In turns, so that both find the cores asleep: back to back, the PING keeps
        them awake and takes half as long.
        """
        requests: list[float] = []
        pings: list[float] = []
        for i in range(count):
            started = time.perf_counter()
            await self._update(i)
            between = time.perf_counter()
            await self._bare.ping()
            requests.append((between - started) * 1e6)
            pings.append((time.perf_counter() - between) * 1e6)
        requests.sort()
        self.note("request p50 us", rig.median(requests))
        self.note("request p99 us", requests[int(0.99 * count)])
        self.note("PING p50 us", rig.median(pings))
        self.note("request p50 : PING p50", rig.median(requests) / rig.median(pings))

    async def idle(self, seconds: float) -> None:
        """
        What replicas and servers use while nothing is asked of them.
        """
        used = self._used()
        await asyncio.sleep(seconds)
        for part, was, now in zip(
            ("worker", "server"), used, self._used(), strict=False
        ):
            self.note(f"idle, {part} CPU us a second", (now - was) / seconds * 1e6)

    async def check(self) -> None:
        """
        The versions must tell of every command once.
        """
        found = await asyncio.gather(
            *(self._mad.get_session(i, timeout=60) for i in self.ids)
        )
        applied = sum(session.version - 1 for session in found)
        if applied != self._sent:
            raise AssertionError(f"{self._sent} updates sent, {applied} applied")
        await rig.empty(self._wire, self._station.partitions)

    async def _update(self, i: int) -> None:
        self._sent += 1
        session_id = self.ids[i % SESSIONS]
        await self._mad.update_session(session_id, another_of(self._patch), timeout=60)

    def _used(self) -> Used:
        at = self._station
        mine = (at.worker_s, at.server_s, time.process_time())

        return Used(*mine, busy=rig.busy_s(), at=time.perf_counter())

    def _note_cpu(
        self, before: Used, count: int, arm: str, *, publisher: bool = True
    ) -> None:
        now = self._used()
        mine = [b - a for a, b in zip(before[:3], now[:3], strict=True)]
        named = dict(zip(("worker", "server", "publisher"), mine, strict=True))
        if not publisher:
            del named["publisher"]
        for part, used in named.items():
            self.note(f"{arm}{part} CPU us a command", used / count * 1e6)
        others = now.busy - before.busy - sum(mine)
        self.note(f"{arm}{OTHERS}", max(0.0, others / (now.at - before.at)))

    def _envelope(self, i: int) -> Envelope:
        return Envelope(
            v=SCHEMA,
            id="",
            kind="session.update",
            session=self.ids[i % SESSIONS],
            body=msgspec.Raw(self._bodies.another()),
        )

    async def _publish(self, count: int) -> None:
        self._sent += count
        publisher = self._mad._requests._publisher
        for i in range(count):
            envelope = self._envelope(i)
            partition = keys.partition_of(envelope.session, self._station.partitions)
            while True:
                try:
                    publisher.publish(envelope, partition)
                    break
                except Overloaded:
                    await self._mad.flush(timeout=60)

    async def _until(self, settled: int) -> None:
        while await self._settled() < settled:
            await asyncio.sleep(POLL_S)

    async def _settled(self) -> int:
        lanes = range(self._station.partitions)
        every = [("HVALS", key_names.publishers(p)) for p in lanes]
        replies = await self._wire.exchange(every)
        return sum(
            ProducerWindow.parse(v).high_water for values in replies for v in values
        )

    async def _commits(self) -> int:
        lanes = range(self._station.partitions)
        return sum(
            await self._wire.exchange([("XLEN", key_names.outbox(p)) for p in lanes])
        )

    async def _quiet(self) -> None:
        before = -1
        while (now := await self._settled()) != before:
            before = now
            await asyncio.sleep(0.3)
        await rig.empty(self._wire, self._station.partitions)

"""
Managers and archivers as real processes, load on them, and the books they keep.

What a run leaves behind is judged by the server's own keys, never by what a
process says of itself: the outboxes (read while no archiver runs) hold every
commit, and the ingress groups hold what is not settled.
"""

import asyncio
import inspect
import json
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import redis.asyncio

from archiver.confirmation import Terms, confirmations, entry_of
from bus import Mad, Unavailable, connect, keys
from bus.messages import SCHEMA, TimelineEntry
from compose.keyring import grants_of, identity_of
from compose.roles import beside, lane_parts
from compose.settings import Settings, load_settings
from gateway.granting import Granting
from gateway.identity.tokens import mint
from gateway.replica import Replica
from gateway.store import names
from gateway.store.outbox import VALUE_FIELD, unpack_records
from gateway.store.reader import NoTiers
from handlers.outcomes import Event
from handlers.routes import HANDLERS
from tests.builders import sealed_grant
from tests.servers import inherited

HOUSE = Path(__file__).parent.parent
SECRET = "a secret of the tests, 32 bytes or more"
# Registered here as well, so that it does not matter which roles the cli has.
ROLES = """
from compose.cli import app, main
from compose.roles import archiver, manager

app.command()(manager)
app.command()(archiver)
main()
"""
POLL_S = 0.01


def a_token(name: str = "ada", role: str = "admin") -> str:
    """
    A token that every process of these tests accepts.
    """
    return mint(
        SECRET,
        name=name,
        role=role,
        issuer="everbus",
        audience="everbus",
        ttl_s=3600,
        now=time.time(),
    )


def a_grant(
    name: str = "ada", role: str = "admin", *, mad: str = "fiedler", **fields: Any
) -> bytes:
    """
    What they give for such a token to *mad*, for commands published by hand.
    """
    return sealed_grant(SECRET, name, role, mad=mad, **fields)


def settings_of(url: str, **settings: Any) -> dict[str, str]:
    """
    The environment of one process; a keyword a setting.
    """
    chosen = {
        "redis_url": url,
        "jwt_secret": SECRET,
        "partitions": 2,
        "lane_ttl_ms": 1000,
        "log_format": "json",
        "development": "true",
        **settings,
    }
    return {f"EVERBUS_{name.upper()}": str(value) for name, value in chosen.items()}


async def until(condition: Any, within_s: float = 10.0, what: str = "") -> Any:
    """
    The first true answer of *condition* (a function, async or not).
    """
    try:
        async with asyncio.timeout(within_s):
            while True:
                answer = condition()
                if inspect.isawaitable(answer):
                    answer = await answer
                if answer:
                    return answer
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise AssertionError(
            f"not within {within_s} s: {what or condition.__name__}"
        ) from None


class Part:
    """
    One process of everbus, with its log.
    """

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path):
        self.name = name
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    async def end(self, number: int = signal.SIGTERM, within_s: float = 15.0) -> int:
        """
        Send a signal, wait for the process's end; its exit code.
        """
        if self.alive:
            self.send(number)
        return await self.ended(within_s)

    async def ended(self, within_s: float = 30.0) -> int:
        """
        Wait for the process's end; its exit code, negative for a signal.
        """
        async with asyncio.timeout(within_s):
            return await self._process.wait()

    def output(self) -> str:
        """
        All that it has written.
        """
        return self._log.read_text(errors="replace")

    def records(self, event: str = "", **fields: Any) -> list[dict[str, Any]]:
        """
        Its log records of that event with these fields, oldest first.
        """
        found = []
        for line in self.output().splitlines():
            if not line.startswith("{"):
                continue
            try:
                record = json.loads(line)
            except ValueError:  # cut by a kill, or not written to its end yet
                continue
            if event in ("", record["event"]) and fields.items() <= record.items():
                found.append(record)
        return found

    async def logged(
        self, event: str, within_s: float = 15.0, **fields: Any
    ) -> dict[str, Any]:
        """
        The first such record, as soon as it is there.
        """

        def found() -> dict[str, Any] | None:
            if not self.alive and not self.records(event, **fields):
                raise AssertionError(f"{self.name} ended:\n{self.output()[-3000:]}")
            return next(iter(self.records(event, **fields)), None)

        record: dict[str, Any] = await until(found, within_s, f"{self.name}: {event}")
        return record


async def start(
    folder: Path, role: str, name: str, env: Mapping[str, str], program: str = ROLES
) -> Part:
    """
    Start one process; whoever starts it ends it.
    """
    log = folder / f"{name}-{time.monotonic_ns()}.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, role),
            cwd=HOUSE,
            env={**inherited(), "PYTHONUNBUFFERED": "1", **env},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    return Part(name, process, log)


@asynccontextmanager
async def manager(
    folder: Path, url: str, name: str, *, program: str = ROLES, **settings: Any
) -> AsyncIterator[Part]:
    """
    A manager that is killed at the end, if it still lives.
    """
    env = settings_of(url, replica=name, **settings)
    part = await start(folder, "manager", name, env, program)
    try:
        yield part
    finally:
        await part.end(signal.SIGKILL)


@asynccontextmanager
async def archiver(folder: Path, url: str, name: str, **settings: Any):
    """
    An archiver that is killed at the end, if it still lives.
    """
    part = await start(folder, "archiver", name, settings_of(url, **settings))
    try:
        yield part
    finally:
        await part.end(signal.SIGKILL)


@asynccontextmanager
async def replica_here(
    url: str, *, routes=HANDLERS, tiers=None, name: str = "here", **settings: Any
) -> AsyncIterator[Replica]:
    """
    A replica in this process, whose handlers and metrics a test can reach; it gives
    grants, too.
    """
    chosen: Settings = load_settings(settings_of(url, **settings))
    async with redis.asyncio.from_url(url) as client:
        await client.hsetnx(keys.CONFIG, "partitions", chosen.partitions)
        await client.hsetnx(keys.CONFIG, "schema", SCHEMA)
        await client.hsetnx(keys.MADS, keys.GATEWAY, "{}")
    parts = lane_parts(chosen, chosen.partitions, tiers or NoTiers(), routes)
    replica = Replica(name, parts, ttl_ms=chosen.lane_ttl_ms)
    granting = Granting(url, identity_of(chosen), grants_of(chosen))
    stop = asyncio.Event()
    serving = asyncio.create_task(replica.run(stop))
    try:
        async with beside(granting.run(), stop):
            yield replica
    finally:
        stop.set()
        async with asyncio.timeout(15):
            await serving


@asynccontextmanager
async def a_client(url: str) -> AsyncIterator[redis.asyncio.Redis]:
    """
    A connection for the test itself, around everything.
    """
    async with redis.asyncio.from_url(url) as client:
        yield client


def a_mad(url: str, name: str = "fiedler"):
    """
    A MAD whose token allows everything.
    """
    return connect(url, mad=name, token=a_token())


async def owners(client: redis.asyncio.Redis, partitions: int) -> dict[int, str]:
    """
    Lane → owner value, of the lanes that have an owner.
    """
    values = await client.mget([names.owner(p) for p in range(partitions)])
    return {p: value.decode() for p, value in enumerate(values) if value}


def replica_in(owner: str) -> str:
    """
    The replica's name in an owner value.
    """
    return names.holder_of(owner)[0]


def epoch_in(owner: str) -> int:
    """
    The epoch in an owner value.
    """
    return int(owner.partition(":")[0])


async def unsettled(client: redis.asyncio.Redis) -> dict[str, Any]:
    """
    Ingress → what of it is pending or was never delivered; empty when all is done.
    """
    left = {}
    async for key in client.scan_iter("eb:{*}:in:*", count=1000):
        try:
            stream = await client.xinfo_stream(key)
            known = await client.xinfo_groups(key)
        except redis.exceptions.ResponseError as error:
            # Heartbeats that were all read are gone as a whole.
            if "no such key" not in str(error):
                raise
            continue
        for group in known:
            behind = group["last-delivered-id"] != stream["last-generated-id"]
            if group["pending"] or behind:
                left[key.decode()] = (group["pending"], behind)
    return left


async def settled(client: redis.asyncio.Redis, within_s: float = 20.0) -> None:
    """
    Wait until no ingress has a pending or an undelivered entry.
    """
    left: dict[str, Any] = {}

    async def nothing_is_left() -> bool:
        nonlocal left
        left = await unsettled(client)
        return not left

    try:
        await until(nothing_is_left, within_s)
    except AssertionError:
        raise AssertionError(f"not settled within {within_s} s: {left}") from None


async def letters(client: redis.asyncio.Redis, partitions: int) -> list[Any]:
    """
    The dead letters of all partitions.
    """
    found = [await client.xrange(names.dead(p)) for p in range(partitions)]
    return [fields for entries in found for _, fields in entries]


async def groups(client: redis.asyncio.Redis, stream: str) -> list[Any]:
    """
    The groups of a stream; none if there is no stream.
    """
    return await client.xinfo_groups(stream) if await client.exists(stream) else []


class Books:
    """
    What was committed: the outboxes' records, in order.

    Attributes:
        events: session → its events.
        entries: session → its timeline entries.
    """

    def __init__(self) -> None:
        self.events: dict[str, list[Event]] = defaultdict(list)
        self.entries: dict[str, list[TimelineEntry]] = defaultdict(list)

    @classmethod
    async def read(cls, client: redis.asyncio.Redis, partitions: int) -> "Books":
        """
        Read every record of every outbox.
        """
        books = cls()
        for p in range(partitions):
            books.add(await client.xrange(names.outbox(p)))
        return books

    def add(self, entries: Any) -> None:
        """
        Enter the records of outbox entries.
        """
        for _, fields in entries:
            for record in unpack_records(fields[VALUE_FIELD]):
                self.events[record.session] += record.events
                self.entries[record.session] += (
                    msgspec.msgpack.decode(e, type=TimelineEntry)
                    for e in record.entries
                )

    async def take(self, client: redis.asyncio.Redis, partitions: int) -> None:
        """
        Enter what the outboxes hold and confirm it, as an archiver would.
        """
        group = names.ARCHIVER_GROUP
        for p in range(partitions):
            outbox = names.outbox(p)
            if not any(
                g["name"] == group.encode() for g in await groups(client, outbox)
            ):
                await client.xgroup_create(outbox, group, "0", mkstream=True)
            read = await client.xreadgroup(group, "test", {outbox: ">"}, count=1000)
            entries = [entry for _, found in read for entry in found]
            taken = [entry_of(p, i, fields) for i, fields in entries]
            for command in confirmations(taken, (), time.time_ns() // 10**6, Terms()):
                await client.execute_command(*command)
            self.add(entries)

    def check(self) -> None:
        """
        No command twice; versions and seqs of every session 1, 2, 3 …, made now.
        """
        commands = Counter(e.command_id for es in self.events.values() for e in es)
        assert [c for c, count in commands.items() if count > 1] == []
        for session, events in self.events.items():
            states = [e.version for e in events if e.kind != "timeline.appended"]
            assert list(range(1, len(states) + 1)) == states, session
        for session, entries in self.entries.items():
            seqs = [entry.seq for entry in entries]
            assert list(range(1, len(seqs) + 1)) == seqs, session
            # On the server's clock, also where a takeover replayed them.
            ages_s = [
                (datetime.now(UTC) - entry.at).total_seconds() for entry in entries
            ]
            assert all(-60 < age < 3600 for age in ages_s), session

    def numbers(self, session: str, author: str) -> list[int]:
        """
        The `n` of what *author* appended, in the timeline's order.
        """
        entries = self.entries[session]
        return [e.entry["n"] for e in entries if e.author == author]

    def versions(self, mark: str) -> list[tuple[str, int]]:
        """
        The sessions and versions at which the update marked *mark* was applied.
        """
        return [
            (session, event.version)
            for session, events in self.events.items()
            for event in events
            if event.kind == "session.updated" and _mark(event) == mark
        ]


class Load:
    """
    Workers that append and update and wait for the replies, each in a loop.

    Closed, so that an outage is followed by a short replay, not by a long one.

    Attributes:
        appended: (session, MAD) → how many entries were appended.
        acknowledged: mark of an update → the session and version in its reply.
        unknown: marks of updates that nobody told the end of.
    """

    def __init__(self, mads: list[Mad], sessions: list[str]) -> None:
        self.appended: Counter[tuple[str, str]] = Counter()
        self.acknowledged: dict[str, tuple[str, int]] = {}
        self.unknown: set[str] = set()
        self._pairs = [(mad, session) for mad in mads for session in sessions]
        self._stop = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Load"]:
        """
        Load while the block runs; at its end every worker has its last answer.
        """
        async with asyncio.TaskGroup() as workers:
            for mad, session in self._pairs:
                workers.create_task(self._work(mad, session))
            try:
                yield self
            finally:
                self.stop()

    def stop(self) -> None:
        """
        Begin nothing more.
        """
        self._stop.set()

    async def more(self, count: int = 20, within_s: float = 20.0) -> None:
        """
        Wait until *count* more updates are acknowledged.
        """
        goal = len(self.acknowledged) + count
        await until(
            lambda: len(self.acknowledged) >= goal, within_s, f"{count} more updates"
        )

    def check(self, books: Books) -> None:
        """
        Every append once and in order; every acknowledged update once.
        """
        books.check()
        assert self.acknowledged
        for (session, author), count in self.appended.items():
            numbers = books.numbers(session, author)
            assert list(range(1, count + 1)) == numbers, (session, author)
        told = {**self.acknowledged}
        applied: Counter[str] = Counter()
        for session, events in books.events.items():
            for event in events:
                if event.kind == "session.updated":
                    mark = _mark(event)
                    applied[mark] += 1
                    known = told.pop(mark, None)
                    assert known == (session, event.version) or mark in self.unknown
        assert told == {}
        assert [mark for mark, count in applied.items() if count > 1] == []

    async def _work(self, mad: Mad, session: str) -> None:
        while not self._stop.is_set():
            for _ in range(3):
                self.appended[session, mad.name] += 1
                mad.append(session, {"n": self.appended[session, mad.name]})
            mark = f"{session}/{mad.name}/{self.appended[session, mad.name]}"
            patch = {"context_summary": {"mark": mark}}
            try:
                after = await mad.update_session(session, patch, timeout=40)
                self.acknowledged[mark] = (session, after.version)
            except Unavailable:
                self.unknown.add(mark)
            # A pace, not a wait: leaves the cores to the processes under test.
            await asyncio.sleep(POLL_S)


def _mark(event: Event) -> str:
    return str((event.patch or {})["context_summary"]["mark"])

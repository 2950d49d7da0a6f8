"""
Managers and archivers as real processes, and the state that they leave on the bus.

A run is checked by the server's own keys, never by a process's log: the outboxes hold
every commit (`tests.commit_log`), and the ingress groups hold what is not settled.
"""

import asyncio
import inspect
import json
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import redis.asyncio

from everbus.bus import connect, keys
from everbus.bus.messages import SCHEMA
from everbus.compose.keyring import grants_of, identity_of
from everbus.compose.role_processes import in_background, lane_parts
from everbus.compose.settings import Settings, load_settings
from everbus.gateway.identity.token_exchange import TokenExchange
from everbus.gateway.identity.tokens import mint
from everbus.gateway.session_manager import SessionManager
from everbus.gateway.store import key_names
from everbus.gateway.store.reader import NoTiers
from everbus.handlers.routes import HANDLERS
from tests.builders import sealed_grant
from tests.processes import DEVNULL, Process, start_python
from tests.servers import inherited

SECRET = "a secret of the tests, 32 bytes or more"
ROLES = "from everbus.compose.cli import main; main()"
POLL_S = 0.01


def a_token(name: str = "ada", role: str = "admin", tenant: str = "") -> str:
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
        tenant=tenant,
    )


def a_grant(
    name: str = "ada", role: str = "admin", *, mad: str = "fiedler", **fields: Any
) -> bytes:
    """
    The grant for such a token of *mad*, for commands published by hand.
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

    def __init__(self, name: str, process: Process, log: Path):
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
        Its whole log.
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
        self, event: str, within_s: float = 45.0, **fields: Any
    ) -> dict[str, Any]:
        """
        The first such record, as soon as it is logged.
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
    Start one process; the caller ends it.
    """
    log = folder / f"{name}-{time.monotonic_ns()}.log"
    with log.open("wb") as output:
        process = await start_python(
            *("-c", program, role),
            env={**inherited(), "PYTHONUNBUFFERED": "1", **env},
            stdin=DEVNULL,
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
) -> AsyncIterator[SessionManager]:
    """
    A replica in this process, so that a test reaches its handlers and metrics; it
    also gives grants.
    """
    chosen: Settings = load_settings(settings_of(url, **settings))
    async with redis.asyncio.from_url(url) as client:
        await client.hsetnx(keys.CONFIG, "partitions", chosen.partitions)
        await client.hsetnx(keys.CONFIG, "schema", SCHEMA)
        await client.hsetnx(keys.MADS, keys.GATEWAY, "{}")
    parts = lane_parts(chosen, chosen.partitions, tiers or NoTiers(), routes)
    replica = SessionManager(name, parts, ttl_ms=chosen.lane_ttl_ms)
    granting = TokenExchange(url, identity_of(chosen), grants_of(chosen))
    stop = asyncio.Event()
    serving = asyncio.create_task(replica.run(stop))
    try:
        async with in_background(granting.run(), stop):
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
    values = await client.mget([key_names.owner(p) for p in range(partitions)])
    return {p: value.decode() for p, value in enumerate(values) if value}


def replica_in(owner: str) -> str:
    """
    The replica's name in an owner value.
    """
    return key_names.holder_of(owner)[0]


def epoch_in(owner: str) -> int:
    """
    The epoch in an owner value.
    """
    return int(owner.partition(":")[0])


async def unsettled(client: redis.asyncio.Redis) -> dict[str, Any]:
    """
    Ingress → (pending, undelivered); empty when everything is settled.
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
    found = [await client.xrange(key_names.dead(p)) for p in range(partitions)]
    return [fields for entries in found for _, fields in entries]

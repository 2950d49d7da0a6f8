"""
Write-behind: what was committed reaches MongoDB, then leaves the outbox.

An outbox entry is read, written, and only then confirmed; a crash anywhere
repeats it, and MongoDB's side does not mind. One archiver works at a time, held
by the same kind of lease as a lane; a second one waits to take over.
"""

import asyncio
import time
from typing import Any

import structlog
from redis.exceptions import ResponseError

from bus.errors import EverbusError, Unavailable
from bus.wire import Command, Wire, refusal
from gateway.store import names
from gateway.store.outbox import COUNT_FIELD, VALUE_FIELD, unpack_records
from gateway.store.scripts import load_scripts, script
from gateway.store.warm import WarmStore

log = structlog.get_logger()

LEASE = "archiver"
LEASE_TTL_MS = 5_000
RENEW_S = 1.5
CONSUMER = "drain"
# Entries of each outbox per round; an entry holds one commit.
READ_ENTRIES = 32
WAIT_MS = 500
FIRST_RETRY_S = 0.5
MAX_RETRY_S = 32.0


class Drain:
    """
    Moves the outboxes of all partitions into MongoDB.

    Attributes:
        written: how many records were confirmed since the start.
    """

    def __init__(
        self, redis_url: str, partitions: int, warm: WarmStore, name: str
    ) -> None:
        self.written = 0
        self._wire = Wire(redis_url, name="everbus-archiver")
        self._partitions = range(partitions)
        self._warm = warm
        self._name = name
        self._owner = ""
        self._renewed_at = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """
        Drain until *stop* is set; nothing that fails is ever dropped.
        """
        wait_s = FIRST_RETRY_S
        try:
            while not stop.is_set():
                try:
                    await self._drain(stop)
                    wait_s = FIRST_RETRY_S
                except EverbusError as error:
                    log.warning("drain.waits", error=error.message, wait_s=wait_s)
                    await _sleep(stop, wait_s)
                    wait_s = min(2 * wait_s, MAX_RETRY_S)
            await self._release()
        finally:
            await self._wire.close()

    async def _drain(self, stop: asyncio.Event) -> None:
        """
        Take the lease, finish what was begun, then follow the outboxes.
        """
        await load_scripts(self._wire)
        while not await self._lease():
            await _sleep(stop, RENEW_S)
            if stop.is_set():
                return
        await self._make_groups()
        await self._warm.prepare()
        while await self._move("0"):
            await self._lease()
        while not stop.is_set():
            if not await self._lease():
                raise Unavailable("another archiver has the lease")
            await self._move(">")

    async def _lease(self) -> bool:
        """
        Whether we hold the lease, renewing or taking it where that is due.
        """
        if time.monotonic() - self._renewed_at < RENEW_S:
            return True
        if not self._owner or not await self._renew():
            keys = [names.owner(LEASE), names.epoch(LEASE)]
            life = f"{time.time_ns():x}"
            command = script("acquire", keys, self._name, life, LEASE_TTL_MS)
            taken, owner = await self._wire.call(*command)
            self._owner = owner.decode() if taken else ""
        if self._owner:
            self._renewed_at = time.monotonic()
        return bool(self._owner)

    async def _renew(self) -> bool:
        command = script("renew", [names.owner(LEASE)], self._owner, LEASE_TTL_MS)
        return bool(await self._wire.call(*command))

    async def _release(self) -> None:
        if not self._owner:
            return
        try:
            command = script("release", [names.owner(LEASE)], self._owner, "eb:news")
            await self._wire.call(*command)
        except EverbusError as error:
            log.warning("drain.not_released", error=error.message)

    async def _make_groups(self) -> None:
        make = ("XGROUP", "CREATE")
        replies = await self._wire.exchange(
            [
                (*make, names.outbox(p), names.ARCHIVER_GROUP, "0", "MKSTREAM")
                for p in self._partitions
            ]
        )
        for reply in replies:
            if isinstance(reply, ResponseError) and "BUSYGROUP" not in str(reply):
                raise refusal(reply)

    async def _move(self, after: str) -> int:
        """
        Write and confirm the next entries of every outbox; returns how many.

        Raises:
            Unavailable: MongoDB or the bus is away; the entries stay pending.
        """
        outboxes = [names.outbox(p) for p in self._partitions]
        try:
            streams = await self._wire.call(
                *("XREADGROUP", "GROUP", names.ARCHIVER_GROUP, CONSUMER),
                *("COUNT", READ_ENTRIES, "BLOCK", WAIT_MS, "STREAMS"),
                *outboxes,
                *([after] * len(outboxes)),
                timeout_s=WAIT_MS / 1000 + 5.0,
            )
        except ResponseError as error:
            # NOGROUP: the bus lost its data. Groups are made anew next time.
            log.exception("drain.group_lost")
            raise Unavailable(f"outbox group is gone: {error}") from error
        found = [(key, entries) for key, entries in streams or () if entries]
        if found:
            await self._warm.write(
                record
                for _, entries in found
                for _, fields in entries
                if fields
                for record in unpack_records(_value(fields, VALUE_FIELD))
            )
            await self._confirm(found)
        return sum(len(entries) for _, entries in found)

    async def _confirm(self, streams: list[Any]) -> None:
        commands: list[Command] = []
        for key, entries in streams:
            partition = int(key.decode().partition("{")[2].partition("}")[0])
            arguments: list[bytes] = []
            for identifier, fields in entries:
                arguments += (identifier, _value(fields, COUNT_FIELD))
                self.written += int(_value(fields, COUNT_FIELD))
            commands.append(
                script(
                    "confirm",
                    [names.outbox(partition), names.backlog(partition)],
                    names.ARCHIVER_GROUP,
                    *arguments,
                )
            )
        for reply in await self._wire.exchange(commands):
            if isinstance(reply, ResponseError):
                raise refusal(reply)


def _value(fields: list[bytes] | None, name: bytes) -> bytes:
    if fields is None:
        return b"0"
    return dict(zip(fields[::2], fields[1::2], strict=True))[name]


async def _sleep(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return

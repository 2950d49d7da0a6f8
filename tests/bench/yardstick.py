"""
What redis-benchmark, a client in C, reaches with the same commit script.

The call is built by the product's own batch, so it has the fields, the outbox value,
the publisher's window and the acknowledgements of a real one. Two things make it
repeatable: the version that it expects is the one that it writes, and the ids that it
acknowledges are not pending. It deliveries in database 1, where no replica looks.
"""

import asyncio
import re
import shutil
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec

from everbus.bus.messages import (
    COMMAND_FIELD,
    SCHEMA,
    Envelope,
    Session,
    command_id,
    pack,
    unpack,
)
from everbus.bus.send_queue import ENTRY_COMMANDS
from everbus.bus.wire import Argument, Command, Wire
from everbus.gateway.lane.commit import Batch, BatchLimits, packed_reply
from everbus.gateway.lane.delivery import (
    Delivery,
    Now,
    Undecodable,
    received_in,
)
from everbus.gateway.lane.sequence import ProducerWindow
from everbus.gateway.store import hot_copy, key_names
from everbus.gateway.store.scripts import load_scripts
from everbus.handlers import commands
from everbus.handlers.sessions import update_session
from tests.bench import rig
from tests.servers import RealServer

PROGRAM = shutil.which("redis-benchmark") or shutil.which("valkey-benchmark") or ""
DATABASE = 1
OWNER = "1:yardstick"
INSTANCE = "0f3a9c5e7b1d4286"
# Packed, it has no NUL: a call compares the creation of its sessions.
NOW = datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC)
LATER = NOW + timedelta(seconds=1)
NOW_S = int(NOW.timestamp())
# Beyond the small integers that Python shares, so that the field counts as changed.
VERSION = 1_000_000
DEPTH = 128
# More in flight than this and the buffers leave the processor's caches: calls of a
# hundred commands are twice as fast at depth 3 as at 10 or 128.
COMMANDS_IN_FLIGHT = 384
# What the kernel takes as one argument of a program, less its end.
MAX_ARGUMENT_BYTES = 131_071
_RATE = re.compile(rb"([\d.]+) requests per second")


class CommitCall(NamedTuple):
    """
    A commit call that may be repeated.

    Attributes:
        prepare: what has to be there before.
        command: each argument as a program can be given it.
        size: how many commands of customers it commits.
        records: what it adds to the backlog.
    """

    command: tuple[bytes, ...]
    prepare: tuple[Command, ...]
    size: int
    records: int

    @property
    def depth(self) -> int:
        """
        How many calls redis-benchmark keeps in flight.
        """
        return max(2, min(DEPTH, COMMANDS_IN_FLIGHT // self.size))


def a_session(name: str) -> Session:
    """
    A session as the benchmarks have them.
    """
    return Session(
        id=name, version=VERSION, owner_id="ada", created_at=NOW, last_active=NOW
    )


def commit_call(size: int, body: bytes, sessions: int = 1000) -> CommitCall:
    """
    The commit of *size* updates with *body*, spread over at most *sessions*.
    """
    batch = Batch(0, BatchLimits(), Now.at(NOW_S * 1000))
    window = ProducerWindow()
    for delivery in _deliveries(size, body, min(size, sessions)):
        change = batch.touch(delivery.session, a_session(delivery.session))
        outcome = update_session(change.now, _command(delivery), LATER)
        change.apply(outcome)
        batch.settle(delivery, window)
    # The record that the next call expects is the one that this call writes.
    window.stored = window.pack()
    record = ("HSET", key_names.publishers(0), f"bench:{INSTANCE}", window.stored)
    prepare: list[Command] = [("SET", key_names.owner(0), OWNER), record]
    for name, change in batch.changes.items():
        after = change.now
        if after is None:
            raise AssertionError("an update leaves a session")
        fields = hot_copy.field_arguments(None, after)
        prepare.append(("HSET", key_names.session(0, name), *fields))
        # Equal and not the same object: written, and expected by the next call.
        same = int(str(after.version))
        change.read = msgspec.structs.replace(a_session(name), version=same)
    command = tuple(_plain(argument) for argument in batch.command(OWNER))
    if command.count(b"version") != len(batch.changes):
        raise AssertionError("the call does not write each session's version")

    return CommitCall(command, tuple(prepare), size, len(batch.changes))


def a_reply(body: bytes) -> bytes:
    """
    The reply to an update with *body*, as it lies on its stream.
    """
    [delivery] = _deliveries(1, body, 1)
    outcome = update_session(a_session(delivery.session), _command(delivery), LATER)

    return packed_reply(delivery, outcome.reply)


def _deliveries(size: int, body: bytes, sessions: int) -> list[Delivery]:
    found: list[Delivery] = []
    for first in range(0, size, ENTRY_COMMANDS):
        fields: list[bytes] = []
        for n in range(first, min(first + ENTRY_COMMANDS, size)):
            envelope = Envelope(
                v=SCHEMA,
                id=command_id(INSTANCE, 0, n + 1),
                kind="session.update",
                session=f"0199aaaa-bbbb-7ccc-8ddd-{n % sessions:012d}",
                body=msgspec.Raw(body),
            )
            fields += (COMMAND_FIELD, pack(envelope))
        for one in received_in("bench", f"{NOW_S}000-{first}", fields, 0, 1):
            if isinstance(one, Undecodable):
                raise one.trouble
            found.append(one)
    return found


def _command(delivery: Delivery) -> commands.Command:
    envelope = delivery.envelope
    return commands.Command(
        id=envelope.id,
        kind=envelope.kind,
        session_id=delivery.session,
        mad="bench",
        principal="bench",
        body=unpack(envelope.body, commands.UpdateSession),
    )


def _plain(argument: Argument) -> bytes:
    """
    *argument* as a program can be given it: of the same length, without NUL.

    The script compares none of the values in which msgpack has NULs.
    """
    if not isinstance(argument, bytes):
        return str(argument).encode()
    return argument.replace(b"\0", b"\1")


class Yardstick:
    """
    redis-benchmark beside the server that is measured.
    """

    def __init__(self, server: RealServer) -> None:
        self._server = server
        self._wire = Wire(f"redis://127.0.0.1:{server.port}/{DATABASE}")

    async def measure(self, call: CommitCall, commands: int) -> tuple[float, float]:
        """
        Commands a second on one connection, and server CPU us a command.

        Raises:
            AssertionError: not every call committed.
        """
        # It sends whole pipelines only.
        repeats = call.depth * max(1, commands // call.size // call.depth)
        await load_scripts(self._wire)
        try:
            await self._wire.exchange(call.prepare)
            await self._wire.call(*call.command)
            before = rig.cpu_s(self._server.pid)
            rate = await self._benchmark(call, repeats)
            used = rig.cpu_s(self._server.pid) - before
            await self._check(call, 1 + repeats)
        finally:
            await self._wire.call("FLUSHDB", "SYNC")
        return rate * call.size, used / (repeats * call.size) * 1e6

    async def close(self) -> None:
        """
        Close what this opened.
        """
        await self._wire.close()

    async def _benchmark(self, call: CommitCall, repeats: int) -> float:
        at = ("-h", "127.0.0.1", "-p", str(self._server.port))
        chosen = (*at, "--dbnum", str(DATABASE), "-q")
        size = ("-c", "1", "-P", str(call.depth), "-n", str(repeats))
        process = await asyncio.create_subprocess_exec(
            *(PROGRAM, *chosen, *size, *call.command),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            told, errors = await process.communicate()
        except BaseException:
            process.kill()
            await process.wait()
            raise
        rates = _RATE.findall(told)
        if process.returncode or not rates:
            raise AssertionError(f"{PROGRAM} failed: {errors[-200:]!r}")
        return float(rates[-1])

    async def _check(self, call: CommitCall, calls: int) -> None:
        entries, backlog = await self._wire.exchange(
            [("XLEN", key_names.outbox(0)), ("GET", key_names.backlog(0))]
        )
        if entries != calls or int(backlog) != calls * call.records:
            raise AssertionError(f"{entries} of {calls} calls committed")


def largest(size: int, body: bytes, sessions: int) -> CommitCall:
    """
    The call of *size* commands, or of as many as a program can be given.
    """
    while True:
        call = commit_call(size, body, sessions)
        if max(map(len, call.command)) <= MAX_ARGUMENT_BYTES:
            return call
        size = size * 9 // 10

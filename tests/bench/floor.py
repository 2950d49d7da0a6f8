"""
What the pieces of one command cost the server as plain commands, without a script.

Each piece is pipelined in hundreds, with the values of a real commit, and measured in
CPU of the server a command. Their sum is the floor: what any design pays that does
the same on one Redis. `AS_OURS` has the shares of batches (one outbox entry a commit,
entries that carry as many commands as they may); `EACH_ALONE` is the floor of the
customer's pseudo-code: one entry a command everywhere, read and acknowledged in
hundreds, and the session read each time.
"""

from collections.abc import Iterator
from typing import TypeVar

from everbus.bus.messages import COMMAND_FIELD
from everbus.bus.send_queue import ENTRY_COMMANDS
from everbus.bus.wire import Command, Wire
from everbus.gateway.store import key_names
from everbus.gateway.store.hot_copy import COUNT_FIELD, VALUE_FIELD
from tests.bench import rig
from tests.bench.yardstick import DATABASE, CommitCall
from tests.servers import RealServer

Some = TypeVar("Some")
MAX_CONCURRENT = 200
READ_AT_ONCE = 100
STREAM, GROUP = "floor:in", "g"

PUBLISH, PUBLISH_SHARE = "XADD of a command", "XADD of a command, share of an entry"
READ, READ_SHARE = "XREADGROUP, 100 a read", "XREADGROUP, share of an entry"
CHECK, LOAD = "HGET of the version", "HMGET of the session"
WRITE = "HSET of what changed"
OUTBOX, OUTBOX_SHARE = "XADD to the outbox", "XADD to the outbox, share of a commit"
ACK, ACK_SHARE = "XACK, 100 a call", "XACK, share of an entry"
REPLY, UNLINK = "XADD and PEXPIRE of a reply", "UNLINK of a reply"

AS_OURS = "floor with our batches, server CPU us a command"
EACH_ALONE = "floor of one entry a command, server CPU us a command"
WITH_REPLY_AS_OURS = "floor with our batches and a reply, server CPU us a command"
_OURS = (PUBLISH_SHARE, READ_SHARE, CHECK, WRITE, OUTBOX_SHARE, ACK_SHARE)
SUMS = {
    AS_OURS: _OURS,
    EACH_ALONE: (PUBLISH, READ, LOAD, WRITE, OUTBOX, ACK),
    # Requests come one by one, so that each is an entry of its own.
    WITH_REPLY_AS_OURS: (*_OURS[2:5], PUBLISH, READ, ACK, REPLY, UNLINK),
}


class Floor:
    """
    The pieces, measured on one server in database 1.

    Args:
        alone: the commit of one command; *batch*: of as many as a replica commits.
        packed: one command as it lies on an ingress.
        reply: one reply as it lies on its stream.
    """

    def __init__(
        self,
        server: RealServer,
        alone: CommitCall,
        batch: CommitCall,
        packed: bytes,
        reply: bytes,
    ) -> None:
        self._wire = Wire(f"redis://127.0.0.1:{server.port}/{DATABASE}")
        self._pid = server.pid
        self._alone = alone
        self._batch = batch
        self._packed = packed
        self._reply = reply

    async def close(self) -> None:
        """
        Close what this opened.
        """
        await self._wire.close()

    async def measure(self, count: int) -> dict[str, float]:
        """
        Server CPU us a command of each piece, over *count* commands each.
        """
        found: dict[str, float] = {}
        try:
            await self._wire.exchange(self._alone.prepare)
            found |= await self._stream(count)
            found |= await self._entries(count)
            for name, command in self._hash().items():
                found[name] = await self._cost([command] * count, count)
            found |= await self._outbox(count)
            found |= await self._replies(count)
        finally:
            await self._wire.call("FLUSHDB", "SYNC")
        sums = {name: sum(found[n] for n in parts) for name, parts in SUMS.items()}
        pieces = {f"{name}, server CPU us": us for name, us in found.items()}

        return pieces | sums

    def _hash(self) -> dict[str, Command]:
        key, *pairs = self._alone.prepare[1][1:]
        whole = dict(zip(pairs[::2], pairs[1::2], strict=True))
        return {
            CHECK: ("HGET", key, "version"),
            LOAD: ("HMGET", key, *whole),
            WRITE: ("HSET", key, *_changed(self._alone)),
        }

    async def _stream(self, count: int) -> dict[str, float]:
        """
        One entry a command: published, read and acknowledged.
        """
        add: Command = ("XADD", STREAM, "*", COMMAND_FIELD, self._packed)
        return await self._travel(add, count, count, (PUBLISH, READ, ACK))

    async def _entries(self, count: int) -> dict[str, float]:
        """
        Entries as full as the publisher makes them at most.
        """
        fields = (COMMAND_FIELD, self._packed) * ENTRY_COMMANDS
        add: Command = ("XADD", STREAM, "*", *fields)
        entries = -(-count // ENTRY_COMMANDS)
        told = (PUBLISH_SHARE, READ_SHARE, ACK_SHARE)
        return await self._travel(add, entries, entries * ENTRY_COMMANDS, told)

    async def _travel(
        self, add: Command, entries: int, count: int, told: tuple[str, str, str]
    ) -> dict[str, float]:
        await self._wire.call("DEL", STREAM)
        await self._wire.call("XGROUP", "CREATE", STREAM, GROUP, "0", "MKSTREAM")
        published = await self._cost([add] * entries, count)
        at_once = READ_AT_ONCE if entries == count else 3
        reads = -(-entries // at_once)
        read: Command = (
            *("XREADGROUP", "GROUP", GROUP, "c", "COUNT", at_once),
            *("STREAMS", STREAM, ">"),
        )
        # The replies are large, so few of them at a time.
        fetched = await self._cost([read] * reads, count, at_once=2)
        ids = [e[0] for e in await self._wire.call("XRANGE", STREAM, "-", "+")]
        acks: list[Command] = [
            ("XACK", STREAM, GROUP, *some) for some in _runs(ids, at_once)
        ]
        released = await self._cost(acks, count)
        await self._nothing_pending()

        return dict(zip(told, (published, fetched, released), strict=True))

    async def _nothing_pending(self) -> None:
        pending, *_ = await self._wire.call("XPENDING", STREAM, GROUP)
        if pending:
            raise AssertionError(f"{pending} entries are still pending")

    async def _outbox(self, count: int) -> dict[str, float]:
        found = {}
        for name, call in ((OUTBOX, self._alone), (OUTBOX_SHARE, self._batch)):
            calls = max(1, count // call.size)
            add = _outbox_entry(call)
            found[name] = await self._cost([add] * calls, calls * call.size)
            await self._wire.call("DEL", key_names.outbox(0))
        return found

    async def _replies(self, count: int) -> dict[str, float]:
        """
        A stream of its own for each reply, as they are in the product.
        """
        keys = [f"floor:reply:{n}" for n in range(count)]
        adds: list[Command] = []
        for key in keys:
            adds.append(("XADD", key, "*", "r", self._reply))
            adds.append(("PEXPIRE", key, 60_000))
        made = await self._cost(adds, count)
        gone: list[Command] = [
            ("UNLINK", *some) for some in _runs(keys, MAX_CONCURRENT)
        ]

        return {REPLY: made, UNLINK: await self._cost(gone, count, at_once=8)}

    async def _cost(
        self, commands: list[Command], count: int, *, at_once: int = MAX_CONCURRENT
    ) -> float:
        before = rig.cpu_s(self._pid)
        for some in _runs(commands, at_once):
            for reply in await self._wire.exchange(some):
                if isinstance(reply, Exception):
                    raise reply
        return (rig.cpu_s(self._pid) - before) / count * 1e6


def _runs(values: list[Some], size: int) -> Iterator[list[Some]]:
    for first in range(0, len(values), size):
        yield values[first : first + size]


def _changed(call: CommitCall) -> tuple[bytes, ...]:
    """
    Names and values that the commit of one command writes, from its own arguments.
    """
    arguments = call.command
    first = arguments.index(b"version")
    return arguments[first : first + int(arguments[first - 1])]


def _outbox_entry(call: CommitCall) -> Command:
    value = max(call.command, key=len)
    fields = (VALUE_FIELD, value, COUNT_FIELD, call.records)

    return ("XADD", key_names.outbox(0), "*", *fields)

"""
A fake bus: it applies a publisher's commands by the replicas' own sequence rules.

A command that arrives twice is applied once, and one that arrives behind a later one
as a replica would (`gateway.lane.sequence`). The check is `compose.verify`'s.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from everbus.bus.errors import EverbusError
from everbus.bus.messages import (
    Envelope,
    TimelineEntry,
    ordinal_of,
    unpack,
    unpack_envelope,
)
from everbus.bus.publisher import Publisher
from everbus.bus.wire import Command, WireFailed
from everbus.compose.verify.contents import ExpectedEntry, check_contents
from everbus.compose.verify.violations import Violations
from everbus.gateway.lane.sequence import ProducerWindow

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Killed(BaseException):
    """
    The process ends here, as by SIGKILL.
    """


class FakeBus:
    """
    Attributes:
        arrived: every command, as often as it arrived.
        applied: session → its appended entries.
        faults: of the next writes: `lost`, `unheard` (it arrives, its answer does
            not), `killed before` or `killed behind`, or an error reply.
        writes: the number of writes.
    """

    def __init__(self) -> None:
        self.arrived: list[Envelope] = []
        self.applied: defaultdict[str, list[Any]] = defaultdict(list)
        self.faults: list[Any] = []
        self.writes = 0
        self._windows: dict[tuple[str, int], ProducerWindow] = {}

    def take(self, commands: Sequence[Command]) -> list[Any]:
        replies: list[Any] = []
        for name, *rest in commands:
            if name == "XADD":
                for packed in rest[3::2]:
                    self._apply(unpack_envelope(packed))
            replies.append(b"1-1")
        return replies

    def _apply(self, envelope: Envelope) -> None:
        self.arrived.append(envelope)
        ordinal = ordinal_of(envelope.id)
        if ordinal is None:
            return
        known = self._windows.setdefault(
            ordinal[:2], ProducerWindow.starting_at(ordinal.n)
        )
        if not known.settled(ordinal.n):
            known.settle(ordinal.n, 0)
            if envelope.kind == "timeline.append":
                self.applied[envelope.session].append(
                    unpack(envelope.body, dict)["entry"]
                )

    def violations(self, owed: Mapping[str, Sequence[Any]]) -> Violations:
        """
        The check that each session holds exactly the entries that it is owed.
        """
        found = Violations()
        for session, entries in owed.items():
            expected = [ExpectedEntry("m", entry) for entry in entries]
            there = [
                TimelineEntry(seq, EPOCH, "m", entry)
                for seq, entry in enumerate(self.applied[session], 1)
            ]
            check_contents(session, expected, there, found)
        return found


class FakeWire:
    """
    Stands in for `bus.wire.Wire`.
    """

    def __init__(self, bus: FakeBus) -> None:
        self.bus = bus
        self.connected = False

    async def exchange(self, commands: Sequence[Command], **_: Any) -> list[Any]:
        self.bus.writes += 1
        fault = self.bus.faults.pop(0) if self.bus.faults else None
        if fault == "killed before":
            raise Killed
        if fault == "lost":
            self.connected = False
            raise WireFailed("lost on the way there")
        if isinstance(fault, Exception):
            return [fault] * len(commands)
        replies = self.bus.take(commands)
        if fault == "killed behind":
            raise Killed
        if fault == "unheard":
            self.connected = False
            raise WireFailed("lost on the way back")
        self.connected = True

        return replies

    async def close(self) -> None:
        self.connected = False


class FakeCredential:
    """
    Stands in for `bus.credential.Credential`.

    Attributes:
        grant: the grant of the commands; empty before the first request.
        error: the reason why there is none; None if there is one.
    """

    good_until = 0.0

    def __init__(self, grant: bytes) -> None:
        self.grant = b""
        self.error: EverbusError | None = None
        self.fresh = grant

    def check(self) -> None:
        """
        The token of a fake never ends.
        """

    async def current(self) -> bytes:
        if self.error is not None:
            raise self.error
        self.grant = self.fresh
        return self.grant


def a_publisher_on(bus: FakeBus, instance: str = "i", **parts: Any) -> Publisher:
    """
    A publisher of four partitions that writes to *bus*, without pauses.
    """
    made = Publisher("redis://127.0.0.1:1", "m", instance, 4, **parts)
    made._wire = FakeWire(bus)  # type: ignore[assignment]
    made._breaker._draw = lambda least, most: 0.0

    return made


@asynccontextmanager
async def running(publisher: Publisher) -> AsyncIterator[None]:
    """
    The publisher writes for the time of the block.
    """
    task = asyncio.create_task(publisher.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

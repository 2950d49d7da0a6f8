"""
A bus on paper: what a publisher writes, judged as the replicas judge it.

Numbers are known by the replicas' own rules (`gateway.progress`), so a command that
comes twice counts once, and one that comes behind a later one counts as it would.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from bus.codec import ordinal_of, unpack, unpack_envelope
from bus.errors import EverbusError
from bus.messages import Envelope
from bus.publisher import Publisher
from bus.wire import Command, WireFailed
from gateway.progress import Progress


class Killed(BaseException):
    """
    The process ends here, as by SIGKILL.
    """


class PaperBus:
    """
    Attributes:
        arrived: every command, as often as it came.
        said: session → what was appended to it.
        faults: what happens to the next writes: `lost`, `unheard` (it arrives, the
            answer does not), `killed before` or `killed behind`, or an error reply.
        writes: how many writes it has seen.
    """

    def __init__(self) -> None:
        self.arrived: list[Envelope] = []
        self.said: defaultdict[str, list[Any]] = defaultdict(list)
        self.faults: list[Any] = []
        self.writes = 0
        self._progress: dict[tuple[str, int], Progress] = {}

    def take(self, commands: Sequence[Command]) -> list[Any]:
        replies: list[Any] = []
        for name, *rest in commands:
            if name == "XADD":
                for packed in rest[3::2]:
                    self._judge(unpack_envelope(packed))
            replies.append(b"1-1")
        return replies

    def _judge(self, envelope: Envelope) -> None:
        self.arrived.append(envelope)
        ordinal = ordinal_of(envelope.id)
        if ordinal is None:
            return
        known = self._progress.setdefault(ordinal[:2], Progress.starting_at(ordinal.n))
        if not known.settled(ordinal.n):
            known.settle(ordinal.n, 0)
            if envelope.kind == "timeline.append":
                self.said[envelope.session].append(unpack(envelope.body, dict)["entry"])


class PaperWire:
    """
    Stands in for `bus.wire.Wire`.
    """

    def __init__(self, bus: PaperBus) -> None:
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


class PaperCredential:
    """
    Stands in for `bus.credential.Credential`.

    Attributes:
        grant: what the commands carry; empty before it was asked for.
        error: why there is none now; None if there is.
    """

    def __init__(self, grant: bytes) -> None:
        self.grant = b""
        self.error: EverbusError | None = None
        self.fresh = grant

    async def current(self) -> bytes:
        if self.error is not None:
            raise self.error
        self.grant = self.fresh
        return self.grant


def on_paper(bus: PaperBus, instance: str = "i", **parts: Any) -> Publisher:
    """
    A publisher of four partitions that writes to *bus*, whose pauses are none.
    """
    made = Publisher("redis://127.0.0.1:1", "m", instance, 4, **parts)
    made._wire = PaperWire(bus)  # type: ignore[assignment]
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

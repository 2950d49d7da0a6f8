"""
Publishing commands: in order, once as far as this side can, and bounded.

Every command of an instance gets the next number of its partition at once, so
order is fixed when a call returns. One task writes: what has gathered for a
partition since the last write travels as one stream entry (all or nothing), and
an entry whose fate is unknown is sent again with the same numbers, before any
later one. The replicas know the numbers and apply each once.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Sequence

import msgspec
import structlog
from redis.exceptions import ResponseError

from bus.codec import COMMAND_FIELD, command_id, pack_envelope
from bus.errors import (
    EverbusError,
    Forbidden,
    Overloaded,
    Unauthenticated,
    Unavailable,
)
from bus.keys import ingress
from bus.messages import MAX_COMMAND_BYTES, Envelope
from bus.wire import Command, Wire, refusal

log = structlog.get_logger()

MAX_WAITING = 10_000
MAX_WAITING_BYTES = 32 * 1024 * 1024
ENTRY_COMMANDS = 32
FIRST_BACKOFF_S = 0.02
MAX_BACKOFF_S = 0.5
# Below this a request's remaining time is not worth packing it again.
DEADLINE_GRAIN_S = 0.05


class Outgoing:
    """
    One command that waits to be on the bus.

    Attributes:
        attempted: whether it was ever written, so that it may have arrived.
    """

    __slots__ = ("_packed", "attempted", "envelope", "expires_at", "size")

    def __init__(self, envelope: Envelope, expires_at: float | None) -> None:
        self.envelope = envelope
        self.expires_at = expires_at
        self.attempted = False
        self._packed = pack_envelope(envelope)
        self.size = len(self._packed)

    def packed(self, now: float) -> bytes:
        """
        The wire form; a request's deadline is what is left of its time at *now*.

        A request whose caller has given up still travels, since its number must
        not be missing, but with no time left: it is answered and not applied.
        """
        if self.expires_at is None:
            return self._packed
        left_ms = max(0, int((self.expires_at - now) * 1000))
        told_ms = self.envelope.deadline_ms or 0
        if left_ms > 0 and told_ms - left_ms <= DEADLINE_GRAIN_S * 1000:
            return self._packed
        return pack_envelope(
            msgspec.structs.replace(self.envelope, deadline_ms=left_ms)
        )


class Publisher:
    """
    The one writer of an instance's commands.

    Attributes:
        trouble: why nothing gets through at the moment; None if all is well.
    """

    def __init__(self, url: str, mad: str, instance: str, partitions: int) -> None:
        self.trouble: EverbusError | None = None
        self._wire = Wire(url, name=f"mad-{mad}")
        self._mad = mad
        self._instance = instance
        self._partitions = partitions
        self._counts = [0] * partitions
        self._waiting: dict[int, deque[Outgoing]] = {}
        self._count = 0
        self._bytes = 0
        self._issued = 0
        self._published = 0
        self._flushes: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._news = asyncio.Event()

    @property
    def waiting(self) -> int:
        """
        How many commands are not on the bus yet.
        """
        return self._count

    def publish(
        self, envelope: Envelope, partition: int, *, expires_at: float | None = None
    ) -> Outgoing:
        """
        Queue *envelope* as this instance's next command; its id is set here.

        Raises:
            Overloaded: MAX_WAITING commands or MAX_WAITING_BYTES wait already.
            TooLarge: it exceeds MAX_COMMAND_BYTES.
            Forbidden, Unauthenticated: the bus turned this MAD away for good.
        """
        if isinstance(self.trouble, Forbidden | Unauthenticated):
            raise self.trouble
        if self._count >= MAX_WAITING or self._bytes >= MAX_WAITING_BYTES:
            raise Overloaded(
                f"{self._count} commands ({self._bytes} bytes) wait for the bus; "
                f"the limit is {MAX_WAITING} ({MAX_WAITING_BYTES} bytes). "
                "Await flush() before you go on",
                waiting=self._count,
                limit=MAX_WAITING,
            )
        n = self._counts[partition] + 1
        identifier = command_id(self._instance, partition, n)
        outgoing = Outgoing(
            msgspec.structs.replace(envelope, id=identifier), expires_at
        )
        self._counts[partition] = n
        self._waiting.setdefault(partition, deque()).append(outgoing)
        self._count += 1
        self._bytes += outgoing.size
        self._issued += 1
        self._news.set()

        return outgoing

    async def flush(self) -> None:
        """
        Return when everything published so far is on the bus.

        Raises:
            Forbidden, Unauthenticated: the bus turned this MAD away for good.
        """
        if isinstance(self.trouble, Forbidden | Unauthenticated):
            raise self.trouble
        if self._count == 0:
            return
        done = asyncio.get_running_loop().create_future()
        # Commands of different partitions may overtake each other in counting,
        # so a flush waits for as many as were issued when it was called.
        self._flushes.append((self._issued, done))
        await done

    async def run(self) -> None:
        """
        Write until cancelled, or until the bus turns this MAD away for good.
        """
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                while self._count:
                    await self._write(self._gather())
        except (Forbidden, Unauthenticated) as error:
            self.trouble = error
            log.error("publisher.refused", mad=self._mad, error=error.message)  # noqa: TRY400 - a refusal, not a defect: its traceback tells nothing
            self._fail_flushes(error)
        finally:
            await self._wire.close()

    def _gather(self) -> dict[int, list[Outgoing]]:
        """
        Per partition the commands of its next entry; they stay queued.
        """
        gathered: dict[int, list[Outgoing]] = {}
        for partition, queue in self._waiting.items():
            room = MAX_COMMAND_BYTES
            entry: list[Outgoing] = []
            for outgoing in queue:
                room -= outgoing.size
                if len(entry) == ENTRY_COMMANDS or (entry and room < 0):
                    break
                entry.append(outgoing)
            if entry:
                gathered[partition] = entry
        return gathered

    async def _write(self, entries: dict[int, list[Outgoing]]) -> None:
        """
        Write one entry a partition, again and again until each has arrived.
        """
        wait_s = FIRST_BACKOFF_S
        while entries:
            try:
                entries = await self._attempt(entries)
                wait_s = FIRST_BACKOFF_S if not entries else wait_s
            except (Forbidden, Unauthenticated):
                raise
            except Unavailable as error:
                self._note(error)
            if entries:
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.5))  # noqa: S311
                wait_s = min(2 * wait_s, MAX_BACKOFF_S)

    async def _attempt(
        self, entries: dict[int, list[Outgoing]]
    ) -> dict[int, list[Outgoing]]:
        """
        Write all *entries* at once; return those that the server refused for now.
        """
        now = time.monotonic()
        commands = [
            self._command(partition, entry, now) for partition, entry in entries.items()
        ]
        for entry in entries.values():
            for outgoing in entry:
                outgoing.attempted = True
        replies = await self._wire.exchange(commands)
        refused: dict[int, list[Outgoing]] = {}
        for (partition, entry), reply in zip(entries.items(), replies, strict=True):
            if isinstance(reply, ResponseError):
                error = refusal(reply)
                if isinstance(error, Forbidden | Unauthenticated):
                    raise error
                if not isinstance(error, EverbusError):
                    # Not known to pass by itself, but nothing was written either.
                    error = Unavailable(f"the bus refuses: {error}")
                self._note(error)
                refused[partition] = entry
            else:
                self._arrived(partition, entry)
        if not refused:
            self.trouble = None
        return refused

    def _command(
        self, partition: int, entry: Sequence[Outgoing], now: float
    ) -> Command:
        fields: list[bytes] = []
        for outgoing in entry:
            fields += (COMMAND_FIELD, outgoing.packed(now))
        return ("XADD", ingress(partition, self._mad), "*", *fields)

    def _arrived(self, partition: int, entry: Sequence[Outgoing]) -> None:
        queue = self._waiting[partition]
        for outgoing in entry:
            queue.popleft()
            self._bytes -= outgoing.size
        self._count -= len(entry)
        self._published += len(entry)
        while self._flushes and self._flushes[0][0] <= self._published:
            _, done = self._flushes.popleft()
            if not done.done():
                done.set_result(None)

    def _note(self, error: EverbusError) -> None:
        if self.trouble is None:
            log.warning("publisher.waits", mad=self._mad, error=error.message)
        self.trouble = error

    def _fail_flushes(self, error: EverbusError) -> None:
        while self._flushes:
            _, done = self._flushes.popleft()
            if not done.done():
                done.set_exception(error)

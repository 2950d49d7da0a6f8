"""
Publishing commands: in order, once as far as this side can, and bounded.

Every command of an instance gets the next number of its partition at once, so
order is fixed when a call returns. One task writes: what has gathered for a
partition since the last write travels as one stream entry (all or nothing), and
an entry whose fate is unknown is sent again with the same numbers, before any
later one. The replicas know the numbers and apply each once.

With a spool, what wants no reply is on this machine's disk before the call
returns, and leaves it when it is on the bus. A process that finds commands of
earlier ones there sends these first, under the numbers that they had.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import structlog
from redis.exceptions import ResponseError

from bus.backlog import Backlog, Entries
from bus.breaker import Breaker
from bus.cluster import wire_to
from bus.codec import COMMAND_FIELD, command_id
from bus.credential import Credential
from bus.errors import EverbusError, Forbidden, Unauthenticated, Unavailable
from bus.keys import ingress
from bus.lease import Lease
from bus.messages import Envelope
from bus.outgoing import SURELY_FITS_BYTES, Outgoing
from bus.spool import Spool
from bus.wire import Command, refusal

log = structlog.get_logger()

# Makes the grant of one command, for whoever may.
Sign = Callable[[Envelope], bytes]


class Publisher:
    """
    The one writer of an instance's commands.
    """

    def __init__(
        self,
        url: str,
        mad: str,
        instance: str,
        partitions: int,
        *,
        lease: Lease | None = None,
        spool: Spool | None = None,
        credential: Credential | None = None,
        meet: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """
        Take the parts; nothing is sent before `run`.

        Args:
            lease: whose epoch every command is to count under.
            spool: where commands that want no reply wait; stays the caller's to close.
            credential: whose grant every command carries that is not signed;
                without one they carry none.
            meet: makes sure, before the first write, that this is the right bus;
                raises EverbusError as long as it is not.
        """
        self._wire = wire_to(url, name=f"mad-{mad}")
        self._mad = mad
        self._instance = instance
        self._counts = [0] * partitions
        self._lease = lease
        self._epoch = lease.epoch() if lease is not None else 0
        self._meet = meet
        self._credential = credential
        self._backlog = Backlog(spool)
        self._breaker = Breaker(mad)
        self._refused: EverbusError | None = None
        self._news = asyncio.Event()
        self._news.set()

    @property
    def trouble(self) -> EverbusError | None:
        """
        Why nothing gets through at the moment; None if all is well.
        """
        return self._breaker.trouble

    @property
    def away_s(self) -> float:
        """
        For how long nothing has got through to the bus; 0 if all is well.
        """
        return self._breaker.away_s

    @property
    def waiting(self) -> int:
        """
        How many commands are not on the bus yet, those on disk included.
        """
        return self._backlog.waiting

    @property
    def grant(self) -> bytes:
        """
        What every command carries that has no grant of its own.
        """
        return b"" if self._credential is None else self._credential.grant

    async def tenant(self, timeout: float) -> str:
        """
        In whose name the instance asks, as a manager tells with the grant.

        Raises:
            Unauthenticated: the managers refuse the token.
            Unavailable: no manager told it in time.
        """
        if self._credential is None:
            return ""
        try:
            async with asyncio.timeout(timeout):
                await self._credential.current()
        except TimeoutError as error:
            raise Unavailable(
                f"no manager told the tenant of {self._mad} within {timeout:g} s"
            ) from error
        return self._credential.tenant

    def publish(
        self,
        envelope: Envelope,
        partition: int,
        *,
        expires_at: float | None = None,
        sign: Sign | None = None,
    ) -> Outgoing:
        """
        Queue *envelope* as this instance's next command; its id is set here, unless
        it has one that was made freely. *sign* makes its grant.

        With a spool, one that wants no reply survives this process from now on. It
        may then wait on disk only, with no bound but the spool's.

        Raises:
            Overloaded: as much waits as may: MAX_WAITING commands, MAX_WAITING_BYTES,
                or a full spool; or a request would overtake what waits on disk only.
            Unavailable: it wants a reply, and the bus is away: it was not queued.
            TooLarge: it exceeds MAX_COMMAND_BYTES.
            Forbidden, Unauthenticated: the bus turned this MAD away for good.
        """
        if self._refused is not None:
            raise self._refused
        if envelope.reply:
            self._breaker.check()
        n = self._counts[partition] + (not envelope.id)
        # The grant now, so that nothing is packed a second time when it is written.
        named = msgspec.structs.replace(
            envelope,
            id=envelope.id or command_id(self._instance, partition, n),
            epoch=self._epoch,
            grant=self.grant,
        )
        if sign is not None:
            named = msgspec.structs.replace(named, grant=sign(named))
        outgoing = Outgoing(named, expires_at, signed=sign is not None)
        if outgoing.size > SURELY_FITS_BYTES:
            outgoing.check_size()
        self._backlog.add(partition, outgoing, well=self._breaker.trouble is None)
        self._counts[partition] = n
        self._news.set()

        return outgoing

    async def flush(self) -> None:
        """
        Return when everything published so far is on the bus, and all that earlier
        processes left in the spool.

        Raises:
            Forbidden, Unauthenticated: the bus turned this MAD away for good.
        """
        if self._refused is not None:
            raise self._refused
        if self._backlog.waiting:
            await self._backlog.flushed()

    async def run(self) -> None:
        """
        Write until cancelled, or until the bus turns this MAD away for good.
        """
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                while self._backlog.waiting:
                    self._breaker.began()
                    error = await self._write()
                    if error is not None:
                        await asyncio.sleep(self._breaker.failed(error))
        except (Forbidden, Unauthenticated) as error:
            self._refused = error
            self._breaker.note(error)
            log.error("publisher.refused", mad=self._mad, error=error.message)  # noqa: TRY400 - a refusal, not a defect: its traceback tells nothing
            self._backlog.fail(error)
        finally:
            await self._wire.close()

    async def _write(self) -> EverbusError | None:
        """
        Write one entry a partition; why not all of them are on the bus now.

        Those stay first in their queues, and are written again with what has come
        meanwhile.
        """
        try:
            if self._meet is not None:
                await self._meet()
                self._meet = None
            if not self._wire.connected:
                # Whatever the answer is, somebody is there. What is written without
                # knowing that counts as attempted ever after.
                await self._wire.exchange([("PING",)])
            if self._credential is not None:
                await self._credential.current()
            entries = self._backlog.attempt(self._backlog.gather())
            return await self._exchange(entries)
        except (Forbidden, Unauthenticated):
            raise
        except EverbusError as error:
            return error

    async def _exchange(self, entries: Entries) -> EverbusError | None:
        now = time.monotonic()
        self._epoch = self._lease.epoch() if self._lease is not None else 0
        commands = [
            self._command(partition, entry, now) for partition, entry in entries.items()
        ]
        replies = await self._wire.exchange(commands) if commands else []
        refused: list[EverbusError] = []
        for (partition, entry), reply in zip(entries.items(), replies, strict=True):
            if isinstance(reply, ResponseError):
                refused.append(_refusal(reply))
            else:
                self._backlog.arrived(partition, entry)
        if not refused or len(refused) < len(entries):
            self._breaker.succeeded()

        return refused[-1] if refused else None

    def _command(
        self, partition: int, entry: Sequence[Outgoing], now: float
    ) -> Command:
        fields: list[bytes] = []
        grant = self.grant
        for outgoing in entry:
            fields += (COMMAND_FIELD, outgoing.packed(now, self._epoch, grant))
        return ("XADD", ingress(partition, self._mad), "*", *fields)


def _refusal(reply: ResponseError) -> EverbusError:
    """
    What an error reply means for the writer.

    Raises:
        Forbidden, Unauthenticated: there is no use in trying again.
    """
    error = refusal(reply)
    if isinstance(error, Forbidden | Unauthenticated):
        raise error
    if isinstance(error, EverbusError):
        return error
    # Not known to pass by itself, but nothing was written either.
    return Unavailable(f"the bus refuses: {error}")

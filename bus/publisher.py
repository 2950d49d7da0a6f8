"""
Publishing commands: in order, once as far as this side can, and bounded.

Every command of an instance gets the next number of its partition at once, so the
order is fixed when a call returns. One task writes: the commands that gathered for a
partition since the last write travel as one stream entry (all or nothing). An entry
with an unknown outcome is sent again with the same numbers, before any later one. The
replicas know the numbers and apply each once.

With a spool, a command without a reply is on this machine's disk before the call
returns, and leaves it when it is on the bus. A process that finds commands of an
earlier process there sends these first, under their old numbers.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import msgspec
import structlog
from redis.exceptions import ResponseError

from everbus.bus.blocking_wire import BlockingExchange
from everbus.bus.bus_breaker import BusBreaker
from everbus.bus.cluster_wire import wire_to
from everbus.bus.credential import Credential
from everbus.bus.errors import EverbusError, Forbidden, Unauthenticated, Unavailable
from everbus.bus.keys import ingress
from everbus.bus.lease import Lease
from everbus.bus.messages import COMMAND_FIELD, Envelope, command_id
from everbus.bus.outgoing_command import SURELY_FITS_BYTES, OutgoingCommand
from everbus.bus.send_queue import Entries, SendQueue
from everbus.bus.server_errors import as_passing, refusal
from everbus.bus.spool import Spool
from everbus.bus.unsettled import Unsettled
from everbus.bus.wire import Command, Wire

log = structlog.get_logger()

# Makes the grant of one command, for a process with the key.
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
        verify_bus: Callable[[], Awaitable[None]] | None = None,
        unsettled: Unsettled | None = None,
    ) -> None:
        """
        Keep the parts; nothing is sent before `run`.

        Args:
            lease: source of the epoch of every command.
            spool: storage of commands without a reply; the caller closes it.
            credential: source of the grant of every unsigned command; without it
                commands have no grant.
            verify_bus: checks, before the first write, that this is the right bus;
                raises EverbusError as long as it is not.
            unsettled: keeps the commands without a reply that are on the bus.
        """
        self._url = url
        # Another node may have lost what was there: that goes again, and first.
        self._wire: Wire = wire_to(url, name=f"mad-{mad}", moves_fail=True)
        self._stopped = True
        self._resend_wanted = False
        self._mad = mad
        self._instance = instance
        self._counts = [0] * partitions
        self._lease = lease
        self._epoch = lease.epoch() if lease is not None else 0
        self._verify_bus = verify_bus
        self._credential = credential
        self._unsettled = unsettled
        self._queue = SendQueue(spool, unsettled)
        if unsettled is not None:
            unsettled.on_resend = self._resend
        self._breaker = BusBreaker(mad)
        self._refused: EverbusError | None = None
        self.refusal_raised = False
        self._queued = asyncio.Event()
        self._queued.set()

    @property
    def last_error(self) -> EverbusError | None:
        """
        Why commands fail at the moment; None if they do not.
        """
        return self._breaker.last_error

    @property
    def away_s(self) -> float:
        """
        Seconds since the first failure after the last success; 0 without failure.
        """
        return self._breaker.away_s

    @property
    def trouble(self) -> str:
        """
        Why it writes nothing, for OPEN_AFTER_S or for good; empty while it can.
        """
        error = self._breaker.last_error
        lasting = self._refused is not None or self._breaker.open

        return error.message if error is not None and lasting else ""

    @property
    def waiting(self) -> int:
        """
        How many commands are not on the bus yet, those on disk included.
        """
        return self._queue.waiting

    @property
    def grant(self) -> bytes:
        """
        The grant of each command that has none of its own.
        """
        return b"" if self._credential is None else self._credential.grant

    async def tenant(self, timeout: float) -> str:
        """
        The tenant of the instance, as a manager reports it with the grant.

        Raises:
            Unauthenticated: the managers refuse the token.
            Unavailable: no manager reported the tenant in time.
        """
        if self._credential is None:
            return ""
        try:
            async with asyncio.timeout(timeout):
                await self._credential.current()
        except TimeoutError as error:
            raise Unavailable(
                f"no manager reported the tenant of {self._mad} within {timeout:g} s"
            ) from error
        return self._credential.tenant

    def publish(
        self,
        envelope: Envelope,
        partition: int,
        *,
        expires_at: float | None = None,
        sign: Sign | None = None,
    ) -> OutgoingCommand:
        """
        Queue *envelope* as this instance's next command.

        An envelope without a freely chosen id gets the next number. *sign* makes its
        grant. With a spool, a command without a reply survives this process from now
        on; it may wait on disk only, bounded by the spool.

        Raises:
            Overloaded: MAX_WAITING commands or MAX_WAITING_BYTES wait, or the spool is
                full; or a request would overtake commands that wait on disk only.
            Unavailable: a request while the bus is away: it was not queued.
            TooLarge: it exceeds MAX_COMMAND_BYTES.
            Forbidden, Unauthenticated: the managers refuse this MAD for good.
        """
        if self._refused is not None:
            self.refusal_raised = True
            raise self._refused.copy()
        breaker = self._breaker
        credential = self._credential if sign is None else None
        if credential is not None and time.monotonic() >= credential.good_until:
            credential.check()
        if envelope.reply and breaker.last_error is not None:
            breaker.check()
        n = self._counts[partition] + (not envelope.id)
        # The grant now, so that the write encodes nothing a second time.
        numbered = msgspec.structs.replace(
            envelope,
            id=envelope.id or command_id(self._instance, partition, n),
            epoch=self._epoch,
            grant=self.grant,
        )
        if sign is not None:
            numbered = msgspec.structs.replace(numbered, grant=sign(numbered))
        outgoing = OutgoingCommand(numbered, expires_at, signed=sign is not None)
        if outgoing.size > SURELY_FITS_BYTES:
            outgoing.check_size()
        if not envelope.id:
            outgoing.instance, outgoing.n = self._instance, n
        self._queue.add(partition, outgoing, healthy=breaker.last_error is None)
        self._counts[partition] = n
        self._queued.set()

        return outgoing

    @property
    def instance(self) -> str:
        """
        Id of the instance that this publisher numbers for.
        """
        return self._instance

    @property
    def unsettled(self) -> int:
        """
        Number of commands without a reply that are on the bus, not known as settled.
        """
        return 0 if self._unsettled is None else self._unsettled.count

    def session_of(self, command_id: str) -> str:
        """
        The session of a command that is on the bus, not known as settled; else empty.
        """
        return "" if self._unsettled is None else self._unsettled.session_of(command_id)

    async def settled(self, patience_s: float) -> bool:
        """
        Wait until the managers have settled all commands on the bus so far; False if
        none of them answers for *patience_s*.
        """
        return self._unsettled is None or await self._unsettled.settled(patience_s)

    def check_refused(self) -> None:
        """
        Raise the refusals of accepted commands since the last check.

        Raises:
            EverbusError: the code of the first; its detail `refused` lists them.
        """
        if self._unsettled is not None:
            self._unsettled.check_refused()

    def refuse(self, error: EverbusError) -> None:
        """
        Refuse every later command, and end every flush, with *error*.
        """
        self._refused = self._refused or error
        self._queue.fail(error)

    async def flush(self) -> None:
        """
        Wait until all commands published so far, and all spooled commands of earlier
        processes, are on the bus.

        Raises:
            Forbidden, Unauthenticated: the managers refuse this MAD for good.
        """
        if self._refused is not None:
            self.refusal_raised = True
            raise self._refused.copy()
        if self._queue.waiting:
            try:
                await self._queue.flushed()
            except (Forbidden, Unauthenticated):
                self.refusal_raised = True
                raise
        if self._unsettled is not None:
            await self._unsettled.room()

    async def run(self) -> None:
        """
        Write until cancelled, or until the managers refuse this MAD for good. A bus
        that refuses is tried again: its users come back after a restart or a rotation.
        """
        try:
            self._stopped = False
            while True:
                await self._queued.wait()
                self._queued.clear()
                await self._drain()
        except (Forbidden, Unauthenticated) as error:
            self._breaker.record(error)
            log.error(  # noqa: TRY400 - a refusal, not a defect: its traceback says nothing
                "publisher.refused",
                mad=self._mad,
                error=error.message,
                unsent=self._queue.waiting,
            )
            self.refuse(error)
        finally:
            self._stopped = True
            await self._wire.close()

    async def drain_if_stopped(self) -> None:
        """
        Write all that waits, if `run` has ended and the bus refuses nothing.

        Raises:
            Forbidden, Unauthenticated: the bus refuses this MAD for good.
        """
        if self._stopped and self._refused is None:
            await self._drain()

    def last_words(self, within_s: float) -> None:
        """
        Write all that waits, without the event loop of `run`, which has stopped.

        For the end of the interpreter: blocking, and without a thread for names.
        """
        self._wire = BlockingExchange(self._url, self._mad)
        with suppress(EverbusError, TimeoutError):
            asyncio.run(asyncio.wait_for(self._drain(), within_s))

    async def _drain(self) -> None:
        while self._queue.waiting or self._resend_wanted:
            if self._breaker.last_error is not None:
                self._breaker.begin()
            error = await self._write()
            if error is not None:
                await asyncio.sleep(self._breaker.failed(error))

    async def _write(self) -> EverbusError | None:
        """
        Write one entry per partition; return the error that kept some off the bus.

        Those entries stay first in their queues and are written again, together with
        newer commands.
        """
        try:
            if self._verify_bus is not None:
                await self._verify_bus()
                self._verify_bus = None
            credential = self._credential
            if credential is not None and time.monotonic() >= credential.good_until:
                await credential.current()
            # From here to the write nothing waits: the wire must not connect anew
            # unnoticed, to a bus where something else has to be sent first.
            if not self._wire.connected:
                # Any answer shows that the bus is there. A command written without
                # knowing that counts as attempted for ever.
                await self._wire.exchange([("PING",)])
                if self._unsettled is not None:
                    self._unsettled.send_all_again()
                    self._resend_wanted = True
            self._put_again()
            entries = self._queue.attempt(self._queue.gather())
            return await self._exchange(entries)
        except EverbusError as error:
            passing = as_passing(error)
            if isinstance(passing, Forbidden | Unauthenticated):
                raise
            return passing

    def _resend(self) -> None:
        """
        Wake the writer: it alone may change what is first.
        """
        self._resend_wanted = True
        self._queued.set()

    def _put_again(self) -> None:
        if self._unsettled is None or not self._resend_wanted:
            return
        self._resend_wanted = False
        for partition, again in self._unsettled.take_again().items():
            self._queue.put_first(partition, again)

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
                refused.append(as_passing(refusal(reply)))
            else:
                self._queue.arrived(partition, entry)
        some = len(refused) < max(1, len(entries))
        if some and self._breaker.last_error is not None:
            self._breaker.succeeded()

        return refused[-1] if refused else None

    def _command(
        self, partition: int, entry: Sequence[OutgoingCommand], now: float
    ) -> Command:
        fields: list[bytes] = []
        grant = self.grant
        for outgoing in entry:
            fields += (COMMAND_FIELD, outgoing.packed(now, self._epoch, grant))
        return ("XADD", ingress(partition, self._mad), "*", *fields)

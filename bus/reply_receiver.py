"""
Receiving replies: any number of requests on two connections.

Each reply lies on the stream of its own request until it is received here. A wake-up
channel announces the replies, so nobody blocks on a thousand streams, and carries a
copy of small ones. It is a hint: a sweep over the streams finds the replies that it
missed. A reply is unlinked only after it was received, so a broken connection loses
none.

The channel also reports that the managers declared the instance lost, as every reply
to a command of a lost epoch does; and it carries the managers' answers to the token.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
import structlog
from redis.exceptions import ResponseError

from everbus.bus.backoff import HALF_JITTER, Backoff
from everbus.bus.cluster_wire import wire_to
from everbus.bus.credential import Credential
from everbus.bus.errors import EverbusError, Superseded, Unauthenticated
from everbus.bus.keys import reply as reply_key
from everbus.bus.keys import wake as wake_channel
from everbus.bus.lease import Lease
from everbus.bus.messages import REPLY_FIELD, Reply, ordinal_of, unpack, unpack_reply
from everbus.bus.server_errors import refusal
from everbus.bus.settled_numbers import REFUSED, RefusedCommand
from everbus.bus.subscription import Subscription
from everbus.bus.waits import set_within
from everbus.bus.watches import Watches
from everbus.bus.wire import Command

log = structlog.get_logger()

FETCH_STREAMS = 128
# The reply to a request that waits longer is looked for on its stream.
SWEEP_S = 0.5
# How often, when idle, received replies are unlinked and old requests checked.
TIDY_S = 0.25
FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 0.5


class _Expected(NamedTuple):
    key: str
    reply: asyncio.Future[Reply]
    since: float


class ReplyReceiver:
    """
    The replies of one instance.

    Attributes:
        watching: the watches of the instance; pushes come over the same channel.
    """

    def __init__(
        self,
        url: str,
        mad: str,
        instance: str,
        *,
        lease: Lease | None = None,
        credential: Credential | None = None,
        on_refused: Callable[[RefusedCommand], None] | None = None,
    ) -> None:
        self.watching = Watches()
        self._on_refused = on_refused
        self._credential = credential
        self._wire = wire_to(url, name=f"mad-{mad}-replies")
        self._mad = mad
        self._lease = lease
        self._expected: dict[str, _Expected] = {}
        self._ready: dict[str, None] = {}
        self._received: list[str] = []
        self._swept_at = 0.0
        self._failure: EverbusError | None = None
        self._work = asyncio.Event()
        self._subscribed = asyncio.Event()
        self._subscription = Subscription(
            url,
            wake_channel(mad, instance),
            on_message=self._on_wake,
            on_subscribed=self._on_subscribed,
        )

    @property
    def trouble(self) -> str:
        """
        Why no reply can come any more; empty while they can.
        """
        return "" if self._failure is None else self._failure.message

    def fail(self, error: EverbusError) -> None:
        """
        End every request, also future ones, with *error*.
        """
        self._failure = error
        for expected in self._expected.values():
            if not expected.reply.done():
                expected.reply.set_exception(error.copy())

    def expect(
        self, partition: int, identifier: str, wake: str = ""
    ) -> asyncio.Future[Reply]:
        """
        Future of the reply to a request; call it before the request can be answered.

        Args:
            wake: `wake` of the envelope.

        Raises:
            EverbusError: the error of `fail`.
        """
        if self._failure is not None:
            raise self._failure.copy()
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        key = reply_key(partition, self._mad, identifier, wake)
        self._expected[identifier] = _Expected(key, reply, time.monotonic())

        return reply

    def expects(self, identifier: str) -> bool:
        """
        Whether a request waits for its reply.
        """
        return identifier in self._expected

    def forget(self, identifier: str) -> None:
        """
        Stop waiting; the stream expires by its TTL.
        """
        self._expected.pop(identifier, None)
        self._ready.pop(identifier, None)

    async def started(self) -> None:
        """
        Wait until the wake-up channel is subscribed.
        """
        await self._subscribed.wait()

    async def run(self) -> None:
        """
        Listen and fetch until cancelled.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._subscription.run())
                tasks.create_task(self._fetch_all())
        finally:
            self.watching.close()
            await self._wire.close()

    def _on_wake(self, message: bytes) -> None:
        try:
            for carried in unpack(message, list):
                self._receive(carried, len(message))
        except msgspec.MsgspecError:
            # Only a hint, whatever its sender: the sweep finds the replies.
            log.warning("wake.garbled", mad=self._mad)
        if self._ready or len(self._received) >= FETCH_STREAMS:
            self._work.set()

    def _receive(self, carried: object, size_bytes: int) -> None:
        """
        Process one message of the channel: a reply, the id of a reply, a loss, a grant,
        or a push of events.
        """
        if isinstance(carried, bytes):
            self._complete(unpack_reply(carried))
        elif isinstance(carried, str) and carried in self._expected:
            self._ready[carried] = None
        elif isinstance(carried, dict):
            self._on_loss(carried.get(Superseded.code))
            if self._credential is not None:
                self._credential.receive(carried)
            if self._on_refused is not None and REFUSED in carried:
                self._receive_refusal(carried[REFUSED])
            self.watching.receive(carried, size_bytes)

    def _receive_refusal(self, carried: object) -> None:
        with suppress(msgspec.ValidationError):
            refused = msgspec.convert(carried, RefusedCommand)
            if self._on_refused is not None:
                self._on_refused(refused)

    def _on_refusal(self, reply: Reply) -> None:
        if reply.code == Superseded.code:
            self._on_loss(reply.details.get("epoch"))
        elif reply.code == Unauthenticated.code and self._credential is not None:
            self._credential.invalidate()

    def _on_loss(self, epoch: object) -> None:
        if (
            self._lease is not None
            and type(epoch) is int
            and self._lease.declare_lost(epoch)
        ):
            log.warning("instance.superseded", mad=self._mad, epoch=epoch)

    def _on_subscribed(self) -> None:
        """
        Check every request: messages during the interruption are lost. Beat at once
        after one, since the managers take a closed subscription for a death.
        """
        if self._subscribed.is_set() and self._lease is not None:
            self._lease.changed.set()
        self._subscribed.set()
        self.watching.invalidate_all()
        self._ready.update(dict.fromkeys(self._expected))
        self._work.set()

    async def _fetch_all(self) -> None:
        backoff = Backoff(FIRST_BACKOFF_S, MAX_BACKOFF_S, jitter=HALF_JITTER)
        while True:
            if not self._ready and len(self._received) < FETCH_STREAMS:
                await self._await_work()
            try:
                await self._fetch()
                backoff.reset()
            except EverbusError as error:
                if not backoff.failures:
                    log.warning("replies.delayed", mad=self._mad, error=error.message)
                await asyncio.sleep(backoff.next_s())

    async def _await_work(self) -> None:
        if not await set_within(self._work, TIDY_S):
            self._sweep()
        self._work.clear()

    def _sweep(self) -> None:
        """
        Mark the requests that have waited long, longest first.
        """
        before = time.monotonic() - SWEEP_S
        if self._swept_at > before:
            return
        self._swept_at = time.monotonic()
        for identifier, expected in self._expected.items():
            if expected.since > before:
                return
            self._ready[identifier] = None

    async def _fetch(self) -> None:
        """
        Fetch the ready replies, and unlink the received ones.
        """
        wanted = list(self._ready)[:FETCH_STREAMS]
        streams = [e.key for i in wanted if (e := self._expected.get(i)) is not None]
        received = self._received[:FETCH_STREAMS]
        group_by_slot = self._wire.group_by_slot
        commands: list[Command] = [
            ("UNLINK", *group) for group in group_by_slot(received)
        ]
        unlinks = len(commands)
        for group in group_by_slot(streams):
            starts = ["0"] * len(group)
            commands.append(("XREAD", "COUNT", 1, "STREAMS", *group, *starts))
        if commands:
            replies = await self._wire.exchange(commands)
            # Refusals come last: they must not hold back the replies.
            for found in sorted(replies[unlinks:], key=_is_refusal):
                self._deliver(found)
            del self._received[: len(received)]
        for identifier in wanted:
            self._ready.pop(identifier, None)

    def _deliver(self, streams: Any) -> None:
        if isinstance(streams, ResponseError):
            raise refusal(streams)
        for _, entries in streams or ():
            _, fields = entries[0]
            reply = unpack_reply(
                dict(zip(fields[::2], fields[1::2], strict=True))[REPLY_FIELD]
            )
            self._complete(reply)

    def _complete(self, reply: Reply) -> None:
        """
        Complete the request of a received reply; its stream is no longer needed.
        """
        if reply.code != "ok":
            self._on_refusal(reply)
        expected = self._expected.pop(reply.id, None)
        if expected is not None:
            self._received.append(expected.key)
            if not expected.reply.done():
                expected.reply.set_result(reply)
            return
        # No request waits any more: it came late, or by both ways.
        ordinal = ordinal_of(reply.id)
        if ordinal is not None:
            self._received.append(reply_key(ordinal.partition, self._mad, reply.id))


def _is_refusal(reply: Any) -> bool:
    return isinstance(reply, ResponseError)

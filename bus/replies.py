"""
Waiting for replies: any number of requests on two connections.

Each reply lies on the stream of its own request until it is received here. A
wake-up channel tells which ones are there, so nobody blocks on a thousand streams,
and carries a copy of each that is small. It is a hint: what it did not tell, a
sweep finds on the streams. A reply is unlinked only after it has been received, so
a connection that dies loses none.

The channel also tells an instance that it was declared lost, as every reply to what
it sent since then does; and what the managers answer to its token.
"""

import asyncio
import random
import time
from typing import Any, NamedTuple

import msgspec
import structlog
from redis.exceptions import ResponseError

from bus.cluster import wire_to
from bus.codec import REPLY_FIELD, ordinal_of, unpack, unpack_reply
from bus.credential import Credential
from bus.errors import EverbusError, Superseded, Unauthenticated
from bus.keys import reply as reply_key
from bus.keys import wake as wake_channel
from bus.lease import Lease
from bus.messages import Reply
from bus.subscription import Subscription
from bus.watching import Watching
from bus.wire import Command, refusal

log = structlog.get_logger()

FETCH_STREAMS = 128
# A request that waits longer than this is looked for on its stream.
SWEEP_S = 0.5
# How often, when idle, received replies are unlinked and old requests looked for.
TIDY_S = 0.25
BACKOFF_S = 0.1
MAX_BACKOFF_S = 0.5


class _Expected(NamedTuple):
    key: str
    reply: asyncio.Future[Reply]
    since: float


class Replies:
    """
    The replies that one instance waits for.

    Attributes:
        watching: what it watches; pushes come over the same channel.
    """

    def __init__(
        self,
        url: str,
        mad: str,
        instance: str,
        *,
        lease: Lease | None = None,
        credential: Credential | None = None,
    ) -> None:
        self.watching = Watching()
        self._credential = credential
        self._wire = wire_to(url, name=f"mad-{mad}-replies")
        self._mad = mad
        self._lease = lease
        self._expected: dict[str, _Expected] = {}
        self._ready: dict[str, None] = {}
        self._spent: list[str] = []
        self._swept_at = 0.0
        self._failure: EverbusError | None = None
        self._news = asyncio.Event()
        self._subscribed = asyncio.Event()
        self._subscription = Subscription(
            url,
            wake_channel(mad, instance),
            on_message=self._woken,
            on_subscribed=self._reconcile,
        )

    def fail(self, error: EverbusError) -> None:
        """
        End every request with *error*, those to come as well.
        """
        self._failure = error
        for expected in self._expected.values():
            if not expected.reply.done():
                expected.reply.set_exception(error)

    def expect(
        self, partition: int, identifier: str, wake: str = ""
    ) -> asyncio.Future[Reply]:
        """
        The reply to a request; to be called before the request can be answered.

        Args:
            wake: as the envelope has it.

        Raises:
            EverbusError: what `fail` was told.
        """
        if self._failure is not None:
            raise self._failure
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        key = reply_key(partition, self._mad, identifier, wake)
        self._expected[identifier] = _Expected(key, reply, time.monotonic())

        return reply

    def forget(self, identifier: str) -> None:
        """
        Wait no longer; the stream goes by its TTL.
        """
        self._expected.pop(identifier, None)
        self._ready.pop(identifier, None)

    async def started(self) -> None:
        """
        Return when the wake-up channel is listened to.
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

    def _woken(self, message: bytes) -> None:
        try:
            for carried in unpack(message, list):
                self._hear(carried, len(message))
        except msgspec.MsgspecError:
            # Only a hint, whoever sent it: the sweep finds what it did not tell.
            log.warning("wake.garbled", mad=self._mad)
        if self._ready or len(self._spent) >= FETCH_STREAMS:
            self._news.set()

    def _hear(self, carried: object, size_bytes: int) -> None:
        """
        Take one thing that the channel told: a reply, the id of one, a loss, a grant,
        or what happened in a session.
        """
        if isinstance(carried, bytes):
            self._settle(unpack_reply(carried))
        elif isinstance(carried, str) and carried in self._expected:
            self._ready[carried] = None
        elif isinstance(carried, dict):
            self._lost(carried.get(Superseded.code))
            if self._credential is not None:
                self._credential.hear(carried)
            self.watching.hear(carried, size_bytes)

    def _refused(self, reply: Reply) -> None:
        if reply.code == Superseded.code:
            self._lost(reply.details.get("epoch"))
        elif reply.code == Unauthenticated.code and self._credential is not None:
            self._credential.doubt()

    def _lost(self, epoch: object) -> None:
        if self._lease is not None and type(epoch) is int and self._lease.lost(epoch):
            log.warning("instance.superseded", mad=self._mad, epoch=epoch)

    def _reconcile(self) -> None:
        """
        Look for everything: what was told while nobody listened is lost.
        """
        self._subscribed.set()
        self.watching.missed()
        self._ready.update(dict.fromkeys(self._expected))
        self._news.set()

    async def _fetch_all(self) -> None:
        wait_s = BACKOFF_S
        while True:
            if not self._ready and len(self._spent) < FETCH_STREAMS:
                await self._await_news()
            try:
                await self._fetch()
                wait_s = BACKOFF_S
            except EverbusError as error:
                if wait_s == BACKOFF_S:
                    log.warning("replies.delayed", mad=self._mad, error=error.message)
                # Jitter, else all that waited for the bus come back to it at once.
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.5))  # noqa: S311
                wait_s = min(2 * wait_s, MAX_BACKOFF_S)

    async def _await_news(self) -> None:
        try:
            async with asyncio.timeout(TIDY_S):
                await self._news.wait()
        except TimeoutError:
            self._sweep()
        self._news.clear()

    def _sweep(self) -> None:
        """
        Mark the requests that have waited long; the longest come first.
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
        Fetch what is ready, and unlink what was received before.
        """
        wanted = list(self._ready)[:FETCH_STREAMS]
        streams = [e.key for i in wanted if (e := self._expected.get(i)) is not None]
        spent = self._spent[:FETCH_STREAMS]
        together = self._wire.together
        commands: list[Command] = [("UNLINK", *some) for some in together(spent)]
        unlinks = len(commands)
        for some in together(streams):
            starts = ["0"] * len(some)
            commands.append(("XREAD", "COUNT", 1, "STREAMS", *some, *starts))
        if commands:
            replies = await self._wire.exchange(commands)
            # What was refused comes last: it must not keep back what is there.
            for found in sorted(replies[unlinks:], key=_is_refusal):
                self._deliver(found)
            del self._spent[: len(spent)]
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
            self._settle(reply)

    def _settle(self, reply: Reply) -> None:
        """
        Hand a received reply over; its stream has done its duty.
        """
        if reply.code != "ok":
            self._refused(reply)
        expected = self._expected.pop(reply.id, None)
        if expected is not None:
            self._spent.append(expected.key)
            if not expected.reply.done():
                expected.reply.set_result(reply)
            return
        # Nobody waits any more: it came late, or by both ways.
        ordinal = ordinal_of(reply.id)
        if ordinal is not None:
            self._spent.append(reply_key(ordinal.partition, self._mad, reply.id))


def _is_refusal(reply: Any) -> bool:
    return isinstance(reply, ResponseError)

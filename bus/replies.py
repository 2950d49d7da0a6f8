"""
Waiting for replies: any number of requests on two connections.

Each reply lies on the stream of its own request until it is read here. A wake-up
channel tells which ones are there, so nobody blocks on a thousand streams; it is
a hint, and a sweep looks for what it did not tell. A reply is unlinked only
after it has been received, so a connection that dies loses none.
"""

import asyncio
import time
from typing import Any, NamedTuple

import structlog
from redis.exceptions import ResponseError

from bus import keys
from bus.codec import REPLY_FIELD, unpack_reply
from bus.errors import EverbusError
from bus.messages import Reply
from bus.subscription import Subscription
from bus.wire import Command, Wire, refusal

log = structlog.get_logger()

FETCH_STREAMS = 128
SWEEP_S = 1.0
BACKOFF_S = 0.1


class _Expected(NamedTuple):
    key: str
    reply: asyncio.Future[Reply]
    since: float


class Replies:
    """
    The replies that one instance waits for.
    """

    def __init__(self, url: str, mad: str, instance: str) -> None:
        self._wire = Wire(url, name=f"mad-{mad}-replies")
        self._mad = mad
        self._expected: dict[str, _Expected] = {}
        self._ready: dict[str, None] = {}
        self._spent: list[str] = []
        self._news = asyncio.Event()
        self._subscribed = asyncio.Event()
        self._subscription = Subscription(
            url,
            keys.wake(mad, instance),
            on_message=self._woken,
            on_subscribed=self._reconcile,
        )

    def expect(self, partition: int, identifier: str) -> asyncio.Future[Reply]:
        """
        The reply to a request; to be called before the request is published.
        """
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        key = keys.reply(partition, self._mad, identifier)
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
            await self._wire.close()

    def _woken(self, message: bytes) -> None:
        for identifier in message.decode().split(" "):
            if identifier in self._expected:
                self._ready[identifier] = None
        self._news.set()

    def _reconcile(self) -> None:
        """
        Look for everything: what was told while nobody listened is lost.
        """
        self._subscribed.set()
        self._ready.update(dict.fromkeys(self._expected))
        self._news.set()

    async def _fetch_all(self) -> None:
        while True:
            if not self._ready and not self._spent:
                await self._await_news()
            try:
                await self._fetch()
            except EverbusError as error:
                log.warning("replies.delayed", mad=self._mad, error=error.message)
                await asyncio.sleep(BACKOFF_S)

    async def _await_news(self) -> None:
        try:
            async with asyncio.timeout(SWEEP_S):
                await self._news.wait()
        except TimeoutError:
            self._sweep()
        self._news.clear()

    def _sweep(self) -> None:
        """
        Mark the requests that have waited long; the longest come first.
        """
        before = time.monotonic() - SWEEP_S
        for identifier, expected in self._expected.items():
            if expected.since > before:
                return
            self._ready[identifier] = None

    async def _fetch(self) -> None:
        """
        Fetch what is ready, and unlink what was fetched the last time.
        """
        wanted = list(self._ready)[:FETCH_STREAMS]
        streams = [e.key for i in wanted if (e := self._expected.get(i)) is not None]
        spent = self._spent[:FETCH_STREAMS]
        commands: list[Command] = []
        if spent:
            commands.append(("UNLINK", *spent))
        if streams:
            starts = ["0"] * len(streams)
            commands.append(("XREAD", "COUNT", 1, "STREAMS", *streams, *starts))
        if commands:
            replies = await self._wire.exchange(commands)
            if streams:
                self._deliver(replies[-1])
            del self._spent[: len(spent)]
        for identifier in wanted:
            self._ready.pop(identifier, None)

    def _deliver(self, streams: Any) -> None:
        if isinstance(streams, ResponseError):
            raise refusal(streams)
        for key, entries in streams or ():
            _, fields = entries[0]
            reply = unpack_reply(
                dict(zip(fields[::2], fields[1::2], strict=True))[REPLY_FIELD]
            )
            expected = self._expected.pop(reply.id, None)
            self._spent.append(key.decode())
            if expected is not None and not expected.reply.done():
                expected.reply.set_result(reply)

"""
Listening to one Pub/Sub channel, or to a pattern of them, through every reconnect.

What comes over a channel is a hint, never the truth: messages are lost while
nobody listens. So whoever listens is told of every (re)subscription and must
then look for what it missed.
"""

import asyncio
import random
from collections.abc import Callable
from itertools import cycle

from redis.asyncio import Connection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from bus.routing import node_urls
from bus.wire import CONNECT_TIMEOUT_S, read_reply

QUIET_S = 5.0
MAX_BACKOFF_S = 1.0


class Subscription:
    """
    One channel, one connection, until cancelled.

    Args:
        on_message: is given what was said on the channel.
        on_match: instead of *on_message*, makes *channel* a pattern, as PSUBSCRIBE has
            it, and is given the channel that matched and what was said there.
        on_subscribed: is called whenever listening has begun, or begun anew.
    """

    def __init__(
        self,
        url: str,
        channel: str,
        *,
        on_subscribed: Callable[[], None],
        on_message: Callable[[bytes], None] | None = None,
        on_match: Callable[[bytes, bytes], None] | None = None,
    ) -> None:
        # Any node of a cluster will do: what is said on one, all of them tell.
        pools = [_pool_to(node) for node in node_urls(url)]
        self._pools = cycle(random.sample(pools, len(pools)))
        self._channel = channel
        self._verb = "SUBSCRIBE" if on_match is None else "PSUBSCRIBE"
        self._on_message = on_message
        self._on_match = on_match
        self._on_subscribed = on_subscribed
        self._heard = 0

    async def run(self) -> None:
        """
        Listen until cancelled; reconnect with growing, jittered waits.
        """
        wait_s = 0.05
        while True:
            # redis-py types neither this call nor connect().
            connection: Connection = next(self._pools).make_connection()  # type: ignore[no-untyped-call]
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await connection.connect()  # type: ignore[no-untyped-call]
                    await self._subscribe(connection)
                self._on_subscribed()
                wait_s = 0.05
                await self._listen(connection)
            except (TimeoutError, OSError, RedisError):
                # Not logged here: the one who asks for replies notices and tells.
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.5))  # noqa: S311
                wait_s = min(2 * wait_s, MAX_BACKOFF_S)
            finally:
                await connection.disconnect(nowait=True)

    async def _subscribe(self, connection: Connection) -> None:
        try:
            await connection.send_command(self._verb, self._channel)
        except RuntimeError as error:
            # How uvloop refuses a connection that was cut a moment ago.
            raise ConnectionResetError(str(error)) from error
        await read_reply(connection)

    async def _listen(self, connection: Connection) -> None:
        watching = asyncio.create_task(self._watch(connection))
        try:
            while True:
                reply = await read_reply(connection)
                self._heard += 1
                if reply[0] == b"message" and self._on_message is not None:
                    self._on_message(reply[2])
                elif reply[0] == b"pmessage" and self._on_match is not None:
                    self._on_match(reply[2], reply[3])
        finally:
            watching.cancel()

    async def _watch(self, connection: Connection) -> None:
        """
        Where it is quiet, ask for an answer; a black hole in between gives none.
        """
        while True:
            heard = self._heard
            await asyncio.sleep(QUIET_S)
            if self._heard != heard:
                continue
            await connection.send_command("PING", check_health=False)
            await asyncio.sleep(QUIET_S)
            if self._heard == heard:
                # The waiting read ends with an error, and we connect anew.
                await connection.disconnect(nowait=True)
                return


def _pool_to(url: str) -> ConnectionPool:
    return ConnectionPool.from_url(
        url,
        protocol=2,  # RESP3 pushes leak in hiredis on long-lived Pub/Sub
        socket_timeout=None,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        # Else it says who it is by a command that a MAD may not use.
        driver_info=None,
    )

"""
Subscription to one Pub/Sub channel, or to a pattern, through every reconnect.

A message of a channel is a hint, never the truth: messages during a reconnect are
lost. So `on_subscribed` reports every (re)subscription, and the subscriber must then
look for what it missed.

The server may answer SUBSCRIBE and PING with an error (busy, still loading, no right).
Nobody knows then whether it still counts this connection as subscribed, so a new one
is made; only a refused PING proves that the connection lives.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import structlog
from redis.asyncio import Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from everbus.bus.backoff import HALF_JITTER, Backoff
from everbus.bus.cluster_routing import is_cluster
from everbus.bus.connector import Connector, connector_to
from everbus.bus.errors import EverbusError
from everbus.bus.known_nodes import known_nodes
from everbus.bus.server_errors import CommandRefused, RightsRefused, refusal, translated
from everbus.bus.wire import CONNECT_TIMEOUT_S, read_reply

log = structlog.get_logger()

QUIET_S = 5.0
FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 1.0


class Subscription:
    """
    One channel, one connection, until cancelled.

    Args:
        on_message: called with each message.
        on_match: replaces *on_message* and makes *channel* a pattern of PSUBSCRIBE;
            called with the matching channel and the message.
        on_subscribed: called after each subscription, the first one included.

    Attributes:
        trouble: why no messages arrive at the moment; empty while it is subscribed.
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
        self._nodes = known_nodes(url) if is_cluster(url) else None
        self._server = _connector_to(url) if self._nodes is None else None
        self._address = ""
        self._channel = channel
        self._verb = "SUBSCRIBE" if on_match is None else "PSUBSCRIBE"
        self._on_message = on_message
        self._on_match = on_match
        self._on_subscribed = on_subscribed
        self._heard = 0
        self.trouble = ""

    async def run(self) -> None:
        """
        Listen until cancelled; reconnect with growing, jittered waits.
        """
        backoff = Backoff(FIRST_BACKOFF_S, MAX_BACKOFF_S, jitter=HALF_JITTER)
        while True:
            connector = self._connector()
            connection: Connection | None = None
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    connection = await connector.open()
                    await self._subscribe(connection)
                self.trouble = ""
                self._on_subscribed()
                backoff.reset()
                await self._listen(connection)
            except (TimeoutError, OSError, RedisError, EverbusError) as error:
                # Not logged here: the fetching of replies notices and logs it.
                connector.forget()
                if self._nodes is not None:
                    self._nodes.note_away(self._address)
                self.trouble = str(translated(error)) or type(error).__name__
                await asyncio.sleep(backoff.next_s())
            finally:
                if connection is not None:
                    await connector.close(connection)

    def _connector(self) -> Connector:
        """
        Any known node of a cluster: each one delivers the messages of all.
        """
        if self._nodes is not None:
            self._address = self._nodes.candidates()[0]
            return _connector_to(self._nodes.url(self._address))
        assert self._server is not None  # noqa: S101 - one of the two is there
        return self._server

    async def _subscribe(self, connection: Connection) -> None:
        try:
            await connection.send_command(self._verb, self._channel)
        except RuntimeError as error:
            # uvloop's error for a connection that was just cut.
            raise ConnectionResetError(str(error)) from error
        await _read(connection)

    async def _listen(self, connection: Connection) -> None:
        watching = asyncio.create_task(self._watch(connection))
        try:
            while True:
                try:
                    self._deliver(await _read(connection))
                except RightsRefused:
                    # To the PING: it may not be sent, and the connection lives.
                    log.debug("subscription.unpinged", channel=self._channel)
                self._heard += 1
        finally:
            watching.cancel()

    def _deliver(self, reply: list[Any]) -> None:
        try:
            if reply[0] == b"message" and self._on_message is not None:
                self._on_message(reply[2])
            elif reply[0] == b"pmessage" and self._on_match is not None:
                self._on_match(reply[2], reply[3])
        except Exception:  # one message must not make it deaf for all that follow
            log.exception("subscription.message_failed", channel=self._channel)

    async def _watch(self, connection: Connection) -> None:
        """
        Send PING on a quiet connection; a black hole in the network gives no answer.
        """
        try:
            while True:
                heard = self._heard
                await asyncio.sleep(QUIET_S)
                if self._heard != heard:
                    continue
                await connection.send_command("PING", check_health=False)
                await asyncio.sleep(QUIET_S)
                if self._heard == heard:
                    return
        finally:
            # However it ends: the waiting read fails, and `run` reconnects.
            await connection.disconnect(nowait=True)


async def _read(connection: Connection) -> list[Any]:
    """
    The next reply of a subscribed connection.

    Raises:
        EverbusError: the server replies with an error.
    """
    reply = await read_reply(connection)
    if isinstance(reply, ResponseError):
        raise refusal(reply)
    if not isinstance(reply, list):
        raise CommandRefused(f"the bus answers {reply!r:.80} to a subscription")
    return reply


def _connector_to(url: str) -> Connector:
    return connector_to(
        url,
        protocol=2,  # RESP3 pushes leak in hiredis on long-lived Pub/Sub
        socket_timeout=None,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        # Else redis-py sends CLIENT SETINFO, which a MAD may not use.
        driver_info=None,
    )

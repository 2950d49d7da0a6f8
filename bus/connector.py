"""
Opening a connection to the server behind a URL: the one place that resolves it.

A plain URL names its server. Behind Sentinels the server is looked up at each connect,
and counts only if it says itself that it is the primary.
"""

import asyncio
from typing import Any

from redis.asyncio import Connection, ConnectionPool

from everbus.bus.sentinel import (
    NoPrimary,
    find_primary,
    is_sentinel,
    sentinel_address,
)
from everbus.bus.switch_watch import switch_watch

# A server that has just become the primary answers at once; a hung one never.
ROLE_TIMEOUT_S = 1.5


class Connector:
    """
    Opens connections to the server at a plain URL.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self._pool = ConnectionPool.from_url(url, **options)
        parts = self._pool.connection_kwargs
        self._address = f"{parts.get('host', parts.get('path'))}:{parts.get('port')}"

    @property
    def address(self) -> str:
        """
        The server for people, without credentials.
        """
        return self._address

    async def open(self) -> Connection:
        """
        A new connection; the caller sets the deadline.

        Raises:
            OSError, RedisError: as redis-py raises them.
        """
        # redis-py types neither of the two calls.
        connection: Connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await connection.disconnect(nowait=True)
            raise

        return connection

    async def close(self, connection: Connection) -> None:
        """
        Close a connection of `open`; never raises.
        """
        await connection.disconnect(nowait=True)

    def forget(self) -> None:
        """
        Look the server up anew at the next `open`: a connection to it failed.
        """


class SentinelConnector(Connector):
    """
    Opens connections to the primary that the Sentinels name.

    The address is kept while its connections do not fail: a lane that interrupts its
    own rest need not ask again.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self._bus = sentinel_address(url)
        self._options = options
        self._primary = ""

    @property
    def address(self) -> str:
        """
        The primary of the last lookup, else the bus's name at its Sentinels.
        """
        return self._primary or f"{self._bus.name} ({', '.join(self._bus.sentinels)})"

    async def open(self) -> Connection:
        """
        A new connection to the primary.

        Raises:
            NoPrimary: the Sentinels name none, or the named one has another role.
            OSError, RedisError: as redis-py raises them.
        """
        try:
            address = self._primary or await find_primary(self._bus)
            connection = await self._open_at(address)
        except BaseException:
            self._primary = ""
            raise
        self._primary = address
        switch_watch(self._bus).add(connection, address)

        return connection

    async def close(self, connection: Connection) -> None:
        """
        Close a connection of `open`; never raises.
        """
        switch_watch(self._bus).discard(connection)
        await connection.disconnect(nowait=True)

    def forget(self) -> None:
        """
        Look the primary up anew at the next `open`.
        """
        self._primary = ""

    async def _open_at(self, address: str) -> Connection:
        server = Connector(self._bus.server_url(address), **self._options)
        async with asyncio.timeout(ROLE_TIMEOUT_S):
            connection = await server.open()
            try:
                await connection.send_command("HELLO", "2", check_health=False)
                check_role(await connection.read_response(), address)
            except BaseException:
                await connection.disconnect(nowait=True)
                raise

        return connection


def connector_to(url: str, **options: Any) -> Connector:
    """
    The connector for *url*; *options* go to redis-py's connections.
    """
    if is_sentinel(url):
        return SentinelConnector(url, **options)
    return Connector(url, **options)


def check_role(hello: list[Any], address: str) -> None:
    """
    Check the reply to HELLO, which tells the role and needs no right of a user.

    Raises:
        NoPrimary: the server is no primary.
    """
    words = [_text(word) for word in hello]
    role = dict(zip(words[::2], words[1::2], strict=False)).get("role", "")
    if role != "master":
        raise NoPrimary(f"{address} is a {role or 'server without a role'} now")


def _text(word: Any) -> str:
    return word.decode() if isinstance(word, bytes) else str(word)

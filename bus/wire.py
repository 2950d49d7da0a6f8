"""
One connection to the bus, written and read in whole batches.

redis-py owns the connection: address, TLS, authentication, handshake. It would encode
each command in Python, make a timeout object per reply, and retry up to ten times,
which repeats side effects. Here hiredis encodes the batch, with one write, one deadline
and no retry. A failed exchange closes the connection, since a late reply would answer
the wrong command.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any

import hiredis
from redis.asyncio import Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import MasterDownError, ReadOnlyError, RedisError, ResponseError

from everbus.bus.connector import connector_to
from everbus.bus.errors import Unavailable
from everbus.bus.server_errors import refusal, translated

Argument = bytes | str | int | float
Command = tuple[Argument, ...]

CONNECT_TIMEOUT_S = 3.0
EXCHANGE_TIMEOUT_S = 5.0

_pack: Callable[[Command], bytes] = hiredis.pack_command  # type: ignore[assignment]
# A server that takes no writes now: behind Sentinels another one may.
_NO_PRIMARY = frozenset({ReadOnlyError, MasterDownError})


# Connections of a parent process, kept from the garbage collector, which closes them.
_inherited: list[Connection] = []


class WireFailed(Unavailable):
    """
    The connection broke; commands in flight may or may not have had an effect.
    """


class Wire:
    """
    A connection on which one task at a time exchanges batches.

    The first exchange opens it, and so does the first one after a failure.
    """

    def __init__(self, url: str, *, name: str = "everbus") -> None:
        self._connector = connector_to(
            url,
            protocol=2,  # one shape of replies on every server version
            decode_responses=False,
            socket_timeout=None,  # the exchange has one deadline instead
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            client_name=name,
            # Else each connection reads redis-py's metadata from the disk.
            driver_info=None,
        )
        self._process = os.getpid()
        self._connection: Connection | None = None
        self._expired = False
        self._expiry: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """
        Whether the last exchange left a connection, and the server has not closed it.
        """
        connection = self._connection
        if connection is None:
            return False
        return connection.is_connected and not _has_ended(connection)

    @property
    def address(self) -> str:
        """
        The server for people, without credentials; behind Sentinels the last primary.
        """
        return self._connector.address

    def group_by_slot(self, keys: Sequence[str]) -> list[Sequence[str]]:
        """
        Group *keys* by slot; a single server gets one group.
        """
        return [keys] if keys else []

    async def exchange(
        self, commands: Sequence[Command], *, timeout_s: float = EXCHANGE_TIMEOUT_S
    ) -> list[Any]:
        """
        Send *commands* with one write; return the replies in order.

        An error reply is returned, not raised: the other replies count.

        Raises:
            WireFailed: the connection broke or *timeout_s* passed; the effect
                of every command is unknown. Never retried here.
        """
        packed = b"".join(map(_pack, commands))
        # A timer that closes the connection: half the cost of asyncio.timeout(),
        # on a path that every batch takes twice.
        loop = asyncio.get_running_loop()
        deadline = loop.call_later(timeout_s, self._expire)
        try:
            connection = await self._usable(timeout_s)
            await connection.send_packed_command(packed, check_health=False)
            return await self._checked([await read_reply(connection) for _ in commands])
        # RuntimeError is uvloop's for an idle connection that was reset (uvloop#506).
        except (TimeoutError, OSError, RuntimeError, RedisError) as error:
            failed = WireFailed(self._describe(error, timeout_s))
            if self._connection is not None:  # else somebody closed it on purpose
                await self._abandon()
            raise failed from error
        except BaseException:
            # Cancelled between write and read: the replies belong to nobody.
            await self.close()
            raise
        finally:
            deadline.cancel()

    async def call(
        self, *command: Argument, timeout_s: float = EXCHANGE_TIMEOUT_S
    ) -> Any:
        """
        Send one command and return its reply; an error reply is raised.

        Raises:
            WireFailed: as in `exchange`.
            Unavailable, Overloaded, RightsRefused, CredentialsRefused, CommandRefused:
                by `bus.server_errors`.
        """
        [reply] = await self.exchange([command], timeout_s=timeout_s)
        if isinstance(reply, ResponseError):
            raise refusal(reply)
        return reply

    async def close(self) -> None:
        """
        Close the connection, if there is one; never raises.
        """
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if os.getpid() != self._process:
            # A forked child: its socket, and the poll of it, are the parent's too.
            _inherited.append(connection)
            return
        await self._connector.close(connection)

    async def _checked(self, replies: list[Any]) -> list[Any]:
        """
        *replies*; when the server is no primary, the next exchange looks for one.
        """
        if any(type(reply) in _NO_PRIMARY for reply in replies):
            await self._abandon()
        return replies

    async def _abandon(self) -> None:
        """
        Close the connection and look the server up anew: it may be another by now.
        """
        self._connector.forget()
        await self.close()

    def _expire(self) -> None:
        self._expired = True
        self._expiry = asyncio.create_task(self._abandon())

    def _describe(self, error: BaseException, timeout_s: float) -> str:
        expired, self._expired = self._expired, False
        server = self.address
        if expired or isinstance(error, TimeoutError):
            return f"the bus at {server} did not answer within {timeout_s:g} s"
        return f"no connection to the bus at {server}: {error}"

    async def _usable(self, timeout_s: float) -> Connection:
        connection = self._connection
        if connection is None:
            return await self._connect(timeout_s)
        if not self.connected:
            # Closed for another primary, to whose server redis-py would connect again;
            # or by a server that closes idle connections.
            await self._abandon()
            return await self._connect(timeout_s)
        return connection

    async def _connect(self, timeout_s: float) -> Connection:
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._connector.open()
        except BaseException as error:
            translated_error = translated(error)
            if translated_error is error:
                raise
            raise translated_error from error
        self._connection = connection
        return connection


def _has_ended(connection: Connection) -> bool:
    """
    Whether the server has closed an idle connection, and nothing is left to read.
    """
    reader = connection._reader  # noqa: SLF001 - there is no public way to ask

    return reader is not None and reader.at_eof()


async def read_reply(connection: Connection) -> Any:
    """
    The next reply; an error reply is returned, a broken connection raised.

    Reads from the connection's parser, the only private name of redis-py in use: the
    public way costs as much again per reply, for an unused timeout and error text.
    `tests/unit/test_wire.py` checks that the name exists.
    """
    parser: Any = connection._parser  # noqa: SLF001 - see above
    return await parser.read_response(disable_decoding=True)

"""
One connection to the bus, written to and read from in whole batches.

redis-py owns the connection: address, TLS, authentication, handshake. What it
would do per command (pack in pure Python, a timeout object per reply, up to
ten retries that repeat side effects) happens here once per batch: hiredis
packs, one write, one deadline, and no retry at all. A failed exchange closes
the connection, since a reply that comes late would answer the wrong command.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import hiredis
from redis.asyncio import Connection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from bus.errors import Forbidden, Overloaded, Unauthenticated, Unavailable

Argument = bytes | str | int | float
Command = tuple[Argument, ...]

CONNECT_TIMEOUT_S = 3.0
EXCHANGE_TIMEOUT_S = 5.0
# Refusals of the server that pass by themselves; none of them has an effect.
PASSING = frozenset(
    {
        "ASK",
        "BUSY",
        "CLUSTERDOWN",
        "LOADING",
        "MASTERDOWN",
        "MISCONF",
        "MOVED",
        "NOREPLICAS",
        "READONLY",
        "TRYAGAIN",
        "UNBLOCKED",
        "UNREACHED",
    }
)


_pack: Callable[[Command], bytes] = hiredis.pack_command  # type: ignore[assignment]


class WireFailed(Unavailable):
    """
    The connection broke; what was in flight may or may not have happened.
    """


class Wire:
    """
    A connection that one task at a time exchanges batches on.

    Opened by the first exchange, and again by the first one after a failure.
    """

    def __init__(self, url: str, *, name: str = "everbus") -> None:
        self._pool = ConnectionPool.from_url(
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
        self._connection: Connection | None = None
        self._expired = False
        self._expiry: asyncio.Task[None] | None = None
        parts = self._pool.connection_kwargs
        self._address = f"{parts.get('host', parts.get('path'))}:{parts.get('port')}"

    @property
    def connected(self) -> bool:
        """
        Whether the last exchange left a usable connection.
        """
        return self._connection is not None

    def together(self, keys: Sequence[str]) -> list[Sequence[str]]:
        """
        *keys* in groups that one command may name: on one server all of them.
        """
        return [keys] if keys else []

    async def exchange(
        self, commands: Sequence[Command], *, timeout_s: float = EXCHANGE_TIMEOUT_S
    ) -> list[Any]:
        """
        The replies to *commands*, in order, after one write.

        A reply that is an error is returned, not raised: the others count.

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
            connection = self._connection or await self._connect(timeout_s)
            await connection.send_packed_command(packed, check_health=False)
            return [await read_reply(connection) for _ in commands]
        # RuntimeError is uvloop's for an idle connection that was reset (uvloop#506).
        except (TimeoutError, OSError, RuntimeError, RedisError) as error:
            await self.close()
            raise WireFailed(self._told(error, timeout_s)) from error
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
        The reply to one command; as `exchange`, but an error reply is raised.

        Raises:
            WireFailed: as in `exchange`.
            Unavailable, Overloaded, Forbidden, Unauthenticated: by `refusal`.
            ResponseError: any other error reply.
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
        if connection is not None:
            await connection.disconnect(nowait=True)

    def _expire(self) -> None:
        self._expired = True
        self._expiry = asyncio.create_task(self.close())

    def _told(self, error: BaseException, timeout_s: float) -> str:
        expired, self._expired = self._expired, False
        if expired or isinstance(error, TimeoutError):
            return f"the bus at {self._address} did not answer within {timeout_s:g} s"
        return f"no connection to the bus at {self._address}: {error}"

    async def _connect(self, timeout_s: float) -> Connection:
        # redis-py types neither of the two calls.
        connection: Connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(timeout_s):
                await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException as error:
            await connection.disconnect(nowait=True)
            meant = meaning(error)
            if meant is error:
                raise
            raise meant from error
        self._connection = connection
        return connection


def meaning(error: BaseException) -> BaseException:
    """
    What an error on a connection means in our words; itself if nothing.
    """
    if isinstance(error, AuthenticationError):
        return Unauthenticated(f"the bus refuses the credentials: {error}")
    return refusal(error) if isinstance(error, ResponseError) else error


def refusal(error: ResponseError) -> Exception:
    """
    What an error reply of the server means in our words; itself if nothing.
    """
    text = str(error)
    # redis-py cuts the codes that it knows off the text.
    word = error_word(error)
    if word == "OOM":
        return Overloaded(f"the bus is out of memory: {text}")
    if word == "NOPERM":
        return Forbidden(f"the bus refuses: {text}. Rights of a MAD: bus/README.md")
    if word in ("NOAUTH", "WRONGPASS"):
        return Unauthenticated(f"the bus refuses the credentials: {text}")
    if word in PASSING:
        return Unavailable(f"the bus refuses for now: {text}")
    return error


def error_word(error: ResponseError) -> str:
    """
    The code that an error reply begins with, for example `NOGROUP`.
    """
    return getattr(error, "status_code", None) or str(error).partition(" ")[0]


async def read_reply(connection: Connection) -> Any:
    """
    The next reply; an error reply is returned, a broken connection raised.

    Reads from the connection's own parser, the one private name of redis-py that
    we touch: its public way costs as much again per reply, for a timeout and an
    error text that nobody asks for. `tests/unit/test_wire.py` holds it to this.
    """
    parser: Any = connection._parser  # noqa: SLF001 - as told above
    return await parser.read_response(disable_decoding=True)

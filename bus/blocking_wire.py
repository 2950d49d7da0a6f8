"""
Blocking connections to the bus: for the heartbeat thread, and for the end of the
interpreter, when no event loop runs any more.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from redis import ConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import AskError, MovedError, RedisError, ResponseError
from redis.retry import Retry

from everbus.bus.cluster_nodes import MAX_HOPS, redirect_address
from everbus.bus.cluster_routing import is_cluster, key_of, slot_of
from everbus.bus.connector import check_role
from everbus.bus.known_nodes import KnownNodes, known_nodes
from everbus.bus.sentinel import (
    SentinelAddress,
    find_primary_blocking,
    is_sentinel,
    sentinel_address,
)
from everbus.bus.wire import Argument, Command, Wire, WireFailed

LAST_DEADLINE_S = 3.0


def blocking_connection(url: str, *, name: str, deadline_s: float) -> Any:
    """
    A connection to the bus at *url*, connected; redis-py types none of its calls.

    Raises:
        OSError, RedisError: the bus cannot be reached.
    """
    pool = _pool(
        url,
        protocol=2,
        decode_responses=False,
        socket_timeout=deadline_s,
        socket_connect_timeout=deadline_s,
        retry=Retry(NoBackoff(), 0),
        client_name=name,
        driver_info=None,
    )
    connection = pool.make_connection()
    try:
        connection.connect()
    except BaseException:
        connection.disconnect()
        raise

    return connection


class BlockingExchange(Wire):
    """
    The interface of a Wire on a blocking connection; it inherits `call`.

    Its coroutines never wait: any event loop may run them, also at the end of the
    interpreter, when asyncio cannot look up names any more.
    """

    def __init__(self, url: str, mad: str) -> None:
        self._url = url
        self._client_name = f"mad-{mad}"
        self._blocking: Any = None

    @property
    def connected(self) -> bool:
        """
        Whether the last exchange left a usable connection.
        """
        return self._blocking is not None

    async def exchange(
        self, commands: Sequence[Command], *, timeout_s: float = LAST_DEADLINE_S
    ) -> list[Any]:
        """
        Send *commands* one by one; return the replies in order.

        Raises:
            WireFailed: the connection broke; the effect of the commands is unknown.
        """
        try:
            if self._blocking is None:
                self._blocking = blocking_connection(
                    self._url, name=self._client_name, deadline_s=timeout_s
                )
            return [self._reply(command) for command in commands]
        except (OSError, RedisError) as error:
            await self.close()
            raise WireFailed(f"no connection to the bus: {error}") from error

    async def close(self) -> None:
        """
        Close the connection, if there is one.
        """
        connection, self._blocking = self._blocking, None
        if connection is not None:
            connection.disconnect()

    def _reply(self, command: Command) -> Any:
        self._blocking.send_command(*command, check_health=False)
        try:
            return self._blocking.read_response()
        except ResponseError as error:
            return error


class BlockingWires(NamedTuple):
    """
    Factory of blocking connections to one cluster.

    It has the part of redis-py's `ConnectionPool` that the heartbeat thread uses.
    """

    nodes: KnownNodes
    options: dict[str, Any]

    @classmethod
    def from_url(cls, url: str, **options: Any) -> "BlockingWires":
        """
        A factory for the cluster at *url*; *options* go to redis-py's connections.
        """
        return cls(known_nodes(url), options)

    def make_connection(self) -> "BlockingWire":
        """
        A `BlockingWire` that is not connected to any node yet.
        """
        return BlockingWire(*self)


class BlockingWire:
    """
    Blocking connections to the nodes of a cluster; one command at a time.

    It has the part of redis-py's `Connection` that the heartbeat thread uses.
    """

    def __init__(self, nodes: KnownNodes, options: dict[str, Any]) -> None:
        self._nodes = nodes
        self._options = options
        self._connections: dict[str, Any] = {}  # redis-py types none of its calls
        self._slots: dict[int, str] = {}
        self._command: Command = ()

    def connect(self) -> None:
        """
        Do nothing: a node is connected when the first command needs it.
        """

    def send_command(self, *command: Argument, check_health: bool = False) -> None:
        """
        Keep the next command; `read_response` sends it.
        """
        self._command = command

    def read_response(self) -> Any:
        """
        The reply to the last command.

        Raises:
            OSError, RedisError: as redis-py's connection raises them.
        """
        slot = slot_of(key_of(self._command) or "")
        address = self._slots.get(slot) or self._nodes.candidates()[0]
        asking = False
        for _ in range(MAX_HOPS):
            try:
                return self._reply(address, asking=asking)
            except AskError as redirect:
                asking = not isinstance(redirect, MovedError)
                address = redirect_address(redirect, address)
                if not asking:
                    self._slots[slot] = address
                    self._nodes.note(address)
        raise RedisError(f"no node admits to serve slot {slot}")

    def disconnect(self) -> None:
        """
        Close every connection.
        """
        connections, self._connections = self._connections, {}
        for connection in connections.values():
            connection.disconnect()

    def _reply(self, address: str, *, asking: bool) -> Any:
        connection = self._connections.get(address) or self._connected(address)
        if asking:
            connection.send_command("ASKING", check_health=False)
            connection.read_response()
        connection.send_command(*self._command, check_health=False)
        return connection.read_response()

    def _connected(self, address: str) -> Any:
        pool = ConnectionPool.from_url(self._nodes.url(address), **self._options)
        connection: Any = pool.make_connection()
        try:
            connection.connect()
        except BaseException:
            self._nodes.note_away(address)
            raise
        self._connections[address] = connection

        return connection


class BlockingPrimary:
    """
    Blocking connections to the primary that the Sentinels name.

    It has the part of redis-py's `ConnectionPool` that the heartbeat thread uses.
    """

    def __init__(self, bus: SentinelAddress, options: dict[str, Any]) -> None:
        self._bus = bus
        self._options = options
        self._connection: Any = None  # redis-py types none of its calls

    def make_connection(self) -> "BlockingPrimary":
        """
        The connection itself, which is not connected yet.
        """
        return self

    def connect(self) -> None:
        """
        Look the primary up and connect to it.

        Raises:
            OSError, RedisError: the Sentinels name none, or it has another role.
        """
        address = find_primary_blocking(self._bus)
        pool = ConnectionPool.from_url(self._bus.server_url(address), **self._options)
        self._connection = pool.make_connection()
        self._connection.connect()
        self.send_command("HELLO", "2")
        check_role(self.read_response(), address)

    def send_command(self, *command: Any, check_health: bool = False) -> None:
        """
        Send one command.
        """
        self._connection.send_command(*command, check_health=check_health)

    def read_response(self) -> Any:
        """
        The next reply; an error reply is raised.
        """
        return self._connection.read_response()

    def disconnect(self) -> None:
        """
        Close the connection, if there is one.
        """
        if self._connection is not None:
            self._connection.disconnect()


def _pool(url: str, **options: Any) -> Any:
    if is_sentinel(url):
        return BlockingPrimary(sentinel_address(url), options)
    if is_cluster(url):
        return BlockingWires.from_url(url, **options)
    return ConnectionPool.from_url(url, **options)

"""
A Redis Cluster behind blocking connections, for who has no event loop.
"""

import random
from typing import Any, NamedTuple

from redis import ConnectionPool
from redis.exceptions import AskError, MovedError, RedisError

from bus.nodes import MAX_HOPS, told_address
from bus.routing import Places, key_of, places_in, slot_of
from bus.wire import Argument, Command


class Lines(NamedTuple):
    """
    What makes lines to one cluster; it has what is used of `ConnectionPool`.
    """

    places: Places
    options: dict[str, Any]

    @classmethod
    def from_url(cls, url: str, **options: Any) -> "Lines":
        """
        To the cluster at *url*, by connections of redis-py's with these *options*.
        """
        return cls(places_in(url), options)

    def make_connection(self) -> "Line":
        """
        A line that is not connected to any node yet.
        """
        return Line(*self)


class Line:
    """
    Connections to the nodes of a cluster, for one command about a key at a time.

    It has what is used of redis-py's `Connection`.
    """

    def __init__(self, places: Places, options: dict[str, Any]) -> None:
        self._places = places
        self._options = options
        self._connections: dict[str, Any] = {}  # redis-py types none of its calls
        self._slots: dict[int, str] = {}
        self._command: Command = ()

    def connect(self) -> None:
        """
        Connect to no node before a command needs it.
        """

    def send_command(self, *command: Argument, check_health: bool = False) -> None:
        """
        Take the next command; it is sent when its reply is wanted.
        """
        self._command = command

    def read_response(self) -> Any:
        """
        The reply to the last command.

        Raises:
            OSError, RedisError: as of redis-py's connection.
        """
        slot = slot_of(key_of(self._command) or "")
        address = self._slots.get(slot) or random.choice(self._places.addresses)  # noqa: S311
        asking = False
        for _ in range(MAX_HOPS):
            try:
                return self._reply(address, asking=asking)
            except AskError as told:
                asking = not isinstance(told, MovedError)
                address = told_address(told, address)
                if not asking:
                    self._slots[slot] = address
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
        pool = ConnectionPool.from_url(self._places.url(address), **self._options)
        connection: Any = pool.make_connection()
        connection.connect()
        self._connections[address] = connection

        return connection

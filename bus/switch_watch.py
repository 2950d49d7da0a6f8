"""
The Sentinels' announcements of another primary, as hints only.

A connection to a former primary may stay open and silent: its server hangs, or its host
is cut off. Worse, in an orderly failover the former primary goes on serving for
seconds, and a replica of it confirms writes that both then drop. A hint closes the
connection, before the other server is promoted; the next exchange asks anew.
"""

import asyncio
from typing import Any
from weakref import WeakKeyDictionary

from redis.asyncio import Connection
from redis.exceptions import RedisError

from everbus.bus.backoff import HALF_JITTER, Backoff
from everbus.bus.sentinel import ASK_TIMEOUT_S, SentinelAddress, open_sentinel

SWITCHED = "+switch-master"
# Published by the leader about 100 ms before it promotes another server.
PROMOTING = "+failover-state-send-slaveof-noone"
# Short commands end before, so they never listen.
LISTEN_AFTER_S = 1.0
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.5, 5.0


class SwitchWatch:
    """
    The open connections to one bus, closed when their server is the primary no more.

    It listens to every Sentinel while a connection is open.
    """

    def __init__(self, bus: SentinelAddress) -> None:
        self._bus = bus
        self._open: dict[Connection, str] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def add(self, connection: Connection, address: str) -> None:
        """
        Watch a connection to the primary at *address*.
        """
        self._open[connection] = address
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(self._listen(one)) for one in self._bus.sentinels
            ]

    def discard(self, connection: Connection) -> None:
        """
        Watch a closed connection no more.
        """
        self._open.pop(connection, None)
        if not self._open:
            tasks, self._tasks = self._tasks, []
            for task in tasks:
                task.cancel()

    async def note(self, announced: str) -> None:
        """
        Close the connections to the primary of yesterday.

        Args:
            announced: `NAME host port new-host new-port` of SWITCHED, or
                `slave … @ NAME host port` of PROMOTING.
        """
        words = announced.rpartition("@ ")[2].split(" ")
        if len(words) < 3 or words[0] != self._bus.name:
            return
        host, port = words[1:3]
        former = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        for connection, address in list(self._open.items()):
            if address == former:
                await connection.disconnect(nowait=True)

    async def _listen(self, sentinel: str) -> None:
        await asyncio.sleep(LISTEN_AFTER_S)
        backoff = Backoff(FIRST_BACKOFF_S, MAX_BACKOFF_S, jitter=HALF_JITTER)
        while True:
            try:
                await self._follow(sentinel, backoff)
            except (RedisError, OSError, TimeoutError, RuntimeError):
                # Not logged: every connection asks the Sentinels, and that is.
                await asyncio.sleep(backoff.next_s())

    async def _follow(self, sentinel: str, backoff: Backoff) -> None:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            connection = await open_sentinel(self._bus, sentinel)
        try:
            await connection.send_command(
                "SUBSCRIBE", SWITCHED, PROMOTING, check_health=False
            )
            while True:
                kind, _, message = await connection.read_response(timeout=None)
                backoff.reset()
                if kind == "message":
                    await self.note(message)
        finally:
            await connection.disconnect(nowait=True)


# One per event loop and bus: a process with forty connections listens once. It holds
# no answer of a server, so nothing here can be out of date.
_WATCHES: WeakKeyDictionary[Any, dict[str, SwitchWatch]]
_WATCHES = WeakKeyDictionary()


def switch_watch(bus: SentinelAddress) -> SwitchWatch:
    """
    The watch of *bus* in the running event loop.
    """
    watches = _WATCHES.setdefault(asyncio.get_running_loop(), {})
    key = f"{bus.name}@{','.join(bus.sentinels)}"

    return watches.setdefault(key, SwitchWatch(bus))

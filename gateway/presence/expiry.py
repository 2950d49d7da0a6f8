"""
Being told by the server that a lease has expired: a hint, and never more.

Such messages are lost while nobody listens, come late where many keys expire, and
can be forged. So they only say whom to look at first, and nothing depends on them.
"""

import asyncio
from collections.abc import Callable, Sequence

from redis.exceptions import ResponseError

from bus.errors import Forbidden
from bus.subscription import Subscription
from bus.wire import Wire
from gateway.store.leases import LEASE_PREFIX, Notified

# Only expired leases, each on the channel of its own key.
LEASES_PATTERN = f"__keyspace@*__:{LEASE_PREFIX}*"
# Every expired key of the server, on one channel.
EXPIRED_PATTERN = "__keyevent@*__:expired"
# More than that at once are a reason to look at all.
MAX_HINTS = 1000

_PREFIX = LEASE_PREFIX.encode()


async def notified_by(wire: Wire) -> Notified:
    """
    How the server tells of expired leases, by its `notify-keyspace-events`.

    Raises:
        WireFailed: the connection broke.
        Unavailable: the server refuses for now.
    """
    try:
        told = await wire.call("CONFIG", "GET", "notify-keyspace-events")
    except (Forbidden, ResponseError):
        # Managed servers do not tell, also if they do notify.
        return "forbidden"
    flags = set((told[1] if told else b"").decode())
    if not flags & {"x", "A"}:
        return "off"
    if "K" in flags:
        return "keyspace"
    return "keyevent" if "E" in flags else "off"


class Expiries:
    """
    The expired leases that the server has told of and nobody has looked at yet.

    Args:
        urls: every node that serves the slot of {mads}, since a node tells of its
            own keys only. Outside a Cluster there is one.
        wake: is called when there is something to look at.

    Attributes:
        notified: how the server tells; empty before the first `look`.
    """

    def __init__(self, urls: Sequence[str], wake: Callable[[], None]) -> None:
        self.notified: Notified = ""
        self._urls = urls
        self._wake = wake
        self._members: set[str] = set()
        self._missed = False
        self._listening: list[asyncio.Task[None]] = []

    async def look(self, wire: Wire) -> None:
        """
        Listen in the way in which the server tells now.

        Raises:
            WireFailed: the connection broke.
            Unavailable: the server refuses for now.
        """
        notified = await notified_by(wire)
        if notified == self.notified:
            return
        await self.close()
        self.notified = notified
        if notified == "off":
            return
        pattern = EXPIRED_PATTERN if notified == "keyevent" else LEASES_PATTERN
        self._listening = [
            asyncio.create_task(self._subscription(url, pattern).run())
            for url in self._urls
        ]

    async def close(self) -> None:
        """
        Listen no more.
        """
        listening, self._listening = self._listening, []
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)

    def __bool__(self) -> bool:
        """
        Whether there is a hint, or may have been one while nobody listened.
        """
        return self._missed or bool(self._members)

    def take(self) -> set[str]:
        """
        The `<mad>:<instance>` of all hints since the last call.
        """
        members, self._members = self._members, set()
        self._missed = False

        return members

    def _subscription(self, url: str, pattern: str) -> Subscription:
        return Subscription(
            url, pattern, on_match=self._told, on_subscribed=self._reconcile
        )

    def _reconcile(self) -> None:
        self._missed = True
        self._wake()

    def _told(self, channel: bytes, said: bytes) -> None:
        if channel.startswith(b"__keyspace@"):
            if said != b"expired":
                return
            key = channel.partition(b"__:")[2]
        else:
            key = said
        if key.startswith(_PREFIX) and len(self._members) < MAX_HINTS:
            self._members.add(key[len(_PREFIX) :].decode(errors="replace"))
            self._wake()

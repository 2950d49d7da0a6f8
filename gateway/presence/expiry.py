"""
Redis notifications of expired leases, as hints only.

Notifications are lost while nobody subscribes, arrive late when many keys expire, and
can be forged. So they only start a sweep early, and nothing depends on them.
"""

import asyncio
from collections.abc import Callable, Sequence

from redis.exceptions import ResponseError

from everbus.bus.errors import Forbidden
from everbus.bus.subscription import Subscription
from everbus.bus.wire import Wire
from everbus.gateway.store.lease_records import LEASE_PREFIX, Notified

# Expired leases only, each on the channel of its key.
LEASES_PATTERN = f"__keyspace@*__:{LEASE_PREFIX}*"
# All expired keys of the server, on one channel.
EXPIRED_PATTERN = "__keyevent@*__:expired"
# Hints kept at once; further ones are dropped, since the sweep sees all leases.
MAX_HINTS = 1000

_PREFIX = LEASE_PREFIX.encode()


async def notification_mode(wire: Wire) -> Notified:
    """
    The server's notification of expired leases, from `notify-keyspace-events`.

    Raises:
        WireFailed: the connection broke.
        Unavailable: the server refuses for now.
    """
    try:
        reply = await wire.call("CONFIG", "GET", "notify-keyspace-events")
    except (Forbidden, ResponseError):
        # Managed servers hide the setting, even if they notify.
        return "forbidden"
    flags = set((reply[1] if reply else b"").decode())
    if not flags & {"x", "A"}:
        return "off"
    if "K" in flags:
        return "keyspace"
    return "keyevent" if "E" in flags else "off"


class ExpiryHints:
    """
    Expired leases that the server has reported and no sweep has seen.

    Args:
        urls: gives every node that may serve the slot of {mads}, since a node reports
            its own keys only. Outside a Cluster there is one.
        wake: callback for a new hint.

    Attributes:
        mode: the server's notification; empty before the first `refresh`.
    """

    def __init__(
        self, urls: Callable[[], Sequence[str]], wake: Callable[[], None]
    ) -> None:
        self.mode: Notified = ""
        self._urls = urls
        self._listened: tuple[str, ...] = ()
        self._wake = wake
        self._members: set[str] = set()
        self._missed = False
        self._subscriptions: list[asyncio.Task[None]] = []

    async def refresh(self, wire: Wire) -> None:
        """
        Subscribe according to the server's present mode.

        Raises:
            WireFailed: the connection broke.
            Unavailable: the server refuses for now.
        """
        mode = await notification_mode(wire)
        urls = tuple(self._urls())
        if mode == self.mode and urls == self._listened:
            return
        await self.close()
        self.mode, self._listened = mode, urls
        if mode == "off":
            return
        pattern = EXPIRED_PATTERN if mode == "keyevent" else LEASES_PATTERN
        self._subscriptions = [
            asyncio.create_task(self._subscription(url, pattern).run()) for url in urls
        ]

    async def close(self) -> None:
        """
        End the subscriptions.
        """
        subscriptions, self._subscriptions = self._subscriptions, []
        for task in subscriptions:
            task.cancel()
        await asyncio.gather(*subscriptions, return_exceptions=True)

    def __bool__(self) -> bool:
        """
        Whether there is a hint, or may have been one without a subscription.
        """
        return self._missed or bool(self._members)

    def take(self) -> set[str]:
        """
        `<mad>:<instance>` of all hints since the last call.
        """
        members, self._members = self._members, set()
        self._missed = False

        return members

    def _subscription(self, url: str, pattern: str) -> Subscription:
        return Subscription(
            url, pattern, on_match=self._on_message, on_subscribed=self._on_subscribed
        )

    def _on_subscribed(self) -> None:
        self._missed = True
        self._wake()

    def _on_message(self, channel: bytes, message: bytes) -> None:
        if channel.startswith(b"__keyspace@"):
            if message != b"expired":
                return
            key = channel.partition(b"__:")[2]
        else:
            key = message
        if key.startswith(_PREFIX) and len(self._members) < MAX_HINTS:
            self._members.add(key[len(_PREFIX) :].decode(errors="replace"))
            self._wake()

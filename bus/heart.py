"""
Heartbeats: one thread tells the managers, a third of the TTL apart, that we live.

A thread with a connection of its own, since an event loop that computes or blocks
for a minute is no reason to be declared dead; only code that holds the interpreter
itself can starve it. What it publishes is read by the lane of leases alone.
"""

import random
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import structlog
from redis import ConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from bus.codec import COMMAND_FIELD, pack, pack_envelope
from bus.errors import Forbidden, Unauthenticated
from bus.keys import CONFIG, PRESENCE, ingress
from bus.lease import Lease
from bus.line import Lines
from bus.messages import SCHEMA, Envelope
from bus.routing import is_cluster
from bus.wire import Argument, meaning

log = structlog.get_logger()

JOIN = "instance.join"
BEAT = "instance.beat"
LEAVE = "instance.leave"
# Heartbeats that nobody reads do not fill the server: only the newest of an
# instance counts, so the oldest of the MAD may go. Commands are never trimmed so.
MAX_HEARTBEATS = 10_000
BEATS_PER_TTL = 3
# At most; and never so long that fewer than two more tries fit into the TTL.
DEADLINE_S = 3.0
FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 2.0
# What a clean close waits for the goodbye.
CLOSE_S = 2.0


def _unheard(_: int) -> None:
    """
    Nobody wants to know.
    """


class Heart:
    """
    The heartbeats of one instance, from `start` to `close`.

    The thread is a daemon: no exit of the interpreter waits for it, and a forked
    child has none. Whoever ends without `close` is missed when the TTL is over.
    """

    def __init__(
        self,
        url: str,
        mad: str,
        lease: Lease,
        *,
        on_tried: Callable[[], None] | None = None,
        on_lost: Callable[[int], None] = _unheard,
    ) -> None:
        """
        Take what is to be called, in the heart's own thread; it must not wait.

        Args:
            on_tried: once, after the first heartbeat, whatever came of it.
            on_lost: with the epoch that ended, when the next one is on the bus.
        """
        self._url = url
        self._mad = mad
        self._lease = lease
        self._on_tried = on_tried
        self._on_lost = on_lost
        self._connection: Any = None  # redis-py types none of its calls
        self._joined = 0
        self._count = 0
        self._failures = 0
        self._refused = False
        self._closing = threading.Event()
        self._thread = threading.Thread(
            target=self._live, name=f"everbus-heart-{mad}", daemon=True
        )

    def start(self) -> None:
        """
        Begin to beat; the first one joins.
        """
        self._thread.start()

    def close(self) -> None:
        """
        Give the lease up and end, within CLOSE_S; the lease lapses if that fails.
        """
        self._closing.set()
        self._lease.news.set()
        self._thread.join(CLOSE_S)

    def _live(self) -> None:
        while True:
            # Here it may move on by itself, which is no news after the next line.
            self._lease.epoch()
            self._lease.news.clear()
            # Behind the clearing: whoever closes sets this first.
            if self._closing.is_set():
                break
            self._lease.news.wait(self._beat())
        self._say_goodbye()
        self._disconnect()

    def _beat(self) -> float:
        """
        Publish one heartbeat, or try to; how many seconds the next one has time.
        """
        began = self._lease.now()
        epoch = self._lease.epoch()
        try:
            self._publish(BEAT if epoch == self._joined else JOIN, epoch)
            self._joined = epoch
            over = self._lease.beaten(epoch, began)
        except Exception as error:  # noqa: BLE001 - a heart that stops is a MAD lost
            return self._delayed(error)
        finally:
            self._tell_tried()
        self._recovered()
        if over:
            self._on_lost(over)
        due = began + self._lease.ttl_s / BEATS_PER_TTL

        return max(0.0, due - self._lease.now())

    def _publish(self, kind: str, epoch: int) -> None:
        if self._connection is None:
            self._connect()
        if kind == JOIN:
            self._learn_ttl()
        self._count += 1
        instance = self._lease.instance
        envelope = Envelope(
            v=SCHEMA,
            id=f"{instance}.{epoch}.{self._count}",
            kind=kind,
            body=msgspec.Raw(pack({"instance": instance, "epoch": epoch})),
        )
        stream = ingress(PRESENCE, self._mad)
        limit = ("MAXLEN", "~", MAX_HEARTBEATS)
        packed = pack_envelope(envelope)
        self._call("XADD", stream, *limit, "*", COMMAND_FIELD, packed)

    def _connect(self) -> None:
        deadline_s = min(DEADLINE_S, self._lease.ttl_s / 6)
        pool = (Lines if is_cluster(self._url) else ConnectionPool).from_url(
            self._url,
            protocol=2,
            decode_responses=False,
            socket_timeout=deadline_s,
            socket_connect_timeout=deadline_s,
            retry=Retry(NoBackoff(), 0),
            client_name=f"mad-{self._mad}-heart",
            driver_info=None,
        )
        self._connection = pool.make_connection()
        self._connection.connect()

    def _learn_ttl(self) -> None:
        """
        Ask how long leases are by now; who beats too seldom for it is lost only once.
        """
        [lease_ms] = self._call("HMGET", CONFIG, "lease_ms")
        if lease_ms is not None:
            self._lease.ttl_s = int(lease_ms) / 1000

    def _call(self, *command: Argument) -> Any:
        self._connection.send_command(*command, check_health=False)

        return self._connection.read_response()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()

    def _delayed(self, error: Exception) -> float:
        """
        Note a failure, one line of log an outage; how many seconds to wait.
        """
        self._disconnect()
        meant = meaning(error)
        self._failures += 1
        if isinstance(meant, Forbidden | Unauthenticated):
            if not self._refused:
                log.error("heartbeats.refused", mad=self._mad, error=str(meant))
            self._refused = True
            return self._lease.ttl_s
        if self._failures == 1:
            known = isinstance(error, OSError | RedisError)
            log.warning(
                "heartbeats.delayed",
                mad=self._mad,
                error=str(meant),
                exc_info=None if known else error,
            )
        most_s = min(MAX_BACKOFF_S, self._lease.ttl_s / 12)
        doubled: float = FIRST_BACKOFF_S * 2 ** min(self._failures - 1, 10)

        return min(most_s, doubled) * random.uniform(0.5, 1.5)  # noqa: S311

    def _recovered(self) -> None:
        if self._failures:
            log.info("heartbeats.resumed", mad=self._mad, failures=self._failures)
        self._failures = 0
        self._refused = False

    def _tell_tried(self) -> None:
        tell, self._on_tried = self._on_tried, None
        if tell is not None:
            tell()

    def _say_goodbye(self) -> None:
        """
        Give the lease up, on a new connection if the old one has died unnoticed.
        """
        if self._failures or not self._joined:
            return
        for _ in range(2):
            try:
                self._publish(LEAVE, self._joined)
            except (OSError, RedisError):
                self._disconnect()
            else:
                return

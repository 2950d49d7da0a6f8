"""
Heartbeats: one thread publishes them, three per TTL.

The thread has a connection of its own, since an event loop that computes or blocks
for a minute is no reason to be declared dead; only code that holds the interpreter
itself can starve it. Only the lane of leases reads the heartbeats.
"""

import threading
from collections.abc import Callable
from typing import Any

import msgspec
import structlog
from redis.exceptions import NoPermissionError, RedisError

from everbus.bus.backoff import HALF_JITTER, Backoff
from everbus.bus.blocking_wire import blocking_connection
from everbus.bus.errors import Forbidden, Unauthenticated
from everbus.bus.keys import CONFIG, MADS, NEWS, PRESENCE, ingress
from everbus.bus.lease import Lease
from everbus.bus.messages import COMMAND_FIELD, SCHEMA, Envelope, pack, pack_envelope
from everbus.bus.server_errors import translated
from everbus.bus.wire import Argument

log = structlog.get_logger()

JOIN = "instance.join"
BEAT = "instance.beat"
LEAVE = "instance.leave"
# Unread heartbeats must not fill the server. Only the newest of an instance counts, so
# the oldest of the MAD may go. Commands are never trimmed so.
MAX_HEARTBEATS = 10_000
BEATS_PER_TTL = 3
# At most; two more tries must fit into the TTL.
DEADLINE_S = 3.0
FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 2.0
# How long a clean close waits for the last message.
CLOSE_S = 2.0


def _ignore(_: int) -> None:
    """
    Ignore a lost epoch.
    """


class HeartbeatThread:
    """
    The heartbeats of one instance, from `start` to `close`.

    The thread is a daemon: no exit of the interpreter waits for it, and a forked
    child has none. An instance that ends without `close` is declared lost after the
    TTL.
    """

    def __init__(
        self,
        url: str,
        mad: str,
        lease: Lease,
        *,
        on_tried: Callable[[], None] | None = None,
        on_lost: Callable[[int], None] = _ignore,
    ) -> None:
        """
        Keep the callbacks, which run in this thread and must not block.

        Args:
            on_tried: called once, after the first heartbeat succeeded or failed.
            on_lost: called with the ended epoch, when the next one is on the bus.
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
        self._registers = True
        self._closing = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"everbus-heartbeat-{mad}", daemon=True
        )

    def start(self) -> None:
        """
        Start the thread; the first heartbeat joins.
        """
        self._thread.start()

    def close(self) -> None:
        """
        Give up the lease and end, within CLOSE_S; if that fails, the lease expires.
        """
        self._closing.set()
        self._lease.changed.set()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while True:
            # May advance the epoch, which is no change any more after the next line.
            self._lease.epoch()
            self._lease.changed.clear()
            # After the clearing: `close` sets this first.
            if self._closing.is_set():
                break
            self._lease.changed.wait(self._beat())
        self._publish_leave()
        self._disconnect()

    def _beat(self) -> float:
        """
        Try to publish one heartbeat; return the seconds until the next one is due.
        """
        began = self._lease.now()
        epoch = self._lease.epoch()
        try:
            self._publish(BEAT if epoch == self._joined else JOIN, epoch)
            self._joined = epoch
            ended = self._lease.heartbeat_published(epoch, began)
        except Exception as error:  # noqa: BLE001 - without heartbeats the MAD is lost
            return self._note_failure(error)
        finally:
            self._report_first_try()
        self._note_success()
        if ended:
            self._on_lost(ended)
        if self._registers:
            self._register()
        due = began + self._lease.ttl_s / BEATS_PER_TTL

        return max(0.0, due - self._lease.now())

    def _publish(self, kind: str, epoch: int) -> None:
        if self._connection is None:
            self._connect()
        if kind == JOIN:
            self._read_ttl()
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

    def _register(self) -> None:
        """
        Enter the MAD in the list of MADs again, if the bus has lost it with its memory:
        nobody would read its streams. On a bus with ACL `everbus mads add` does that.

        The heartbeat is on the bus, whatever becomes of this: on a Cluster another node
        has the list, which may be away or full. The next heartbeat tries again.
        """
        try:
            if self._call("HSETNX", MADS, self._mad, "{}"):
                log.warning("mad.registered_again", mad=self._mad)
                self._call("PUBLISH", NEWS, "mads")
        except NoPermissionError:
            self._registers = False
        except Exception as error:  # noqa: BLE001 - no heartbeat fails of it
            log.debug("mad.not_registered", mad=self._mad, error=str(translated(error)))
            self._disconnect()

    def _connect(self) -> None:
        deadline_s = min(DEADLINE_S, self._lease.ttl_s / 6)
        self._connection = blocking_connection(
            self._url, name=f"mad-{self._mad}-heart", deadline_s=deadline_s
        )

    def _read_ttl(self) -> None:
        """
        Read the current TTL, so that a shortened TTL costs at most one loss.
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

    def _note_failure(self, error: Exception) -> float:
        """
        Count a failure, log it once per outage, return the seconds to wait.
        """
        self._disconnect()
        cause = translated(error)
        self._failures += 1
        if isinstance(cause, Forbidden | Unauthenticated):
            if not self._refused:
                log.error("heartbeats.refused", mad=self._mad, error=str(cause))
            self._refused = True
        elif self._failures == 1:
            known = isinstance(error, OSError | RedisError)
            log.warning(
                "heartbeats.delayed",
                mad=self._mad,
                error=str(cause),
                exc_info=None if known else error,
            )
        most_s = min(MAX_BACKOFF_S, self._lease.ttl_s / 12)
        backoff = Backoff(FIRST_BACKOFF_S, most_s, jitter=HALF_JITTER)

        return backoff.after(self._failures)

    def _note_success(self) -> None:
        if self._failures:
            log.info("heartbeats.resumed", mad=self._mad, failures=self._failures)
        self._failures = 0
        self._refused = False

    def _report_first_try(self) -> None:
        report, self._on_tried = self._on_tried, None
        if report is not None:
            report()

    def _publish_leave(self) -> None:
        """
        Give up the lease, on a new connection if the old one is broken.
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

"""
The `mads` lane: heartbeats become leases, and silence becomes a loss.

Like any lane it has one owner at a time, and every script that it runs checks that.
A pass applies what the MADs have published, then looks whose lease is over, then
tells the partitions: in this order, so that nobody is taken for dead whose heartbeat
only waited to be read. What lies in Redis is all there is to know, so whatever goes
wrong has one remedy: begin the pass anew.
"""

import asyncio
import time
from contextlib import suppress

import structlog

from bus import keys
from bus.cluster import wire_to
from bus.codec import pack
from bus.errors import EverbusError
from bus.routing import node_urls
from bus.wire import Command
from gateway import metrics
from gateway.errors import Disturbed, Superseded
from gateway.lane import FIRST_RETRY_S, LaneParts
from gateway.presence.expiry import Expiries
from gateway.presence.heartbeats import Heard, heard_in
from gateway.presence.roll import CHUNK, MAX_LIVING, Instance, Lost, Roll
from gateway.presence.tidings import Tidings
from gateway.store.scripts import load_scripts

log = structlog.get_logger()

# How long heartbeats gather before they are read: one batch is much cheaper.
POLL_S = 0.25
SWEEP_S = 1.0
# Sweeps that hints ask for are so far apart, so that many hints share one.
HINT_S = 0.02
# Sweeps in a row, before heartbeats are read again.
ROUNDS = 20
# Entries of one MAD a pass, at most; fewer if each may be told to many partitions.
READ_ENTRIES = 256
READ_TOLD = 8192
# How often the server is asked whether it tells of expired keys.
LOOK_S = 30.0
# How often one MAD's rubbish is logged.
QUIET_S = 60.0
# After what a partition refuses to be told.
RETELL_S = 1.0
MAX_RETRY_S = 1.0


class Presence:
    """
    Watches over the leases while *owner* is the value of the lane's owner key.

    Attributes:
        number: what stands for this lane where others have their number.
        polled_at: monotonic time of the last completed exchange.
    """

    number = keys.PRESENCE

    def __init__(self, owner: str, parts: LaneParts) -> None:
        self.owner = owner
        self.polled_at = time.monotonic()
        self._fail = parts.fail
        self._wire = wire_to(parts.redis_url, name=f"everbus-lane-{self.number}")
        self._roll = Roll(self._wire, owner, parts.lease_ttl_ms)
        self._tidings = Tidings(self._wire, owner, parts.partitions, parts.fail)
        self._news = asyncio.Event()
        self._expiries = Expiries(node_urls(parts.redis_url), self._news.set)
        self._share = max(8, min(READ_ENTRIES, READ_TOLD // parts.partitions))
        self._mads: frozenset[str] = frozenset()
        self._stopping = False
        self._sweep_at = 0.0
        self._swept_at = 0.0
        self._look_at = 0.0
        self._tell_at: float | None = 0.0
        self._untold_since: float | None = None
        self._logged_at: dict[str, float] = {}

    def admit(self, mads: frozenset[str]) -> None:
        """
        Read the heartbeats of these MADs from the next pass on.
        """
        self._mads = mads

    def stop(self) -> None:
        """
        Finish the pass, then let `run` return.
        """
        self._stopping = True
        self._news.set()

    def oldest_age_s(self) -> float:
        """
        For how long some loss has not been told to all partitions; 0 if none waits.
        """
        since = self._untold_since

        return 0.0 if since is None else time.monotonic() - since

    async def run(self) -> None:
        """
        Watch until stopped; survives every disturbance of the bus.

        Raises:
            Superseded: another replica owns the lane.
        """
        wait_s = FIRST_RETRY_S
        try:
            while not await self._watches():
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, MAX_RETRY_S)
        finally:
            await self._expiries.close()
            await self._wire.close()
            metrics.LEASES.set(0)

    async def _watches(self) -> bool:
        """
        Watch until stopped or disturbed; whether it was to stop.
        """
        try:
            await self._watch()
        except EverbusError as error:
            cause = error.cause if isinstance(error, Disturbed) else error.code
            log.warning("presence.disturbed", cause=cause, error=error.message)
            metrics.DISTURBED.labels(cause).inc()
        except Superseded:
            raise
        except Exception:  # a defect must not end the other lanes
            log.exception("presence.failed")
            metrics.DISTURBED.labels("defect").inc()
        return self._stopping

    async def _watch(self) -> None:
        """
        Pass after pass, until stopped.
        """
        await load_scripts(self._wire)
        # Whatever an owner before us has not finished is ours to finish.
        self._sweep_at = self._look_at = self._tell_at = 0.0
        while True:
            more = await self._read()
            if self._is_due():
                more |= await self._sweep()
            more |= await self._tell()
            if self._stopping:
                return
            if not more:
                await self._pause()

    async def _read(self) -> bool:
        """
        Apply what the MADs have published; whether there may be more of it.

        Always from the beginning: what was applied is not there any more.
        """
        mads = sorted(self._mads)
        heard: dict[str, Heard] = {}
        if mads:
            streams = [keys.ingress(self.number, mad) for mad in mads]
            starts = ["0"] * len(mads)
            found = await self._wire.call(
                "XREAD", "COUNT", self._share, "STREAMS", *streams, *starts
            )
            for key, entries in found or ():
                heard[key.decode().partition(":in:")[2]] = heard_in(entries)
        self._polled()
        if heard:
            await self._apply(heard)
        return any(len(told.ids) == self._share for told in heard.values())

    async def _apply(self, heard: dict[str, Heard]) -> None:
        over: list[Instance] = []
        for mad, applied in (await self._roll.apply(heard)).items():
            self._count(mad, heard[mad], applied.crowded)
            self._note_untold(applied.left)
            over += applied.over
        self._polled()
        if over:
            metrics.HEARTBEATS.labels("refused").inc(len(over))
            # Only a hint, so what becomes of it does not matter.
            await self._wire.exchange([_notice(one) for one in over])

    def _count(self, mad: str, heard: Heard, crowded: int) -> None:
        for kind, count in heard.kinds.items():
            metrics.HEARTBEATS.labels(kind).inc(count)
        trouble = heard.trouble
        if crowded:
            metrics.HEARTBEATS.labels("crowded").inc(crowded)
            trouble = f"{MAX_LIVING} instances live, which is the limit; end some"
        last = self._logged_at.get(mad, -QUIET_S)
        if trouble and time.monotonic() - last >= QUIET_S:
            self._logged_at[mad] = time.monotonic()
            log.warning("heartbeat.refused", mad=mad, trouble=trouble)

    def _is_due(self) -> bool:
        now = time.monotonic()

        return now >= self._sweep_at or (
            bool(self._expiries) and now >= self._swept_at + HINT_S
        )

    async def _sweep(self) -> bool:
        """
        Declare lost whose deadline is past; whether there may be more of them.
        """
        if time.monotonic() >= self._look_at:
            await self._expiries.look(self._wire)
            self._look_at = time.monotonic() + LOOK_S
        hinted = self._expiries.take()
        for _ in range(ROUNDS):
            look = await self._roll.look(self._expiries.notified)
            self._polled()
            metrics.LEASES.set(look.living)
            if look.gap_ms:
                log.warning("presence.gap", gap_ms=look.gap_ms)
            waiting = await self._lose(look.due, hinted)
            self._swept_at = time.monotonic()
            wait_s = look.grace_ms / 1000 or SWEEP_S
            # Whom unread heartbeats may excuse is not to wait for a whole second.
            wait_s = 0.0 if waiting else min(wait_s, SWEEP_S)
            self._sweep_at = self._swept_at + wait_s
            if waiting or len(look.due) < CHUNK:
                return False
        self._sweep_at = 0.0
        return True

    async def _lose(self, due: tuple[str, ...], hinted: set[str]) -> int:
        """
        Declare *due* lost, as far as they are; how many wait for another look.
        """
        if not due:
            return 0
        waiting, lost = await self._roll.lose(
            {member: "event" if member in hinted else "sweep" for member in due}
        )
        self._polled()
        if lost:
            self._fail("loss_declared")
        for one in lost:
            mad, instance, _ = one.instance
            self._note_lost(one, "event" if f"{mad}:{instance}" in hinted else "sweep")
        self._note_untold(len(lost))

        return waiting

    def _note_lost(self, lost: Lost, noticed: str) -> None:
        metrics.LOST_MADS.labels(noticed).inc()
        metrics.DETECTION.observe(lost.late_ms / 1000)
        told = lost.instance._asdict()
        log.warning("mad.lost", **told, noticed=noticed, late_ms=lost.late_ms)

    def _note_untold(self, losses: int) -> None:
        if losses:
            self._tell_at = 0.0
            self._untold_since = self._untold_since or time.monotonic()

    async def _tell(self) -> bool:
        """
        Tell the partitions of some losses; whether there are more to tell now.
        """
        if self._tell_at is None or time.monotonic() < self._tell_at:
            return False
        told = await self._tidings.tell()
        self._polled()
        if told.refused:
            log.error("losses.untold", losses=told.left, error=told.refused)
            self._tell_at = time.monotonic() + RETELL_S
        elif not told.left:
            self._tell_at = self._untold_since = None
        return told.left > 0 and not told.refused

    async def _pause(self) -> None:
        """
        Wait for heartbeats to gather; a hint ends it.
        """
        self._news.clear()
        if self._expiries:
            await asyncio.sleep(HINT_S)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                await self._news.wait()

    def _polled(self) -> None:
        self.polled_at = time.monotonic()


def _notice(over: Instance) -> Command:
    """
    The message that tells an instance that its epoch is over.
    """
    channel = keys.wake(over.mad, over.instance)

    return ("PUBLISH", channel, pack([{"superseded": over.epoch}]))

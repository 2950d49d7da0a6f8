"""
Entries that somebody else has read with the lane's own group, and how they come back.

Who tries XREADGROUP by hand, with another consumer's name, takes entries away from the
lane, and would take their order as well: later commands of the same publisher go on.
So a lane looks for such readers when it opens, now and then, and as soon as a read
skips entries. What it finds it claims, and then it begins anew with all that is
pending, in order.
"""

import time
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import structlog

from everbus.bus import keys
from everbus.gateway.lane.connection import LaneConnection, check_fenced
from everbus.gateway.store import key_names
from everbus.gateway.store.scripts import script
from everbus.gateway.telemetry import metrics

log = structlog.get_logger()

LOOK_EVERY_S = 1.0
# Of more MADs it is rarer, so that the server's work for it stays the same.
LOOKED_AT = 200
# Of one ingress, one look takes back so much at most; then it looks again.
CLAIMED = 500
CLAIMED_BYTES = 4 * 1024 * 1024
MAX_LOOKS = 100


class Span(NamedTuple):
    """
    A part of an ingress in which the lane has read nothing.

    Attributes:
        after: id of the last entry that the lane has read before it; empty if it does
            not know, and then only what is pending for others is looked for.
        before: id of the first entry behind it; empty for all up to where the group is.
    """

    mad: str
    after: str = ""
    before: str = ""


class ForeignReaders:
    """
    The other readers of one lane's ingress streams.

    Attributes:
        look_at: monotonic time from which the lane has to look again.
    """

    def __init__(self, wire: LaneConnection, partition: int, consumer: str) -> None:
        self.look_at = 0.0
        self._wire = wire
        self._partition = partition
        self._consumer = consumer

    async def take_back(self, spans: Iterable[Span]) -> int:
        """
        Claim what others have read of these MADs' ingress; returns how many entries.

        That is what is pending for them, and what lies in the spans.

        Raises:
            LaneLost: the lane has another owner; nothing was claimed.
            WireFailed: the connection broke.
        """
        total, left = 0, list(spans)
        rarer = max(1.0, len(left) / LOOKED_AT)
        self.look_at = time.monotonic() + LOOK_EVERY_S * rarer
        for _ in range(MAX_LOOKS):
            if not left:
                break
            claims = await self._claim(left)
            for span, count, _ in claims:
                if count:
                    mad = span.mad
                    log.error("entries.taken", lane=self._partition, mad=mad, n=count)
                    metrics.TAKEN.inc(count)
                total += count
            # What was claimed is pending for us now: the next look finds others.
            left = [span._replace(after=more) for span, count, more in claims if count]
        return total

    async def _claim(self, spans: Sequence[Span]) -> list[tuple[Span, int, str]]:
        p = self._partition
        command = script(
            "claim",
            [key_names.owner(p), *(keys.ingress(p, span.mad) for span in spans)],
            *(self._wire.owner, keys.GROUP, self._consumer, CLAIMED, CLAIMED_BYTES),
            *chain.from_iterable(span[1:] for span in spans),
        )
        [reply] = await self._wire.exchange([command])
        found = check_fenced(reply)

        return [
            (span, count, more.decode())
            for span, count, more in zip(spans, found[::2], found[1::2], strict=True)
        ]

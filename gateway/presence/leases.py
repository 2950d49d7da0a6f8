"""
The leases of MAD instances in Redis, for the owner of the presence lane.

Each method is one script. The script checks the owner and takes the time from the
server's clock; its caller supplies keys and members only.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from everbus.bus import keys
from everbus.bus.lease import clock_s
from everbus.bus.wire import Argument, Command, Wire
from everbus.gateway.lane.connection import check_fenced
from everbus.gateway.presence.heartbeats import HeartbeatBatch
from everbus.gateway.store import lease_records
from everbus.gateway.store.scripts import script

# Live instances of one MAD, at most.
MAX_INSTANCES = 10_000
# Records of lost and departed instances: number and age, at most.
MAX_RECORDS = 10_000
KEPT_MS = 24 * 3600 * 1000
# How long an expired lease waits for unread heartbeats of its MAD.
UNREAD_GRACE_MS = 500
# A longer gap between two sweeps means an outage; after it every lease gets a new TTL.
MIN_GAP_MS, MAX_GAP_MS = 2_000, 3_000
# The server's clock was set, if it differs by so much from what passed on our own.
STEP_MS = 2_000
# Instances that one call declares lost, at most.
CHUNK = 500
# Keys that a sweep and a loss share.
_SWEPT = (
    lease_records.OWNER,
    lease_records.WATCH,
    lease_records.DEADLINES,
    lease_records.RECORDS,
)


class Instance(NamedTuple):
    """
    One instance in one epoch.
    """

    mad: str
    instance: str
    epoch: int


class AppliedBatch(NamedTuple):
    """
    The result of applying the heartbeats of one MAD.

    Attributes:
        over_limit: instances without a lease, since MAX_INSTANCES others live.
        left: instances that left.
        ended: instances whose epoch is over; they must join under a new one.
    """

    over_limit: int
    left: int
    ended: tuple[Instance, ...]


class SweepResult(NamedTuple):
    """
    The result of one look at the deadlines.

    Attributes:
        gap_ms: time since the last sweep if that was too long; else 0.
        grace_ms: time without losses after such a gap.
        living: live leases.
        step_ms: by how much the server's clock was set since the last sweep; else 0.
        due: `<mad>:<instance>` with an expired deadline, CHUNK at most.
    """

    gap_ms: int
    grace_ms: int
    living: int
    step_ms: int
    due: tuple[str, ...]


class LostInstance(NamedTuple):
    """
    An instance declared lost, *late_ms* after its deadline.
    """

    instance: Instance
    late_ms: int


class Leases:
    """
    The leases; every call is fenced by *owner*, the value of the lane's owner key.
    """

    def __init__(self, wire: Wire, owner: str, ttl_ms: int) -> None:
        self._wire = wire
        self._owner = owner
        self._ttl_ms = ttl_ms
        self._gap_ms = min(MAX_GAP_MS, max(MIN_GAP_MS, ttl_ms))
        # None: no sweep of ours came before, or its time on the server is unknown.
        self._swept_at: float | None = None

    async def apply(
        self, batches: Mapping[str, HeartbeatBatch]
    ) -> dict[str, AppliedBatch]:
        """
        Renew the leases for the heartbeats in *batches* and delete their entries.

        Raises:
            LaneLost: the lane has another owner.
            WireFailed: the connection broke; applied entries are off their streams.
        """
        commands = [self._beat_command(mad, batch) for mad, batch in batches.items()]
        replies = await self._wire.exchange(commands)

        return {
            mad: _parse_applied(mad, check_fenced(reply)[1:])
            for mad, reply in zip(batches, replies, strict=True)
        }

    async def sweep(self, mode: str) -> SweepResult:
        """
        Find expired deadlines; *mode* is the server's notification of expiries.

        Raises:
            LaneLost: the lane has another owner.
            WireFailed: the connection broke.
        """
        swept_at, self._swept_at = self._swept_at, None
        elapsed = "" if swept_at is None else int(1000 * (clock_s() - swept_at))
        [reply] = await self._wire.exchange(
            [
                script(
                    "sweep",
                    [*_SWEPT, lease_records.ENDED],
                    *(self._owner, self._ttl_ms, self._gap_ms, mode),
                    *(KEPT_MS, MAX_RECORDS, CHUNK, elapsed, STEP_MS),
                )
            ]
        )
        _, gap_ms, grace_ms, living, step_ms, *due = check_fenced(reply)
        self._swept_at = clock_s()

        return SweepResult(
            *(gap_ms, grace_ms, living, step_ms),
            tuple(member.decode() for member in due),
        )

    async def shorten(self, silent: Mapping[str, int]) -> None:
        """
        End the leases of *silent* (member → ms without a listener) at once.

        Raises:
            LaneLost: the lane has another owner.
            WireFailed: the connection broke.
        """
        arguments: list[Argument] = []
        for member, silent_ms in silent.items():
            arguments += [member, silent_ms]
        keys_ = (
            lease_records.OWNER,
            lease_records.DEADLINES,
            lease_records.RECORDS,
            *map(lease_records.lease, silent),
        )
        [reply] = await self._wire.exchange(
            [script("shorten", keys_, self._owner, *arguments)]
        )
        check_fenced(reply)

    async def declare_lost(
        self, due: Mapping[str, str]
    ) -> tuple[int, list[LostInstance]]:
        """
        Declare the instances of *due* (member → what noticed it) lost, if still due.

        The first value counts members left for the next sweep, since heartbeats of
        their MAD are unread.

        Raises:
            LaneLost: the lane has another owner.
            WireFailed: the connection broke; instances lost by then are in LOSSES.
        """
        [reply] = await self._wire.exchange([self._lose_command(due)])
        _, waiting, *lost = check_fenced(reply)
        rows = zip(*[iter(lost)] * 4, strict=True)

        return waiting, [
            LostInstance(Instance(mad.decode(), instance.decode(), int(epoch)), late_ms)
            for mad, instance, epoch, late_ms in rows
        ]

    def _lose_command(self, due: Mapping[str, str]) -> Command:
        member_keys: list[str] = []
        arguments: list[Argument] = []
        for member, noticed in due.items():
            mad, _, instance = member.partition(":")
            stream = keys.ingress(keys.PRESENCE, mad)
            member_keys += [lease_records.lease(member), stream]
            arguments += [mad, instance, noticed]
        losses = (lease_records.LOSSES, lease_records.LIVING)

        return script(
            "lose",
            [*_SWEPT, lease_records.ENDED, *losses, *member_keys],
            *(self._owner, self._gap_ms, UNREAD_GRACE_MS, *arguments),
        )

    def _beat_command(self, mad: str, batch: HeartbeatBatch) -> Command:
        lease_keys = [
            lease_records.lease(lease_records.member_of(mad, beat.instance))
            for beat in batch.beats
        ]
        keys_ = (
            lease_records.OWNER,
            lease_records.DEADLINES,
            lease_records.RECORDS,
            lease_records.ENDED,
        )
        stream = keys.ingress(keys.PRESENCE, mad)
        arguments: list[Argument] = []
        for instance, epoch, leaving, arrived_ms in batch.beats:
            arguments += [instance, epoch, arrived_ms, "leave" if leaving else "beat"]
        return script(
            "beat",
            [*keys_, lease_records.LOSSES, lease_records.LIVING, stream, *lease_keys],
            *(self._owner, mad, self._ttl_ms, MAX_INSTANCES, len(batch.ids)),
            *batch.ids,
            *arguments,
        )


def _parse_applied(mad: str, reply: Sequence[Any]) -> AppliedBatch:
    over_limit, left, *pairs = reply
    ended = (
        Instance(mad, instance.decode(), int(epoch))
        for instance, epoch in zip(pairs[::2], pairs[1::2], strict=True)
    )
    return AppliedBatch(over_limit, left, tuple(ended))

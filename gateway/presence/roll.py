"""
The roll of who lives, as the owner of the leases keeps it in Redis.

Each method is one script, which checks the owner and takes the time from the server's
clock; what a script is told by its caller is only where to look.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bus import keys
from bus.wire import Argument, Command, Wire
from gateway.errors import check_fenced
from gateway.presence.heartbeats import Heard
from gateway.store import leases
from gateway.store.scripts import script

# Instances of one MAD that may live at once.
MAX_LIVING = 10_000
# Records of the lost and left: how many are kept, and for how long.
MAX_RECORDS = 10_000
KEPT_MS = 24 * 3600 * 1000
# How long a lease that is over waits for unread heartbeats of its MAD to be read.
PATIENCE_MS = 500
# So long nobody looks only in an outage, after which everybody has a fresh TTL.
MIN_GAP_MS, MAX_GAP_MS = 2_000, 3_000
# Instances that one call declares lost, at most.
CHUNK = 500


class Instance(NamedTuple):
    """
    One instance, and an epoch of it.
    """

    mad: str
    instance: str
    epoch: int


class Applied(NamedTuple):
    """
    What became of the heartbeats of one MAD.

    Attributes:
        crowded: how many found no room, since MAX_LIVING others live.
        left: how many said goodbye.
        over: those whose epoch is over, so that they have to join under a new one.
    """

    crowded: int
    left: int
    over: tuple[Instance, ...]


class Look(NamedTuple):
    """
    What a look at the deadlines has shown.

    Attributes:
        gap_ms: how long nobody had looked, if that was too long; else 0.
        grace_ms: for how long nobody is declared lost yet, after such a gap.
        due: the `<mad>:<instance>` whose deadline is past, CHUNK at most.
    """

    gap_ms: int
    grace_ms: int
    living: int
    due: tuple[str, ...]


class Lost(NamedTuple):
    """
    An instance that was declared lost, *late_ms* after its deadline.
    """

    instance: Instance
    late_ms: int


class Roll:
    """
    The leases, while *owner* is the value of the lane's owner key.
    """

    def __init__(self, wire: Wire, owner: str, ttl_ms: int) -> None:
        self._wire = wire
        self._owner = owner
        self._ttl_ms = ttl_ms
        self._gap_ms = min(MAX_GAP_MS, max(MIN_GAP_MS, ttl_ms))

    async def apply(self, heard: Mapping[str, Heard]) -> dict[str, Applied]:
        """
        Renew the leases of those that were *heard* of, and take that off the streams.

        Raises:
            Superseded: the lane has another owner.
            WireFailed: the connection broke; what was applied is off its stream.
        """
        commands = [self._beats(mad, told) for mad, told in heard.items()]
        replies = await self._wire.exchange(commands)

        return {
            mad: _applied(mad, check_fenced(reply)[1:])
            for mad, reply in zip(heard, replies, strict=True)
        }

    async def look(self, notified: str) -> Look:
        """
        Look whose deadline is past; the server tells of expiries as *notified* says.

        Raises:
            Superseded: the lane has another owner.
            WireFailed: the connection broke.
        """
        keys_ = (leases.OWNER, leases.WATCH, leases.DEADLINES, leases.RECORDS)
        [reply] = await self._wire.exchange(
            [
                script(
                    "sweep",
                    [*keys_, leases.ENDED],
                    *(self._owner, self._ttl_ms, self._gap_ms, notified),
                    *(KEPT_MS, MAX_RECORDS, CHUNK),
                )
            ]
        )
        _, gap_ms, grace_ms, living, *due = check_fenced(reply)

        return Look(gap_ms, grace_ms, living, tuple(member.decode() for member in due))

    async def lose(self, due: Mapping[str, str]) -> tuple[int, list[Lost]]:
        """
        Declare lost whoever of *due* (member → what noticed it) still is to be.

        Also tells how many were left for the next look, since heartbeats of their
        MAD are unread.

        Raises:
            Superseded: the lane has another owner.
            WireFailed: the connection broke; who was lost by then is among the losses.
        """
        touched: list[str] = []
        words: list[Argument] = []
        for member, noticed in due.items():
            mad, _, instance = member.partition(":")
            touched += [leases.lease(member), keys.ingress(keys.PRESENCE, mad)]
            words += [mad, instance, noticed]
        keys_ = (leases.OWNER, leases.WATCH, leases.DEADLINES, leases.RECORDS)
        [reply] = await self._wire.exchange(
            [
                script(
                    "lose",
                    [*keys_, leases.ENDED, leases.LOSSES, leases.LIVING, *touched],
                    *(self._owner, self._gap_ms, PATIENCE_MS, *words),
                )
            ]
        )
        _, waiting, *lost = check_fenced(reply)
        fours = zip(*[iter(lost)] * 4, strict=True)

        return waiting, [
            Lost(Instance(mad.decode(), instance.decode(), int(epoch)), late_ms)
            for mad, instance, epoch, late_ms in fours
        ]

    def _beats(self, mad: str, heard: Heard) -> Command:
        lease_keys = [
            leases.lease(leases.member_of(mad, beat.instance)) for beat in heard.beats
        ]
        keys_ = (leases.OWNER, leases.DEADLINES, leases.RECORDS, leases.ENDED)
        stream = keys.ingress(keys.PRESENCE, mad)
        words: list[Argument] = []
        for instance, epoch, leaving, arrived_ms in heard.beats:
            words += [instance, epoch, arrived_ms, "leave" if leaving else "beat"]
        return script(
            "beat",
            [*keys_, leases.LOSSES, leases.LIVING, stream, *lease_keys],
            *(self._owner, mad, self._ttl_ms, MAX_LIVING, len(heard.ids)),
            *heard.ids,
            *words,
        )


def _applied(mad: str, told: Sequence[Any]) -> Applied:
    crowded, left, *pairs = told
    over = (
        Instance(mad, instance.decode(), int(epoch))
        for instance, epoch in zip(pairs[::2], pairs[1::2], strict=True)
    )
    return Applied(crowded, left, tuple(over))

"""
Announcing lost and departed instances to every partition.

A loss stays in a hash from its declaration until all partitions have the command that
announces it. After a crash in between some partitions get it twice, which changes
nothing: the command's id is derived from its content. No loss is forgotten.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from redis.exceptions import ResponseError

from everbus.bus import keys
from everbus.bus.messages import SCHEMA, Envelope, pack, pack_envelope
from everbus.bus.wire import Command, Wire
from everbus.gateway.failpoints import FailPoint
from everbus.gateway.lane.connection import check_fenced
from everbus.gateway.lane.fencing import LOST_KIND, InstanceLost
from everbus.gateway.store.lease_records import LOSSES, OWNER
from everbus.gateway.store.scripts import script

# Commands of one call, at most; other work of the lane waits for them.
MAX_COMMANDS = 4096
# Commands in one write.
WRITE_COMMANDS = 512


class AnnounceResult(NamedTuple):
    """
    The losses still to announce, and the error if a partition refused one.
    """

    remaining: int
    error: str


class Announcements:
    """
    The losses that some partition has not received yet.
    """

    def __init__(
        self, wire: Wire, owner: str, partitions: int, fail: FailPoint
    ) -> None:
        self._wire = wire
        self._owner = owner
        self._partitions = partitions
        self._fail = fail
        self._max_losses = max(1, MAX_COMMANDS // partitions)

    async def publish(self) -> AnnounceResult:
        """
        Announce some losses.

        A loss that a partition refuses (no memory, a broken stream) stays for a later
        call.

        Raises:
            LaneLost: the lane has another owner.
            WireFailed: the connection broke; some losses may be announced again.
        """
        drawn = await self._wire.call(
            "HRANDFIELD", LOSSES, self._max_losses, "WITHVALUES"
        )
        losses = list(map(_loss_in, drawn[::2], drawn[1::2]))
        if not losses:
            return AnnounceResult(0, "")
        published, error = await self._publish(losses)
        self._fail("loss_told")
        if not published:
            return AnnounceResult(len(losses), error)
        forget = script(
            "forget_losses", [OWNER, LOSSES], self._owner, *map(_field, published)
        )
        [reply] = await self._wire.exchange([forget])

        return AnnounceResult(check_fenced(reply)[1], error)

    async def _publish(
        self, losses: Sequence[InstanceLost]
    ) -> tuple[list[InstanceLost], str]:
        """
        The losses that every partition has received, and the first refusal.
        """
        every = range(self._partitions)
        commands = [_command(lost, p) for lost in losses for p in every]
        replies: list[Any] = []
        for first in range(0, len(commands), WRITE_COMMANDS):
            replies += await self._wire.exchange(
                commands[first : first + WRITE_COMMANDS]
            )
        refusals = [str(r) for r in replies if isinstance(r, ResponseError)]
        answers = zip(*[iter(replies)] * self._partitions, strict=True)
        published = [
            lost
            for lost, answered in zip(losses, answers, strict=True)
            if not any(isinstance(one, ResponseError) for one in answered)
        ]
        return published, next(iter(refusals), "")


def _loss_in(field: bytes, state: bytes) -> InstanceLost:
    mad, instance, epoch = field.decode().split(":")

    return InstanceLost(
        mad=mad, instance=instance, epoch=int(epoch), left=state == b"left"
    )


def _field(lost: InstanceLost) -> str:
    return f"{lost.mad}:{lost.instance}:{lost.epoch}"


def _command(lost: InstanceLost, partition: int) -> Command:
    # The digest covers the MAD as well: two MADs may have instances of one name, and a
    # command with the id of an earlier one counts as its repetition.
    digest = hashlib.blake2b(_field(lost).encode(), digest_size=20).hexdigest()
    envelope = Envelope(
        v=SCHEMA,
        id=f"lost-{digest}-{partition}",
        kind=LOST_KIND,
        body=msgspec.Raw(pack(lost)),
    )

    return (
        *("XADD", keys.ingress(partition, keys.GATEWAY), "*"),
        *("c", pack_envelope(envelope)),
    )

"""
Telling every partition of the instances that are lost, or have left.

Each loss lies in a hash from the step that declared it until all partitions have the
command that tells of it. A crash in between tells some of them twice, which changes
nothing there, since a command's id follows from what it says; none is forgotten.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from redis.exceptions import ResponseError

from bus import keys
from bus.codec import pack, pack_envelope
from bus.messages import SCHEMA, Envelope
from bus.wire import Command, Wire
from gateway.errors import check_fenced
from gateway.failpoints import FailPoint
from gateway.fencing import LOST_KIND, InstanceLost
from gateway.store.leases import LOSSES, OWNER
from gateway.store.scripts import script

# Commands that are published before anything else is done.
CHUNK = 4096
# Of them, those in one write.
WRITE = 512


class Told(NamedTuple):
    """
    How many losses are left to be told, and why, if some partition refused one.
    """

    left: int
    refused: str


class Tidings:
    """
    The losses that some partition has not been told of yet.
    """

    def __init__(
        self, wire: Wire, owner: str, partitions: int, fail: FailPoint
    ) -> None:
        self._wire = wire
        self._owner = owner
        self._partitions = partitions
        self._fail = fail
        self._most = max(1, CHUNK // partitions)

    async def tell(self) -> Told:
        """
        Tell of some losses.

        What a partition refuses (no memory, a broken stream) stays for a later call.

        Raises:
            Superseded: the lane has another owner.
            WireFailed: the connection broke; what was told may be told again.
        """
        drawn = await self._wire.call("HRANDFIELD", LOSSES, self._most, "WITHVALUES")
        losses = list(map(_loss_in, drawn[::2], drawn[1::2]))
        if not losses:
            return Told(0, "")
        told, refused = await self._publish(losses)
        self._fail("loss_told")
        if not told:
            return Told(len(losses), refused)
        forget = script("told", [OWNER, LOSSES], self._owner, *map(_field, told))
        [reply] = await self._wire.exchange([forget])

        return Told(check_fenced(reply)[1], refused)

    async def _publish(
        self, losses: Sequence[InstanceLost]
    ) -> tuple[list[InstanceLost], str]:
        """
        Those of *losses* of which every partition was told, and what one has refused.
        """
        every = range(self._partitions)
        commands = [_command(lost, p) for lost in losses for p in every]
        replies: list[Any] = []
        for first in range(0, len(commands), WRITE):
            replies += await self._wire.exchange(commands[first : first + WRITE])
        refusals = [str(r) for r in replies if isinstance(r, ResponseError)]
        answers = zip(*[iter(replies)] * self._partitions, strict=True)
        told = [
            lost
            for lost, answered in zip(losses, answers, strict=True)
            if not any(isinstance(one, ResponseError) for one in answered)
        ]
        return told, next(iter(refusals), "")


def _loss_in(field: bytes, state: bytes) -> InstanceLost:
    mad, instance, epoch = field.decode().split(":")

    return InstanceLost(
        mad=mad, instance=instance, epoch=int(epoch), left=state == b"left"
    )


def _field(lost: InstanceLost) -> str:
    return f"{lost.mad}:{lost.instance}:{lost.epoch}"


def _command(lost: InstanceLost, partition: int) -> Command:
    # Of the MAD as well: two may have instances of one name, and a command that has
    # the id of an earlier one counts as that one.
    said = hashlib.blake2b(_field(lost).encode(), digest_size=20).hexdigest()
    envelope = Envelope(
        v=SCHEMA,
        id=f"lost-{said}-{partition}",
        kind=LOST_KIND,
        body=msgspec.Raw(pack(lost)),
    )

    return (
        *("XADD", keys.ingress(partition, keys.GATEWAY), "*"),
        *("c", pack_envelope(envelope)),
    )

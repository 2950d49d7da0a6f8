"""
Fences of lost instances: refused epochs, and the sessions that get a loss event.

An instance that was declared lost may still be alive, only cut off, and wake up late.
Commands that arrived before the announcement of the loss count, however long they
waited to be read. Later commands are refused until the instance joins again under a
new epoch.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from everbus.bus.keys import GATEWAY
from everbus.bus.messages import SCHEMA, Envelope, pack, unpack
from everbus.handlers.commands import Attachment

# Announces to a partition that an instance is lost; only the gateway may send it.
LOST_KIND = "instance.lost"
# Attachments that one such command follows up; the rest is for the next one.
CHUNK = 500
# Older ones would refuse a command of so many epochs ago by its time; those kept
# refuse it as well, only from later on.
MAX_FENCES = 8


class InstanceLost(msgspec.Struct, frozen=True, kw_only=True):
    """
    Body of `instance.lost`.

    Attributes:
        epoch: this one and all before it are over.
        left: whether it said goodbye: then nothing is fenced and no session gets an
            event.
        after: the attachment up to which an earlier command has followed up.
    """

    mad: str
    instance: str
    epoch: int
    left: bool = False
    after: str = ""


class Fence(NamedTuple):
    """
    An epoch that is over, and since when, on the clock of the partition's server.
    """

    epoch: int
    since_ms: int


Fences = tuple[Fence, ...]


def parse_fences(packed: bytes) -> Fences:
    """
    The fences that `pack_fences` wrote, oldest first.
    """
    pairs = (one.partition(":") for one in packed.decode().split(","))

    return tuple(Fence(int(epoch), int(since_ms)) for epoch, _, since_ms in pairs)


def pack_fences(fences: Fences) -> str:
    """
    One compact line, oldest first.
    """
    return ",".join(f"{fence.epoch}:{fence.since_ms}" for fence in fences)


def raised(fences: Fences, epoch: int, now_ms: int) -> Fences:
    """
    *fences* with one for *epoch*; the same if it is fenced already.
    """
    if fences and fences[-1].epoch >= epoch:
        return fences
    return (*fences, Fence(epoch, now_ms))[-MAX_FENCES:]


def fence_against(fences: Fences, epoch: int, arrived_ms: int) -> Fence | None:
    """
    The fence that turns away a command of *epoch* that came at *arrived_ms*, if any.
    """
    for fence in fences:
        if epoch <= fence.epoch and arrived_ms > fence.since_ms:
            return fence
    return None


def follow_ups(lost: InstanceLost, found: Sequence[Attachment]) -> Iterator[Envelope]:
    """
    The commands that make the loss known to every session in *found*.

    Their ids follow from their content, so a repeated announcement has no effect.
    """
    for attachment in found:
        body = {"mad": lost.mad, "instance": lost.instance, "epoch": lost.epoch}
        yield Envelope(
            v=SCHEMA,
            id=_id(lost, attachment.session),
            kind="participant.lost",
            session=attachment.session,
            body=msgspec.Raw(pack(body)),
        )


def next_chunk(lost: InstanceLost, last: Attachment) -> Envelope:
    """
    The command that goes on behind the attachment *last*.
    """
    rest = msgspec.structs.replace(lost, after=last.members[0])

    return Envelope(
        v=SCHEMA,
        id=_id(lost, rest.after),
        kind=LOST_KIND,
        body=msgspec.Raw(pack(rest)),
    )


def lost_in(envelope: Envelope | None) -> InstanceLost | None:
    """
    The body of an `instance.lost`; None for anything else, and if it is not fit.
    """
    if envelope is None or envelope.kind != LOST_KIND:
        return None
    try:
        lost: InstanceLost = unpack(envelope.body, InstanceLost)
    except msgspec.ValidationError:
        return None
    return lost


def publisher_of(lost: InstanceLost) -> str:
    """
    The name under which the lost instance's commands are counted.
    """
    return f"{lost.mad}:{lost.instance}"


def _id(lost: InstanceLost, about: str) -> str:
    said = f"{lost.mad}:{lost.instance}:{lost.epoch}:{about}"

    return f"{GATEWAY}-{hashlib.blake2b(said.encode(), digest_size=20).hexdigest()}"

"""
Dead letters: what could not be applied, with its cause and its history.

Only commits write them. Whoever looks after them reads a page at a time, and takes
one away by one step of the server's, so that nobody gets at the same one twice.
"""

import re
from typing import Any, NamedTuple

import msgspec

from bus.errors import Invalid, NotFound
from bus.keys import GATEWAY, ingress
from bus.messages import Envelope
from bus.wire import Command, Wire
from gateway.store import names
from gateway.store.scripts import script

MAX_KEPT_BYTES = 64 * 1024
# A letter has 256 KiB at most, so that a page stays below 16 MiB.
PAGE = 64

_ID = re.compile(r"(0|[1-9][0-9]{0,3})-((?:0|[1-9][0-9]{0,19})-(?:0|[1-9][0-9]{0,19}))")
_MAX_ID_PART = 2**64 - 1


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    One command that was buried instead of applied.

    Attributes:
        entry: id of the stream entry it came in.
        cause: stable word for grouping, for example `unknown_kind`, `poison`.
        attempts: what each failed attempt died of, oldest first.
        envelope: the command without its grant, if it could be decoded.
        packed: the undecodable bytes as they came, at most 64 KiB of them.
        principal: who asked, if the grant was good; else empty.
        role: that principal's role, else empty.
        tenant: that principal's tenant.
    """

    mad: str
    entry: str
    index: int
    cause: str
    message: str
    at_ms: int
    attempts: tuple[str, ...] = ()
    envelope: Envelope | None = None
    packed: bytes = b""
    principal: str = ""
    role: str = ""
    tenant: str = ""


class LetterId(NamedTuple):
    """
    Where a letter lies; people see `<partition>-<entry id>`.
    """

    partition: int
    entry: str

    def __str__(self) -> str:
        return f"{self.partition}-{self.entry}"


class Buried(NamedTuple):
    """
    A dead letter and where it lies.
    """

    id: LetterId
    letter: DeadLetter


def letter_of(fields: dict[bytes, bytes]) -> DeadLetter:
    """
    The dead letter in the fields of a stream entry.
    """
    return msgspec.msgpack.decode(fields[b"d"], type=DeadLetter)


def parse_letter_id(text: str, partitions: int) -> LetterId:
    """
    The id that people were shown.

    Raises:
        Invalid: it is none, or of a partition that this bus has not.
    """
    found = _ID.fullmatch(text)
    if found is None or any(int(part) > _MAX_ID_PART for part in found[2].split("-")):
        raise Invalid(
            f"{text[:80]!a} is no dead letter's id; wanted one such as "
            "3-1700000000000-0, as `everbus dead list --each` shows them",
            field="id",
        )
    if int(found[1]) >= partitions:
        raise Invalid(
            f"{text} is of partition {found[1]}; this bus has {partitions}, from 0 on",
            field="id",
        )
    return LetterId(int(found[1]), found[2])


async def page(
    wire: Wire, partition: int, after: str = "", until: str = "+"
) -> list[Buried]:
    """
    The next PAGE letters behind entry id *after*, up to *until*, oldest first.

    Raises:
        WireFailed: the connection broke.
        Unavailable, Forbidden: the server refuses.
    """
    first = f"({after}" if after else "-"
    entries = await wire.call(
        "XRANGE", names.dead(partition), first, until, "COUNT", PAGE
    )
    return [_buried(partition, *entry) for entry in entries]


async def one(wire: Wire, identifier: LetterId) -> Buried:
    """
    The letter with that id.

    Raises:
        NotFound: there is none, or no longer.
        WireFailed: the connection broke.
        Unavailable, Forbidden: the server refuses.
    """
    partition, entry = identifier
    entries = await wire.call("XRANGE", names.dead(partition), entry, entry)
    if not entries:
        raise NotFound(
            f"there is no dead letter {identifier}: it was redriven or dropped, or "
            "newer ones pushed it out"
        )
    return _buried(partition, *entries[0])


async def newest(wire: Wire, partitions: int) -> dict[int, str]:
    """
    Partition → the entry id of its newest letter; without those that have none.

    Raises:
        WireFailed: the connection broke.
        Unavailable, Forbidden: the server refuses.
    """
    found: dict[int, str] = {}
    for partition in range(partitions):
        entries = await wire.call(
            "XREVRANGE", names.dead(partition), "+", "-", "COUNT", 1
        )
        if entries:
            found[partition] = entries[0][0].decode()
    return found


async def lengths_of(wire: Wire, partitions: int) -> dict[int, int]:
    """
    Partition → how many letters it has.

    Raises:
        WireFailed: the connection broke.
        Unavailable, Forbidden: the server refuses.
    """
    return {
        partition: await wire.call("XLEN", names.dead(partition))
        for partition in range(partitions)
    }


def redrive(identifier: LetterId, packed: bytes) -> Command:
    """
    The command that sends *packed* in place of the letter: 1, or 0 if it is gone.

    A wire must have loaded the script.
    """
    partition, entry = identifier
    streams = [names.dead(partition), ingress(partition, GATEWAY)]

    return script("redrive", streams, entry, packed)


def drop(identifier: LetterId) -> Command:
    """
    The command that removes the letter for good: 1, or 0 if it is gone.
    """
    return ("XDEL", names.dead(identifier.partition), identifier.entry)


def _buried(partition: int, entry: bytes, fields: list[bytes]) -> Buried:
    told: dict[bytes, Any] = dict(zip(fields[::2], fields[1::2], strict=True))
    try:
        letter = letter_of(told)
    except (KeyError, msgspec.MsgspecError) as error:
        # Of a newer manager, or of nobody of ours: still to be seen, and dropped.
        letter = DeadLetter(
            mad="",
            entry="",
            index=0,
            cause=told.get(b"cause", b"").decode(errors="replace") or "unreadable",
            message=f"this letter cannot be read: {error}",
            at_ms=int(entry.partition(b"-")[0]),
            packed=told.get(b"d", b"")[:MAX_KEPT_BYTES],
        )
    return Buried(LetterId(partition, entry.decode()), letter)

"""
Dead letters: commands and records that could not be applied, with cause and history.

Only commits write them. An operator reads them page by page; redriving or dropping a
letter is one atomic step on the server, so it happens once.
"""

import re
from typing import Any, NamedTuple

import msgspec

from everbus.bus.errors import Invalid, NotFound
from everbus.bus.keys import GATEWAY, ingress
from everbus.bus.messages import Envelope
from everbus.bus.wire import Command, Wire
from everbus.gateway.store import key_names
from everbus.gateway.store.scripts import script

MAX_KEPT_BYTES = 64 * 1024
# A letter has at most 256 KiB, so a page stays below 16 MiB.
PAGE = 64

_ID = re.compile(r"(0|[1-9][0-9]{0,3})-((?:0|[1-9][0-9]{0,19})-(?:0|[1-9][0-9]{0,19}))")
_MAX_ID_PART = 2**64 - 1


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    One command that was buried instead of applied.

    Attributes:
        entry: id of the stream entry it came in.
        cause: stable word for grouping, for example `unknown_kind`, `poison`.
        attempts: the cause of each failed attempt, oldest first.
        envelope: the command without its grant, if it could be decoded.
        packed: the undecodable bytes as they came, at most 64 KiB of them.
        principal: the caller, if the grant was valid; else empty.
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
    The place of a letter, written as `<partition>-<entry id>`.
    """

    partition: int
    entry: str

    def __str__(self) -> str:
        return f"{self.partition}-{self.entry}"


class Buried(NamedTuple):
    """
    A dead letter and its place.
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
    The id in a text that a user typed.

    Raises:
        Invalid: it is no id, or its partition does not exist on this bus.
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
        "XRANGE", key_names.dead(partition), first, until, "COUNT", PAGE
    )
    return [_buried(partition, *entry) for entry in entries]


async def one(wire: Wire, identifier: LetterId) -> Buried:
    """
    The letter with that id.

    Raises:
        NotFound: there is no such letter, or no longer.
        WireFailed: the connection broke.
        Unavailable, Forbidden: the server refuses.
    """
    partition, entry = identifier
    entries = await wire.call("XRANGE", key_names.dead(partition), entry, entry)
    if not entries:
        raise NotFound(
            f"there is no dead letter {identifier}: it was redriven or dropped, or "
            "newer ones of its MAD pushed it out"
        )
    return _buried(partition, *entries[0])


async def newest(wire: Wire, partitions: int) -> dict[int, str]:
    """
    Partition → the entry id of its newest letter, for partitions with letters.

    Raises:
        WireFailed: the connection broke.
        Unavailable, Forbidden: the server refuses.
    """
    found: dict[int, str] = {}
    for partition in range(partitions):
        entries = await wire.call(
            "XREVRANGE", key_names.dead(partition), "+", "-", "COUNT", 1
        )
        if entries:
            found[partition] = entries[0][0].decode()
    return found


async def lengths_of(wire: Wire, partitions: int) -> dict[int, int]:
    """
    Partition → its number of letters.

    Raises:
        WireFailed: the connection broke.
        Unavailable, Forbidden: the server refuses.
    """
    return {
        partition: await wire.call("XLEN", key_names.dead(partition))
        for partition in range(partitions)
    }


def redrive(identifier: LetterId, packed: bytes) -> Command:
    """
    The command that sends *packed* in place of the letter: 1, or 0 if it is gone.

    A wire must have loaded the script.
    """
    partition, entry = identifier
    named = [*_keys_of(partition), ingress(partition, GATEWAY)]

    return script("redrive", named, entry, packed)


def drop(identifier: LetterId) -> Command:
    """
    The command that removes the letter for good: 1, or 0 if it is gone.

    A wire must have loaded the script.
    """
    return script("drop_letter", _keys_of(identifier.partition), identifier.entry)


def _keys_of(partition: int) -> list[str]:
    return [
        key_names.dead(partition),
        key_names.dead_index(partition),
        key_names.dead_bytes(partition),
    ]


def _buried(partition: int, entry: bytes, fields: list[bytes]) -> Buried:
    stored: dict[bytes, Any] = dict(zip(fields[::2], fields[1::2], strict=True))
    try:
        letter = letter_of(stored)
    except (KeyError, msgspec.MsgspecError) as error:
        # From a newer manager, or a foreign writer: it can still be shown and dropped.
        letter = DeadLetter(
            mad="",
            entry="",
            index=0,
            cause=stored.get(b"cause", b"").decode(errors="replace") or "unreadable",
            message=f"this letter cannot be read: {error}",
            at_ms=int(entry.partition(b"-")[0]),
            packed=stored.get(b"d", b"")[:MAX_KEPT_BYTES],
        )
    return Buried(LetterId(partition, entry.decode()), letter)

"""
What is sealed of a session: its sensitive fields and timeline entries.

A sealed value takes the place of the plain one, as bytes; everything around it (ids,
versions, seqs, times, authors, participants) stays plain, so that tiers find, order and
count as before. A plain value that an earlier version wrote still reads.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

import msgspec

from everbus.bus.messages import Session, pack, unpack
from everbus.gateway.sealing.cipher import DataKey, ValuePlace, is_sealed
from everbus.gateway.sealing.keyring import Keyring
from everbus.gateway.sealing.sensitive_fields import SENSITIVE, TIMELINE

# These begin bytes in msgpack, which no JSON value is.
BYTES = (b"\xc4", b"\xc5", b"\xc6")


class _SealedEntry(msgspec.Struct, gc=False, omit_defaults=True):
    seq: int
    at: msgspec.Raw
    author: str
    entry: msgspec.Raw
    turn: str = ""


_entry = msgspec.msgpack.Decoder(_SealedEntry)


class Sealing:
    """
    Seals and opens the values of sessions.

    Args:
        names: of SEALABLE.
    """

    def __init__(self, keyring: Keyring, names: Collection[str] = SENSITIVE) -> None:
        self.keyring = keyring
        self.fields = frozenset(names) - {TIMELINE}
        self.timeline = TIMELINE in names

    def entry(self, key: DataKey, session: Session, packed: bytes) -> bytes:
        """
        A packed TimelineEntry with its value sealed; seq, time, author and turn stay
        plain.
        """
        entry = _entry.decode(packed)
        place = entry_place(session.id, session.created_at, entry.seq)
        entry.entry = msgspec.Raw(pack(key.seal(bytes(entry.entry), place)))

        return pack(entry)

    def opened_entries(
        self, session_id: str, generation: datetime, entries: Sequence[bytes]
    ) -> list[bytes]:
        """
        Packed TimelineEntry values as they were before they were sealed.

        Raises:
            SealBroken: one was changed, or is another entry's.
            KeyMissing: see `Keyring.key_of`.
        """
        return [self._opened_entry(session_id, generation, one) for one in entries]

    def sealed_in(self, entries: Sequence[bytes]) -> list[bytes]:
        """
        The sealed values in packed entries, for `Keyring.learn`.
        """
        values = (_value_of(_entry.decode(packed)) for packed in entries)

        return [value for value in values if is_sealed(value)]

    async def open_entries(
        self, session_id: str, generation: datetime, entries: Sequence[bytes]
    ) -> list[bytes]:
        """
        As `opened_entries`, with keys that this process learns meanwhile.
        """
        await self.keyring.learn(self.sealed_in(entries))

        return self.opened_entries(session_id, generation, entries)

    def value(self, key: DataKey, value: Any, place: ValuePlace) -> bytes:
        """
        A JSON value, sealed.
        """
        return key.seal(pack(value), place)

    def opened(self, value: Any, place: ValuePlace) -> Any:
        """
        A JSON value as it was before it was sealed; a plain one as it is.

        Raises:
            SealBroken: it was changed, or is another place's.
            KeyMissing: see `Keyring.key_of`.
        """
        if not is_sealed(value):
            return value
        return msgspec.msgpack.decode(self.keyring.key_of(value).open(value, place))

    def _opened_entry(
        self, session_id: str, generation: datetime, packed: bytes
    ) -> bytes:
        entry = _entry.decode(packed)
        value = _value_of(entry)
        if not is_sealed(value):
            return packed
        place = entry_place(session_id, generation, entry.seq)
        entry.entry = msgspec.Raw(self.keyring.key_of(value).open(value, place))

        return pack(entry)


def milliseconds(at: datetime) -> int:
    """
    A generation as a place names it; every tier keeps at least milliseconds.
    """
    return round(at.timestamp() * 1000)


def entry_place(session_id: str, generation: datetime, seq: int) -> ValuePlace:
    """
    The place of a timeline entry, the same in every tier.
    """
    return ValuePlace(session_id, milliseconds(generation), f"entry:{seq}")


def _value_of(entry: _SealedEntry) -> bytes:
    """
    The bytes in an entry; empty if its value is a plain JSON value.
    """
    raw = bytes(entry.entry)
    return unpack(raw, bytes) if raw[:1] in BYTES else b""

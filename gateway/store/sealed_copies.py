"""
The sealed form of what the hot tier keeps: session hashes, tails, the outbox.

Sealing happens when a commit or an admission is made up, opening as soon as bytes come
back; all code in between sees plain values. Without encryption there is no object of
this class, and nothing here runs.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec
import structlog
from redis.exceptions import ResponseError

from everbus.bus.messages import Envelope, Session, pack, unpack
from everbus.gateway.sealing.cipher import (
    MARK,
    DataKey,
    KeyMissing,
    SealBroken,
    ValuePlace,
    is_sealed,
)
from everbus.gateway.sealing.sealing import BYTES, Sealing, milliseconds
from everbus.gateway.store.dead_letters import DeadLetter
from everbus.gateway.store.hot_copy import (
    FIELDS,
    REPLIES_FIELD,
    VALUE_FIELD,
    Record,
    pack_records,
)

log = structlog.get_logger()

# Seals what lives for a short time, and what has no known tenant: replies that wait
# for MongoDB, first replies, dead letters.
HOUSE = ""
_HELD = ValuePlace("", 0, "held")
_PACKED = ValuePlace("", 0, "letter")
_CREATED = FIELDS.index("created_at")
# The replies to `hot_copy.read_commands`.
_READ = 3


class _Group(msgspec.Struct, frozen=True, array_like=True):
    """
    The records of one tenant in one commit.

    Attributes:
        sessions: their ids, plain: readers of the outbox look for them.
    """

    sessions: tuple[str, ...]
    sealed: bytes


_groups = msgspec.msgpack.Decoder(tuple[_Group, ...])


class SealedCopies:
    """
    Seals and opens the hot tier's copies.
    """

    def __init__(self, sealing: Sealing) -> None:
        self.sealing = sealing
        self._keyring = sealing.keyring
        self._sealed_at = [
            (at, name) for at, name in enumerate(FIELDS) if name in sealing.fields
        ]

    async def ready(self, tenants: Iterable[str]) -> None:
        """
        Have the keys that seal what these tenants' sessions get.

        Raises:
            Unavailable: a new tenant's key cannot be made now.
        """
        await self._keyring.ready((HOUSE, *tenants))

    def hash_fields(self, session: Session, arguments: list[Any]) -> None:
        """
        Seal the values among *arguments*, names and values of the session's hash.
        """
        key = self._key(session.tenant)
        generation_ms = milliseconds(session.created_at)
        for at in range(0, len(arguments), 2):
            if (name := arguments[at]) in self.sealing.fields:
                place = ValuePlace(session.id, generation_ms, name)
                arguments[at + 1] = key.seal(arguments[at + 1], place)

    def entries(self, session: Session, entries: Sequence[bytes]) -> list[bytes]:
        """
        Packed entries with their values sealed.
        """
        if not self.sealing.timeline:
            return list(entries)
        key = self._key(session.tenant)

        return [self.sealing.entry(key, session, one) for one in entries]

    def records(self, records: Iterable[tuple[str, Record]]) -> bytes:
        """
        The outbox value of a commit, from its records with their tenants.
        """
        by_tenant: dict[str, list[Record]] = {}
        for tenant, record in records:
            named = msgspec.structs.replace(record, tenant=tenant)
            by_tenant.setdefault(tenant, []).append(named)
        groups = [self._group(tenant, grouped) for tenant, grouped in by_tenant.items()]
        return MARK + pack(groups) if groups else b""

    def held(self, packed: bytes) -> bytes:
        """
        Replies that wait for MongoDB, sealed; empty stays empty.
        """
        return self._key(HOUSE).seal(packed, _HELD) if packed else packed

    def reply(self, packed: bytes, command: str) -> bytes:
        """
        A first reply as the ledger keeps it.
        """
        return self._key(HOUSE).seal(packed, ValuePlace("", 0, f"reply:{command}"))

    async def open_replies(
        self, commands: Sequence[str], values: Sequence[bytes | None]
    ) -> list[bytes | None]:
        """
        First replies from the ledger; what does not open counts as no longer kept.
        """
        sealed = [value for value in values if value is not None and is_sealed(value)]
        await self._keyring.learn(sealed)

        return list(map(self._opened_reply, commands, values))

    def letter(self, letter: DeadLetter) -> DeadLetter:
        """
        A dead letter with its command's body, or its bytes, sealed; who sent it, when,
        and why it died stay plain. A redriven command goes to its lane as it is here.
        """
        key, envelope = self._key(HOUSE), letter.envelope
        if envelope is not None:
            body = key.seal(bytes(envelope.body), _body_place(envelope))
            envelope = msgspec.structs.replace(envelope, body=msgspec.Raw(pack(body)))
        packed = key.seal(letter.packed, _PACKED) if letter.packed else b""

        return msgspec.structs.replace(letter, envelope=envelope, packed=packed)

    async def open_body(self, envelope: Envelope) -> Envelope:
        """
        A command with its body opened, if it was sealed. A body that does not open
        stays as it is, and is refused as an invalid body.
        """
        body = bytes(envelope.body)
        value = unpack(body, bytes) if body[:1] in BYTES else b""
        if not is_sealed(value):
            return envelope
        await self._keyring.learn([value])
        try:
            opened = self._keyring.key_of(value).open(value, _body_place(envelope))
        except (SealBroken, KeyMissing) as error:
            log.error("sealed.refused", error=error.message)  # noqa: TRY400
            return envelope
        return msgspec.structs.replace(envelope, body=msgspec.Raw(opened))

    async def open_copies(
        self, sessions: Sequence[str], replies: list[Any]
    ) -> list[Any]:
        """
        The replies to the `read_commands` of *sessions*, with their values opened; a
        copy that does not open becomes an error, so that it counts as undecodable.
        """
        await self._keyring.learn(self._sealed_in(len(sessions), replies))
        for at, session_id in enumerate(sessions):
            of_one = replies[_READ * at : _READ * at + _READ]
            try:
                opened = self._opened_copy(session_id, of_one)
            except (SealBroken, KeyMissing) as error:
                log.error(  # noqa: TRY400 - the message says it all
                    "sealed.refused", session=session_id, error=error.message
                )
                opened = [ResponseError(error.message), *of_one[1:]]
            replies[_READ * at : _READ * at + _READ] = opened

        return replies

    async def open_records(self, value: bytes) -> bytes:
        """
        An outbox value as `unpack_records` takes it; its entries stay sealed.

        Raises:
            SealBroken: it was changed.
            KeyMissing: its key was dropped.
        """
        if value[:1] != MARK:
            return value
        groups = _groups.decode(value[1:])
        await self._keyring.learn(group.sealed for group in groups)
        opened = [
            msgspec.msgpack.decode(self._opened_group(one), type=list[msgspec.Raw])
            for one in groups
        ]
        return pack([record for group in opened for record in group])

    async def open_outbox(self, streams: Sequence[Any] | None) -> Sequence[Any] | None:
        """
        The reply to a read of outboxes with its values opened; what does not open
        stays as it is, and so becomes a dead letter with its bytes.
        """
        for _, entries in streams or ():
            for entry in entries:
                fields = entry[1] or []
                for at in range(0, len(fields), 2):
                    fields[at + 1] = await self._opened_field(*fields[at : at + 2])
        return streams

    async def open_entries(
        self, session: Session, entries: Sequence[bytes]
    ) -> list[bytes]:
        """
        Packed entries of a session from any tier, as they were before they were sealed.

        Raises:
            SealBroken: one was changed, or is another entry's.
            KeyMissing: its key was dropped.
        """
        return await self.sealing.open_entries(session.id, session.created_at, entries)

    async def _opened_field(self, name: bytes, value: bytes) -> bytes:
        try:
            if name == VALUE_FIELD:
                return await self.open_records(value)
            if name == REPLIES_FIELD and is_sealed(value):
                await self._keyring.learn([value])
                return self._keyring.key_of(value).open(value, _HELD)
        except (SealBroken, KeyMissing, msgspec.MsgspecError) as error:
            log.error("sealed.refused", error=str(error))  # noqa: TRY400
        return value

    def _opened_reply(self, command: str, value: bytes | None) -> bytes | None:
        if value is None or not is_sealed(value):
            return value
        try:
            place = ValuePlace("", 0, f"reply:{command}")
            return self._keyring.key_of(value).open(value, place)
        except (SealBroken, KeyMissing) as error:
            log.error("sealed.refused", error=error.message)  # noqa: TRY400
            return None

    def _key(self, tenant: str) -> DataKey:
        key = self._keyring.active(tenant)
        if key is None:
            raise AssertionError(f"no key of tenant {tenant!r}: call ready() before")
        return key

    def _group(self, tenant: str, records: list[Record]) -> _Group:
        sessions = tuple(record.session for record in records)
        place = _outbox_place(sessions)

        return _Group(sessions, self._key(tenant).seal(pack_records(records), place))

    def _opened_group(self, group: _Group) -> bytes:
        key = self._keyring.key_of(group.sealed)

        return key.open(group.sealed, _outbox_place(group.sessions))

    def _sealed_in(self, count: int, replies: Sequence[Any]) -> list[bytes]:
        found: list[bytes] = []
        for at in range(0, _READ * count, _READ):
            values, tail = replies[at], replies[at + 1]
            if isinstance(values, list):
                of_fields = (values[place] for place, _ in self._sealed_at)
                found += filter(is_sealed, of_fields)
            if isinstance(tail, list):
                found += self.sealing.sealed_in(tail[-1:])
        return found

    def _opened_copy(self, session_id: str, replies: list[Any]) -> list[Any]:
        values, tail, gone = replies
        if not isinstance(values, list) or values[_CREATED] is None:
            return replies
        created_at = unpack(values[_CREATED], datetime)
        generation_ms = milliseconds(created_at)
        for at, value in enumerate(values[: len(FIELDS)]):
            if is_sealed(value):
                place = ValuePlace(session_id, generation_ms, FIELDS[at])
                values[at] = self._keyring.key_of(value).open(value, place)
        if isinstance(tail, list):
            tail = self.sealing.opened_entries(session_id, created_at, tail)

        return [values, tail, gone]


def _body_place(envelope: Envelope) -> ValuePlace:
    return ValuePlace(envelope.session, 0, "body")


def _outbox_place(sessions: Sequence[str]) -> ValuePlace:
    return ValuePlace("", 0, f"outbox:{','.join(sessions)}")

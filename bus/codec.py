"""
Packing and unpacking of what travels: envelopes, replies and command ids.

Msgpack by msgspec; no pickle. A stream entry carries one or more envelopes,
each in a field `c`, in the order in which their publisher issued them: one
XADD is all or nothing, so a batch can never arrive with a hole in it.
"""

import re
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from bus.errors import Invalid, Malformed, TooLarge
from bus.messages import MAX_COMMAND_BYTES, SCHEMA, Envelope, Reply

COMMAND_FIELD = b"c"
REPLY_FIELD = b"r"

pack = msgspec.msgpack.Encoder().encode
_envelope = msgspec.msgpack.Decoder(Envelope)
_reply = msgspec.msgpack.Decoder(Reply)
# Eighteen digits at most, so that a forged count stays a 64-bit number.
_ORDINAL = re.compile(r"([^.]+)\.(0|[1-9][0-9]{0,17})\.([1-9][0-9]{0,17})")


class Ordinal(NamedTuple):
    """
    The place of a command in its publisher's count, read from its id.
    """

    instance: str
    partition: int
    n: int


def pack_envelope(envelope: Envelope) -> bytes:
    """
    The wire form of *envelope*.

    Raises:
        TooLarge: it exceeds MAX_COMMAND_BYTES.
    """
    packed = pack(envelope)
    if len(packed) > MAX_COMMAND_BYTES:
        raise TooLarge(
            f"command of {len(packed)} bytes; the limit is {MAX_COMMAND_BYTES}. "
            "Store large things elsewhere and append a reference",
            size=len(packed),
            limit=MAX_COMMAND_BYTES,
        )
    return packed


def unpack_envelope(packed: bytes) -> Envelope:
    """
    The envelope in *packed*.

    Raises:
        Malformed: too large, not msgpack, a wrong type, or a newer schema; the
            detail `cause` tells which.
    """
    if len(packed) > MAX_COMMAND_BYTES:
        raise Malformed(
            f"command of {len(packed)} bytes; the limit is {MAX_COMMAND_BYTES}",
            cause="too_large",
        )
    try:
        envelope = _envelope.decode(packed)
    # RecursionError is how msgspec refuses a value nested too deep.
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"not an envelope: {error}", cause="undecodable") from error
    if envelope.v > SCHEMA:
        raise Malformed(
            f"schema {envelope.v} is newer than {SCHEMA}; upgrade this replica",
            cause="newer_schema",
            command_id=envelope.id,
        )
    return envelope


def unpack_reply(packed: bytes) -> Reply:
    """
    The reply in *packed*.
    """
    return _reply.decode(packed)


def unpack(packed: bytes, kind: type[Any]) -> Any:
    """
    The value of type *kind* in *packed*.

    Raises:
        msgspec.ValidationError: of another type, not msgpack, or nested too deep.
    """
    try:
        # mypy takes a type for unhashable.
        return _decoder(kind).decode(packed)  # type: ignore[arg-type]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if isinstance(error, msgspec.ValidationError):
            raise
        raise msgspec.ValidationError(f"not msgpack: {error}") from error


@lru_cache(maxsize=256)
def _decoder(kind: type[Any]) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)


def unpack_body(packed: bytes, kind: type[Any]) -> Any:
    """
    The body of type *kind* in *packed*.

    Raises:
        Invalid: it is none; names the field.
    """
    try:
        return unpack(packed, kind)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$.")
        field = path.rstrip("`") or "body"
        raise Invalid(f"{field}: {what}", field=field) from error


def command_id(instance: str, partition: int, n: int) -> str:
    """
    The id of the *n*-th command (from 1) of an instance in one partition.
    """
    return f"{instance}.{partition}.{n}"


def ordinal_of(identifier: str) -> Ordinal | None:
    """
    The ordinal in a command id; None for an id that its sender made freely.

    No two ids have the same ordinal: `i.0.7` has one, `i.0.07` has none.
    """
    found = _ORDINAL.fullmatch(identifier)
    if found is None:
        return None
    return Ordinal(found[1], int(found[2]), int(found[3]))

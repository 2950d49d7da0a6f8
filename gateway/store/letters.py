"""
Dead letters: what could not be applied, with its cause and its history.
"""

import msgspec

from bus.messages import Envelope


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    One command that was buried instead of applied.

    Attributes:
        entry: id of the stream entry it came in.
        cause: stable word for grouping, for example `unknown_kind`, `poison`.
        attempts: what each failed attempt died of, oldest first.
        envelope: the command without its token, if it could be decoded.
        packed: the undecodable bytes as they came, at most 64 KiB of them.
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


MAX_KEPT_BYTES = 64 * 1024


def letter_of(fields: dict[bytes, bytes]) -> DeadLetter:
    """
    The dead letter in the fields of a stream entry.
    """
    return msgspec.msgpack.decode(fields[b"d"], type=DeadLetter)

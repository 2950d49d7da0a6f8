"""
A dead letter as people see it: the command decoded, without its grant.
"""

import json
from typing import Any

import msgspec

from bus.keys import ingress
from compose.bus_access import when
from gateway.store.letters import Buried

# Of a payload that is no JSON, so much is shown, in hexadecimal.
SHOWN_BYTES = 256


def letter_fields(buried: Buried) -> dict[str, Any]:
    """
    All that is known of the letter, name by name.

    `payload` is the command's body, if JSON can carry it, else None; then
    `payload_hex` has its first bytes.
    """
    letter, envelope = buried.letter, buried.letter.envelope
    payload, told_hex, size = _payload(letter.packed if not envelope else envelope.body)
    fields: dict[str, Any] = {
        "id": str(buried.id),
        "cause": letter.cause,
        "message": letter.message,
        "at": when(letter.at_ms),
        "mad": letter.mad,
        "principal": letter.principal,
        "role": letter.role,
        "stream": ingress(buried.id.partition, letter.mad),
        "entry": letter.entry,
        "index": letter.index,
        "attempts": letter.attempts,
        "payload": payload,
        "payload_hex": told_hex,
        "payload_bytes": size,
    }
    if envelope is not None:
        fields |= {
            "command": envelope.id,
            "kind": envelope.kind,
            "session": envelope.session,
            "expected_version": envelope.expected_version,
            "trace": envelope.trace,
        }
    return fields


def _payload(packed: msgspec.Raw | bytes) -> tuple[Any, str, int]:  # a JSON value
    """
    The payload as a JSON value or in hexadecimal, and how many bytes it has.
    """
    raw = bytes(packed)
    try:
        value = msgspec.msgpack.decode(raw)
        # Not msgspec's, which would write bytes and infinities as something else.
        json.dumps(value, allow_nan=False)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError):
        return None, raw[:SHOWN_BYTES].hex(), len(raw)
    return value, "", len(raw)

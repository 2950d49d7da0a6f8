"""
A dead letter for display: the decoded command, without its grant.
"""

import json
from typing import Any

import msgspec

from everbus.bus.keys import ingress
from everbus.compose.bus_access import bus_time
from everbus.gateway.store.dead_letters import Buried

# The shown part of a payload that is no JSON, in hexadecimal.
SHOWN_BYTES = 256


def letter_fields(buried: Buried) -> dict[str, Any]:
    """
    All facts about the letter, by name.

    `payload` is the command's body as JSON. If JSON cannot carry it, `payload` is None
    and `payload_hex` has the first bytes.
    """
    letter, envelope = buried.letter, buried.letter.envelope
    payload, first_bytes, size = _payload(
        letter.packed if not envelope else envelope.body
    )
    fields: dict[str, Any] = {
        "id": str(buried.id),
        "cause": letter.cause,
        "message": letter.message,
        "at": bus_time(letter.at_ms),
        "mad": letter.mad,
        "principal": letter.principal,
        "role": letter.role,
        "stream": ingress(buried.id.partition, letter.mad),
        "entry": letter.entry,
        "index": letter.index,
        "attempts": letter.attempts,
        "payload": payload,
        "payload_hex": first_bytes,
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
    The payload as a JSON value or in hexadecimal, and its size in bytes.
    """
    raw = bytes(packed)
    try:
        value = msgspec.msgpack.decode(raw)
        # The json module refuses bytes and infinities; msgspec would convert them.
        json.dumps(value, allow_nan=False)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError):
        return None, raw[:SHOWN_BYTES].hex(), len(raw)
    return value, "", len(raw)

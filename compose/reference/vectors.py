"""
Test vectors of the wire: values as JSON, and their bytes.

Bytes are `{"$hex": …}` in JSON, and times are text as RFC 3339 has it; on the wire a
time is msgpack's timestamp.
"""

import json
from datetime import UTC, datetime
from typing import Any

import msgspec

from everbus.bus import keys
from everbus.bus.events import EventPage, Position, SessionEvent
from everbus.bus.messages import (
    SCHEMA,
    CommandOutcome,
    CommittedTurn,
    Envelope,
    Reply,
    Session,
    TimelineEntry,
    TimelinePage,
    command_id,
    pack,
    pack_envelope,
)
from everbus.gateway.identity.token_exchange import TokenRequest

AT = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
INSTANCE, MAD, ID = "i7f3", "fiedler", "0192f0c1-0000-7000-8000-000000000001"
NAMES = (ID, "s-1", "ada", "Z", "a.b_c-d", "0" * 64)
COUNTS = (1, 2, 16, 1024)
NOT_ENVELOPES = {
    "no msgpack": ("c1", "undecodable"),
    "an array": ("930102a16b", "undecodable"),
    "trailing bytes": ("83a17601a26964a3692e31a46b696e64a16b00", "undecodable"),
    "no kind": ("82a17601a26964a169", "undecodable"),
    "a newer schema": ("83a17602a26964a5692e302e31a46b696e64a16b", "newer_schema"),
}


def vectors_page() -> str:
    """
    The vectors as JSON.
    """
    vectors = {
        "about": "Values and their bytes on the bus; bus/README.md explains them.",
        "values": [
            {"name": name, "type": type(value).__name__, **_both_forms(value)}
            for name, value in values().items()
        ],
        "refused": [
            {"name": name, "type": "Envelope", "msgpack": packed, "cause": cause}
            for name, (packed, cause) in NOT_ENVELOPES.items()
        ],
        "partitions": [
            {
                "session": name,
                "partitions": count,
                "partition": keys.partition_of(name, count),
            }
            for name in NAMES
            for count in COUNTS
        ],
        "names": _names(),
    }

    return json.dumps(vectors, indent=1, ensure_ascii=False) + "\n"


def values() -> dict[str, Any]:
    """
    One value for each form that a client meets.
    """
    session = Session(
        id=ID, version=2, owner_id="ada", created_at=AT, last_active=AT, last_seq=1
    )
    entry = TimelineEntry(1, AT, MAD, {"role": "user", "text": "Why tides? 🌊"})
    event = SessionEvent(
        id=Position("mj8x2k0e", 2, 0, 0).id,
        session=ID,
        kind="session.updated",
        at=AT,
        version=2,
        seq=0,
        mad=MAD,
        principal="ada",
        command_id=f"{INSTANCE}.0.2",
        patch={"tags": ["physics"]},
    )

    return {
        "a command at its defaults": Envelope(
            v=SCHEMA, id=f"{INSTANCE}.0.1", kind="session.get", session=ID
        ),
        "a command with everything": _full_envelope(),
        "an append without a reply": _envelope(
            3, "timeline.append", {"entry": {"text": "ü", "n": [1, 2.5, None, True]}}
        ),
        "an integer at its limit": _envelope(
            4, "timeline.append", {"entry": [2**53, -(2**53), 0.1]}
        ),
        "a turn": _envelope(
            5,
            "session.turn",
            {"entries": [{"text": "ü"}, 7], "patch": {"tags": ["physics"]}},
        ),
        "a heartbeat": _heartbeat(),
        "a reply": Reply(id=f"{INSTANCE}.0.2", body=msgspec.Raw(pack({"seq": 1}))),
        "a reply without a value": Reply(id=f"{INSTANCE}.0.5"),
        "a refusal": Reply(
            id=f"{INSTANCE}.0.2",
            code="version_conflict",
            message="the session has version 3, not 2",
            details={"current_version": 3},
        ),
        "a session": session,
        "a page of a timeline": TimelinePage((entry,), next=None),
        "a page that ends in a turn": TimelinePage(
            (TimelineEntry(1, AT, MAD, {"text": "ü"}, turn=f"{INSTANCE}.0.5"),), next=1
        ),
        "a committed turn": CommittedTurn(
            turn=f"{INSTANCE}.0.5", version=3, seqs=(1, 2)
        ),
        "a page of events": EventPage(events=(event,), next=event.id),
        "an outcome": CommandOutcome("rejected", "forbidden", "not on its ACL"),
        "a token request, without the 128 bytes before it": TokenRequest(
            INSTANCE, "header.claims.sign", 1
        ),
    }


def _envelope(n: int, kind: str, body: Any) -> Envelope:  # a JSON value
    identifier = command_id(INSTANCE, 0, n)

    return Envelope(
        v=SCHEMA, id=identifier, kind=kind, session=ID, body=msgspec.Raw(pack(body))
    )


def _full_envelope() -> Envelope:
    return msgspec.structs.replace(
        _envelope(2, "session.update", {"patch": {"tags": ["physics"]}}),
        expected_version=1,
        deadline_ms=10_000,
        grant=b"\x00\x01grant\xff",
        reply=True,
        trace="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        durability="warm",
        epoch=1,
    )


def _heartbeat() -> Envelope:
    body = msgspec.Raw(pack({"instance": INSTANCE, "epoch": 1}))

    return Envelope(v=SCHEMA, id=f"{INSTANCE}.1.1", kind="instance.join", body=body)


def _both_forms(value: Any) -> dict[str, Any]:  # a struct of the wire
    packed = pack_envelope(value) if isinstance(value, Envelope) else pack(value)

    return {"json": _plain(msgspec.msgpack.decode(packed)), "msgpack": packed.hex()}


def _plain(value: Any) -> Any:  # a decoded msgpack value
    """
    *value* as JSON has it.
    """
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, bytes):
        return {"$hex": value.hex()}
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return value


def _names() -> dict[str, str]:
    """
    Keys and channels, for partition 0, MAD and instance of the vectors.
    """
    return {
        "config": keys.CONFIG,
        "mads": keys.MADS,
        "news": keys.NEWS,
        "ingress": keys.ingress(0, MAD),
        "heartbeats": keys.ingress(keys.PRESENCE, MAD),
        "reply": keys.reply(0, MAD, command_id(INSTANCE, 0, 1)),
        "reply to an id of your own": keys.reply(0, MAD, "my-id", INSTANCE),
        "wake": keys.wake(MAD, INSTANCE),
        "token": keys.token(MAD),
    }

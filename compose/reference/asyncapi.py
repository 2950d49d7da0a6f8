"""
The bus as AsyncAPI 3: channels, messages and their schemas, from the wire's own types.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from everbus.bus import keys
from everbus.bus.credential import UNLOGGED
from everbus.bus.events import SessionEvent
from everbus.bus.messages import SCHEMA, Envelope, Reply
from everbus.compose.reference.markdown import about
from everbus.compose.reference.wire_types import (
    bodies,
    described,
    heartbeat_bodies,
    value_of,
)
from everbus.gateway.identity.token_exchange import TokenRequest

Described = dict[str, Any]  # as AsyncAPI has it

# A hash tag's braces are literal, so a parameter in one has two pairs.
ADDRESSES = {
    "commands": keys.ingress("{partition}", "{mad}"),
    "heartbeats": keys.ingress(keys.PRESENCE, "{mad}"),
    "replies": keys.reply("{partition}", "{mad}", "{command}"),  # type: ignore[arg-type]
    "wake": keys.wake("{mad}", "{instance}"),
    "token": keys.token("{mad}"),
}
CHANNELS = {
    "commands": "A stream, written by XADD: one command in each field `c`, up to 32 "
    "of them or 256 KiB an entry.",
    "heartbeats": "A stream of the MAD's heartbeats, cut by MAXLEN ~ 10000; the key "
    "has `mads` in literal braces.",
    "replies": "A stream with one reply, in the field `r`; kept for 60 s.",
    "wake": "A Pub/Sub channel: a msgpack array of messages. A hint, which may be "
    "lost: replies lie on their streams.",
    "token": f"A Pub/Sub channel: {len(UNLOGGED)} bytes of anything, then the message.",
}
PARAMETERS = {
    "partition": "CRC-32 of the session's id, modulo `partitions` of eb:config.",
    "mad": "The MAD's name.",
    "instance": "The instance's id, made by the client.",
    "command": "The command's id.",
}


def asyncapi_page() -> str:
    """
    The description as YAML.
    """
    return "\n".join(yaml_lines(description())) + "\n"


def description() -> Described:
    """
    The description as a value.
    """
    sent = {**bodies(), **heartbeat_bodies()}
    replies = {kind: value_of(kind) for kind in bodies()}

    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "everbus",
            "version": str(SCHEMA),
            "description": "The bus that MADs and managers share: Redis Streams and "
            "Pub/Sub, values in msgpack. Generated from the code by `make docs`. "
            "bus/README.md explains it.",
        },
        "defaultContentType": "application/x-msgpack",
        "channels": {name: _channel(name, sent) for name in CHANNELS},
        "operations": _operations(sent, replies),
        "components": {
            "messages": _messages(sent, replies),
            "schemas": _schemas(sent, replies),
        },
    }


def _channel(name: str, sent: Mapping[str, Any]) -> Described:
    beats = set(heartbeat_bodies())
    members = {
        "commands": [kind for kind in sent if kind not in beats],
        "heartbeats": sorted(beats),
        "replies": [f"{kind}.reply" for kind in bodies()],
        "wake": ["wake"],
        "token": ["token"],
    }[name]
    address = ADDRESSES[name]
    used = {one: text for one, text in PARAMETERS.items() if f"{{{one}}}" in address}

    return {
        "address": address,
        "description": CHANNELS[name],
        "parameters": {one: {"description": text} for one, text in used.items()},
        "messages": {one: _ref("messages", one) for one in members},
    }


def _operations(sent: Mapping[str, Any], replies: Mapping[str, Any]) -> Described:
    operations = {
        kind: {
            "action": "send",
            "channel": _in_channel("commands"),
            "summary": about(sent[kind]),
            "messages": [_in_channel("commands", kind)],
            "reply": {
                "channel": _in_channel("replies"),
                "messages": [_in_channel("replies", f"{kind}.reply")],
            },
        }
        for kind in replies
    }
    for channel, action in (("heartbeats", "send"), ("token", "send")):
        operations[channel] = {"action": action, "channel": _in_channel(channel)}
    operations["wake"] = {"action": "receive", "channel": _in_channel("wake")}

    return operations


def _messages(sent: Mapping[str, Any], replies: Mapping[str, Any]) -> Described:
    messages: Described = {
        kind: {"summary": about(body), "payload": _envelope_of(kind, body)}
        for kind, body in sent.items()
    }
    for kind, value in replies.items():
        messages[f"{kind}.reply"] = {"payload": _reply_of(value)}
    messages["token"] = {"payload": _ref("schemas", "TokenRequest")}
    messages["wake"] = {"payload": {"type": "array", "items": {"oneOf": _WAKE}}}

    return messages


def _envelope_of(kind: str, body: Any) -> Described:
    narrowed = {"kind": {"const": kind}, "body": _ref("schemas", body.__name__)}

    return {"allOf": [_ref("schemas", "Envelope"), {"properties": narrowed}]}


def _reply_of(value: Any) -> Described:
    (schema,), _ = msgspec.json.schema_components([value], ref_template=_TEMPLATE)
    narrowed = {"properties": {"body": {"anyOf": [schema, {"type": "null"}]}}}

    return {"allOf": [_ref("schemas", "Reply"), narrowed]}


def _schemas(sent: Mapping[str, Any], replies: Mapping[str, Any]) -> Described:
    kinds = {
        described(Envelope),
        described(Reply),
        SessionEvent,
        TokenRequest,
        *sent.values(),
    }
    kinds |= {value for value in replies.values() if value is not None}
    ordered = sorted(kinds, key=str)
    _, schemas = msgspec.json.schema_components(ordered, ref_template=_TEMPLATE)

    return dict(sorted(schemas.items()))


def _ref(group: str, name: str) -> Described:
    return {"$ref": f"#/components/{group}/{name}"}


def _in_channel(channel: str, message: str = "") -> Described:
    inner = f"/messages/{message}" if message else ""

    return {"$ref": f"#/channels/{channel}{inner}"}


_TEMPLATE = "#/components/schemas/{name}"
_WAKE: list[Described] = [
    {"type": "string", "description": "The id of a command: its reply is there."},
    {
        "type": "string",
        "contentEncoding": "binary",
        "description": "A reply of at most 4 KiB, in msgpack, as on its stream.",
    },
    {
        "type": "object",
        "description": "Answer to a token.",
        "properties": {
            "showing": {"type": "integer"},
            "grant": {"type": "string", "contentEncoding": "binary"},
            "lasts_s": {"type": "number"},
            "tenant": {"type": "string"},
            "refused": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["showing"],
    },
    {
        "type": "object",
        "description": "Events of a session, pushed; empty: ask by session.watch.",
        "properties": {
            "session": {"type": "string"},
            "events": {"type": "array", "items": _ref("schemas", "SessionEvent")},
        },
        "required": ["session", "events"],
    },
    {
        "type": "object",
        "description": "The managers declared this epoch of the instance lost.",
        "properties": {"superseded": {"type": "integer"}},
        "required": ["superseded"],
    },
]


def yaml_lines(value: Any, depth: int = 0) -> Iterator[str]:  # a JSON value
    """
    *value* as lines of YAML: maps and lists in block style, scalars as JSON.
    """
    pairs = (
        ((json.dumps(key) + ":", one) for key, one in value.items())
        if isinstance(value, dict)
        else (("-", one) for one in value)
    )
    for head, one in pairs:
        if isinstance(one, dict | list) and one:
            yield "  " * depth + head
            yield from yaml_lines(one, depth + 1)
        else:
            yield "  " * depth + f"{head} {json.dumps(one, ensure_ascii=False)}"

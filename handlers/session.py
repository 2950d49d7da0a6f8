"""
The Session value's rules: its beginning, its patches, its tail, its limits.
"""

from datetime import datetime
from typing import Any

import msgspec

from bus.errors import Invalid, TooLarge
from bus.messages import Session, TimelineEntry, check_json, check_name

RECENT_ENTRIES = 20
# Customer's bound for the hot tier: "<50KB active session data" (seed 000).
HOT_BYTES = 50 * 1024
# The recent timeline takes at most this much of it, and gives way to the state.
TAIL_BYTES = 24 * 1024
MAX_ACL = 1000

PATCHABLE = frozenset({"acl", "context_summary", "work_in_progress"})
PROTECTED = frozenset(Session.__struct_fields__) - PATCHABLE

# What an append can add to the state's size: a longer seq, a longer time. It is
# never refused for its size, so it must not push the state over the bound.
_GROWTH_BYTES = 16

_encode = msgspec.msgpack.Encoder().encode


def new_session(session_id: str, owner: str, creator: str, now: datetime) -> Session:
    """
    A session at version 1; a creator who is not the owner enters its ACL.
    """
    return Session(
        id=session_id,
        version=1,
        owner_id=owner,
        created_at=now,
        last_active=now,
        acl=() if creator == owner else (creator,),
    )


def patched(session: Session, patch: dict[str, Any], now: datetime) -> Session:
    """
    The session one version on, with *patch* merged in (RFC 7396).

    Raises:
        Invalid: a field is unknown, protected, or gets a value of a wrong type.
        TooLarge: the state would exceed HOT_BYTES.
    """
    changes = {name: _merged(session, name, value) for name, value in patch.items()}

    return changed(session, now, **changes)


def changed(session: Session, now: datetime, **changes: Any) -> Session:
    """
    The session one version on with *changes* to its fields.

    Raises:
        TooLarge: the state would exceed HOT_BYTES.
    """
    changes |= {"version": session.version + 1, "last_active": now}
    after = msgspec.structs.replace(session, **changes)
    size = _state_bytes(after)
    if size > HOT_BYTES:
        raise TooLarge(
            f"hot state would be {size} bytes; the limit is {HOT_BYTES}. "
            "Move detail to the timeline",
            size=size,
            limit=HOT_BYTES,
        )
    tail = trimmed(after.recent_timeline, HOT_BYTES - size)
    if len(tail) == len(after.recent_timeline):
        return after

    return msgspec.structs.replace(after, recent_timeline=tail)


def appended(
    session: Session, author: str, entry: bytes, now: datetime
) -> tuple[Session, bytes]:
    """
    The session with *entry* (msgpack) as its newest, and the encoded entry.

    An entry too large for the tail stays out of it and is read from the warm
    tier; so do the entries before it, since the tail has no holes.
    """
    seq = session.last_seq + 1
    packed = _encode(TimelineEntry(seq, now, author, msgspec.Raw(entry)))
    room = HOT_BYTES - _state_bytes(session)
    tail = trimmed((*session.recent_timeline, packed), room)
    after = msgspec.structs.replace(
        session, last_seq=seq, last_active=now, recent_timeline=tail
    )
    return after, packed


def trimmed(tail: tuple[bytes, ...], room: int) -> tuple[bytes, ...]:
    """
    The newest of *tail*: at most RECENT_ENTRIES, TAIL_BYTES and *room* bytes.
    """
    room = min(room, TAIL_BYTES)
    first = len(tail)
    while first > 0 and len(tail) - first < RECENT_ENTRIES:
        room -= len(tail[first - 1])
        if room < 0:
            break
        first -= 1
    return tail[first:]


def merge(target: Any, patch: Any) -> Any:
    """
    *target* with the JSON merge patch *patch* applied (RFC 7396, section 2).

    Neither argument is changed.
    """
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


def _merged(session: Session, name: str, value: Any) -> Any:
    if name in PROTECTED:
        raise Invalid(f"{name} is protected; it cannot be patched", field=name)
    if name not in PATCHABLE:
        # Shortened: the name is the caller's, and the refusal is kept for long.
        shown = ascii(name)[:80]
        raise Invalid(
            f"{shown} is no field of a session; known: {', '.join(sorted(PATCHABLE))}",
            field=name[:80],
        )
    check_json(value, name)
    if name == "acl":
        return _checked_acl(value)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Invalid(f"{name} must be an object or null", field=name)
    # Every path in the result is one of the field's or one of the patch's, so
    # what both may hold, the result may hold: no second check.
    return merge(getattr(session, name), value)


def _checked_acl(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise Invalid("acl must be a list of names or null", field="acl")
    if len(value) > MAX_ACL:
        raise Invalid(f"acl has {len(value)} names; at most {MAX_ACL}", field="acl")
    return tuple(dict.fromkeys(check_name(name, "acl") for name in value))


def _state_bytes(session: Session) -> int:
    bare = session
    if session.recent_timeline:
        bare = msgspec.structs.replace(session, recent_timeline=())

    return len(_encode(bare)) + _GROWTH_BYTES

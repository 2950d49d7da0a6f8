"""
The Session value's rules: its beginning, its patches, its tail, its limits.
"""

from datetime import datetime
from typing import Any

import msgspec

from bus.errors import TooLarge
from bus.messages import Session, State, TimelineEntry

RECENT_ENTRIES = 20
# Customer's bound for the hot tier: "<50KB active session data" (seed 000).
# Two KiB of it are Redis's own: keys, field names, the list's nodes.
HOT_BYTES = 48 * 1024
# The recent timeline takes at most this much of it, and gives way to the state.
TAIL_BYTES = 24 * 1024
# What appending, suspending, resuming and broadcasting can add to the state's size: a
# longer seq, version, count of notices, time and state. They are never refused for
# their size, so they must not push the state over the bound.
_GROWTH_BYTES = 32

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


def changed(session: Session, now: datetime, **changes: Any) -> Session:
    """
    The session one version on with *changes* to its fields; active, if it rested.

    Raises:
        TooLarge: the state would exceed HOT_BYTES.
    """
    if session.state == "dormant":
        changes["state"] = "active"
    changes |= {"version": session.version + 1, "last_active": later(session, now)}
    after = msgspec.structs.replace(session, **changes)
    size = _state_bytes(after)
    if size > HOT_BYTES:
        raise TooLarge(
            f"hot state would be {size} bytes; the limit is {HOT_BYTES}. "
            "Move detail to the timeline",
            size=size,
            limit=HOT_BYTES,
        )
    return _fitting(after, size)


def deprived(session: Session, now: datetime, **changes: Any) -> Session:
    """
    The session one version on after a loss: never refused, and it wakes nobody.
    """
    changes |= {"version": session.version + 1, "last_active": later(session, now)}
    after = msgspec.structs.replace(session, **changes)

    return _fitting(after, _state_bytes(after))


def moved(session: Session, state: State, now: datetime) -> Session:
    """
    The session one version on in another *state*; never refused for its size.
    """
    return msgspec.structs.replace(
        session,
        state=state,
        version=session.version + 1,
        last_active=later(session, now),
    )


def later(session: Session, now: datetime) -> datetime:
    """
    *now*, but never earlier than what the session has seen.

    A server's clock may step back, for example when a replica of Redis takes over;
    within a session time does not, so its entries are in order of time as well.
    """
    return max(now, session.last_active)


def appended(
    session: Session, author: str, entry: bytes, now: datetime
) -> tuple[Session, bytes]:
    """
    The session with *entry* (msgpack) as its newest, and the encoded entry.

    An entry too large for the tail stays out of it and is read from the warm
    tier; so do the entries before it, since the tail has no holes.
    """
    seq, at = session.last_seq + 1, later(session, now)
    encoded = _encode(TimelineEntry(seq, at, author, msgspec.Raw(entry)))
    # A copy that is just as large as it is: the encoder's own bytes keep half as much
    # again, and tails are what most of a replica's memory holds.
    packed = bytes(memoryview(encoded))
    room = HOT_BYTES - _state_bytes(session)
    tail = trimmed((*session.recent_timeline, packed), room)
    after = msgspec.structs.replace(
        session, last_seq=seq, last_active=at, recent_timeline=tail
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
        elif isinstance(value, dict):
            merged[name] = merge(merged.get(name), value)
        else:
            merged[name] = value
    return merged


def _fitting(session: Session, size: int) -> Session:
    """
    The session, its state of *size* bytes, with as much of its tail as has room.
    """
    tail = trimmed(session.recent_timeline, HOT_BYTES - size)
    if len(tail) == len(session.recent_timeline):
        return session
    return msgspec.structs.replace(session, recent_timeline=tail)


def _state_bytes(session: Session) -> int:
    bare = session
    if session.recent_timeline:
        bare = msgspec.structs.replace(session, recent_timeline=())

    return len(_encode(bare)) + _GROWTH_BYTES

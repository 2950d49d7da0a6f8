"""
Rules of the Session value: creation, versions, recent entries, limits, merge patches.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from everbus.bus.errors import Invalid, TooLarge
from everbus.bus.messages import Session, State, TimelineEntry, check_json
from everbus.handlers.access_list import check_entry, creators_entry

RECENT_ENTRIES = 20
# Customer's bound for the hot tier: "<50KB active session data" (seed 000).
# Redis itself takes two KiB of it: keys, field names, the list's nodes.
HOT_BYTES = 48 * 1024
# Most bytes of the recent timeline, which gives way to the state.
TAIL_BYTES = 24 * 1024
# Growth of the state by appending, suspending, resuming and broadcasting: a longer seq,
# version, count of notices, time and state. These are never refused for their size, so
# they must not push the state over the bound.
_GROWTH_BYTES = 32

MAX_ACL = 1000
MAX_TAGS = 32
MAX_LABEL = 64
# Half of MongoDB's limit for one document; the rest of the session takes less than a
# tenth of that.
CONTEXT_BYTES = 8 * 1024 * 1024

PATCHABLE = frozenset(
    {"acl", "context_summary", "fields", "full_context", "tags", "work_in_progress"}
)
PROTECTED = frozenset(Session.__struct_fields__) - PATCHABLE

# Sorting takes time, and only what is compared needs it.
_encode = msgspec.msgpack.Encoder().encode
_sorted = msgspec.msgpack.Encoder(order="deterministic").encode


def new_session(
    session_id: str, owner: str, creator: str, now: datetime, *, is_mad: bool
) -> Session:
    """
    A session at version 1; a creator other than the owner, a MAD by *is_mad*, is
    put on its ACL.
    """
    return Session(
        id=session_id,
        version=1,
        owner_id=owner,
        created_at=now,
        last_active=now,
        acl=() if creator == owner else (creators_entry(creator, is_mad=is_mad),),
    )


def changed(session: Session, now: datetime, **changes: Any) -> Session:
    """
    The session with *changes*, at the next version; a dormant one becomes active.

    Raises:
        TooLarge: the state would exceed HOT_BYTES.
    """
    if session.state == "dormant":
        changes["state"] = "active"
    changes |= {"version": session.version + 1, "last_active": not_before(session, now)}
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


def changed_by_loss(session: Session, now: datetime, **changes: Any) -> Session:
    """
    The session with *changes* after a loss, at the next version.

    Never refused for its size; a dormant session stays dormant.
    """
    changes |= {"version": session.version + 1, "last_active": not_before(session, now)}
    after = msgspec.structs.replace(session, **changes)

    return _fitting(after, _state_bytes(after))


def in_state(session: Session, state: State, now: datetime) -> Session:
    """
    The session in another *state*, at the next version; never refused for its size.
    """
    return msgspec.structs.replace(
        session,
        state=state,
        version=session.version + 1,
        last_active=not_before(session, now),
    )


def not_before(session: Session, now: datetime) -> datetime:
    """
    *now*, but not before the session's last activity.

    A server's clock may step back, for example when a replica of Redis takes over. Time
    within a session does not, so its entries are in order of time as well.
    """
    return max(now, session.last_active)


def appended(
    session: Session,
    author: str,
    entries: Sequence[bytes],
    now: datetime,
    turn: str = "",
) -> tuple[Session, tuple[bytes, ...]]:
    """
    The session with *entries* (msgpack each) as its newest entries, of one *turn*, and
    the encoded entries.

    An entry too large for the tail stays out of it and is read from the warm
    tier; so do the entries before it, since the tail has no holes.
    """
    first, at = session.last_seq + 1, not_before(session, now)
    packed = []
    for seq, entry in enumerate(entries, first):
        encoded = _encode(TimelineEntry(seq, at, author, msgspec.Raw(entry), turn))
        # An exact copy: the encoder's bytes reserve half as much again, and recent
        # timelines take most of a replica's memory.
        packed.append(bytes(memoryview(encoded)))
    room = HOT_BYTES - _state_bytes(session)
    after = msgspec.structs.replace(
        session,
        last_seq=first - 1 + len(packed),
        last_active=at,
        recent_timeline=trimmed((*session.recent_timeline, *packed), room),
    )
    return after, tuple(packed)


def trimmed(tail: tuple[bytes, ...], room: int) -> tuple[bytes, ...]:
    """
    The newest entries of *tail*: at most RECENT_ENTRIES, TAIL_BYTES and *room* bytes.
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
    The session with as much of its recent timeline as its state of *size* bytes leaves.
    """
    if not session.recent_timeline:
        return session
    tail = trimmed(session.recent_timeline, HOT_BYTES - size)
    if len(tail) == len(session.recent_timeline):
        return session
    return msgspec.structs.replace(session, recent_timeline=tail)


def _state_bytes(session: Session) -> int:
    bare = session
    if session.recent_timeline:
        bare = msgspec.structs.replace(session, recent_timeline=())

    return len(_encode(bare)) + _GROWTH_BYTES


def patched(
    session: Session,
    patch: dict[str, Any],
    now: datetime,
    context: dict[str, Any] | None = None,
) -> Session:
    """
    The session one version on, with *patch* merged in (RFC 7396); itself if that
    changes nothing.

    A patch of `full_context` changes only `context_bytes` here. These are an upper
    bound, which every patch raises, until `needs_context` asks for the *context* that
    makes them exact.

    Raises:
        Invalid: a field is unknown, protected, or gets a value of a wrong type.
        TooLarge: the state would exceed HOT_BYTES, or the context CONTEXT_BYTES.
    """
    changes: dict[str, Any] = {}
    for name, value in patch.items():
        if name == "full_context":
            changes["context_bytes"] = _context_bytes(session, value, context)
        else:
            changes[name] = _merged(session, name, value)
    if _changes_nothing(session, patch, changes):
        return session
    return changed(session, now, **changes)


def needs_context(session: Session, patch: dict[str, Any]) -> bool:
    """
    Whether the upper bound of the context's size says too little of *patch*: only the
    context itself can tell whether the result fits.
    """
    value = patch.get("full_context")
    if not isinstance(value, dict) or not session.context_bytes:
        return False
    size = _document_bytes(value)

    return size <= CONTEXT_BYTES < session.context_bytes + size


def check_label(value: object, field: str) -> str:
    """
    Return *value* if it is text of 1 to MAX_LABEL characters without NUL.

    Raises:
        Invalid: naming *field*.
    """
    check_json(value, field)
    if isinstance(value, str) and 1 <= len(value) <= MAX_LABEL and "\0" not in value:
        return value
    raise Invalid(
        f"{field} holds {ascii(value)[:80]}; wanted text of 1 to {MAX_LABEL} "
        "characters without NUL",
        field=field,
    )


def check_fields(fields: dict[str, Any], kind: type[Any] | None) -> None:
    """
    Accept *fields* if they convert to *kind*, the application's type; None accepts all.

    Raises:
        Invalid: naming the field by its path.
    """
    if kind is None:
        return
    try:
        msgspec.convert(fields, kind, strict=True)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$")
        field = f"fields{path.rstrip('`')}"[:80]
        raise Invalid(f"{field}: {what[:300]}", field=field) from error


def _merged(session: Session, name: str, value: Any) -> Any:
    if name not in PATCHABLE:
        raise _not_patchable(name)
    check_json(value, name)
    if name == "acl":
        return _checked_acl(value)
    if name == "tags":
        return _checked_tags(value)
    if value is None:
        return {}
    _check_object(value, name)
    # Every path in the result comes from the field or from the patch, and both are
    # checked: no second check.
    return merge(getattr(session, name), value)


def _not_patchable(name: str) -> Invalid:
    if name in PROTECTED:
        return Invalid(f"{name} is protected; it cannot be patched", field=name)
    # Shortened: the caller chose the name, and the refusal is stored for long.
    shown = ascii(name)[:80]

    return Invalid(
        f"{shown} is no field of a session; known: {', '.join(sorted(PATCHABLE))}",
        field=name[:80],
    )


def _checked_acl(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise Invalid("acl must be a list of names or null", field="acl")
    if len(value) > MAX_ACL:
        raise Invalid(f"acl has {len(value)} names; at most {MAX_ACL}", field="acl")
    return tuple(dict.fromkeys(check_entry(name, "acl") for name in value))


def _checked_tags(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise Invalid("tags must be a list of words or null", field="tags")
    tags = tuple(dict.fromkeys(check_label(tag, "tags") for tag in value))
    if len(tags) > MAX_TAGS:
        raise Invalid(f"tags has {len(tags)} words; at most {MAX_TAGS}", field="tags")
    return tags


def _check_object(value: Any, name: str) -> None:
    if not isinstance(value, dict):
        raise Invalid(f"{name} must be an object or null", field=name)


def _changes_nothing(
    session: Session, patch: dict[str, Any], changes: dict[str, Any]
) -> bool:
    if patch.get("full_context"):
        return False  # what it replaces is not known here
    for name, value in changes.items():
        if getattr(session, name) != value:
            return False
    before = {name: getattr(session, name) for name in changes}

    # 1, 1.0 and true are equal to Python, and different JSON.
    return _sorted(before) == _sorted(changes)


def _context_bytes(session: Session, value: Any, context: dict[str, Any] | None) -> int:
    if value is None:
        return 0
    check_json(value, "full_context")
    _check_object(value, "full_context")
    if context is None:
        size = session.context_bytes + (_document_bytes(value) if value else 0)
    else:
        size = _document_bytes(merge(context, value))
    if size > CONTEXT_BYTES:
        raise TooLarge(
            f"full_context would take {size} bytes with this patch; the limit is "
            f"{CONTEXT_BYTES}. Remove what is not needed: a key set to null goes",
            size=size,
            limit=CONTEXT_BYTES,
        )
    return size


def _document_bytes(value: Any) -> int:
    """
    Upper bound of the BSON size of *value* (bsonspec.org); a list of small numbers
    takes twelve times its msgpack size.
    """
    total, rest = 0, [value]
    while rest:
        item = rest.pop()
        if isinstance(item, str):
            total += 5 + len(item.encode())
        elif isinstance(item, dict):
            total += 5 + sum(2 + len(name.encode()) for name in item)
            rest += item.values()
        elif isinstance(item, list | tuple):
            total += 5 + len(item) * (2 + len(str(len(item))))
            rest += item
        else:
            total += 8
    return total

"""
The history of a session: content of a version, difference of two, rebuilding of one.

A version is the result of `state_of`. Each step of the version leaves a merge patch
(RFC 7396) from the state before to the state after, so any version is a stored state
plus the patches behind it. The timeline has its own seq, and the full context has no
versions: both are left out.
"""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec import NODEFAULT

from everbus.bus.messages import Session, SessionChange
from everbus.handlers.patches import merge

# Fields of a version; `full_context` occurs in patches, but in no state.
STATE_FIELDS = (
    *("owner_id", "state", "acl", "participants", "tags", "fields"),
    *("context_summary", "work_in_progress"),
)
_LISTS = frozenset({"acl", "tags"})
_DEFAULTS: dict[str, Any] = {
    name: field.default if field.default_factory is NODEFAULT else {}
    for field in msgspec.structs.fields(Session)
    if (name := field.name) in STATE_FIELDS and not field.required
}
_canonical = msgspec.msgpack.Encoder(order="deterministic").encode


def state_of(session: Session) -> dict[str, Any]:
    """
    State of the session's version: JSON values by field.
    """
    return {
        name: list(value) if name in _LISTS else value
        for name in STATE_FIELDS
        for value in (getattr(session, name),)
    }


def with_state(session: Session, state: dict[str, Any]) -> Session:
    """
    The session with *state* in place of its own; a field that is newer than *state*
    gets its default.
    """
    kept = _DEFAULTS | {name: state[name] for name in STATE_FIELDS if name in state}
    lists = {name: tuple(kept[name]) for name in _LISTS}

    return msgspec.structs.replace(session, **kept | lists)


def difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """
    The smallest merge patch from *before* to *after*.

    Null removes a field of an object, so *after* must not contain null outside lists;
    a result of merge patches never does.
    """
    patch: dict[str, Any] = {name: None for name in before if name not in after}
    for name, value in after.items():
        old = before.get(name)
        if isinstance(old, dict) and isinstance(value, dict):
            if inner := difference(old, value):
                patch[name] = inner
        elif name not in before or not _same(old, value):
            patch[name] = value
    return patch


def digest(state: dict[str, Any]) -> str:
    """
    SHA-256, hexadecimal, of the state's canonical form: msgpack, keys in order.
    """
    return hashlib.sha256(_canonical(state)).hexdigest()


def replayed(base: Session, changes: Sequence[SessionChange]) -> Session:
    """
    The session after *changes*: all steps behind *base*, in ascending version.

    Version, last seq and last activity are those of the last change.

    Raises:
        ValueError: a step is missing, so the state would be wrong.
    """
    state, version = state_of(base), base.version
    for change in changes:
        if change.version != version + 1:
            raise ValueError(
                f"session {base.id}: version {change.version} follows {version}; "
                "the history has a hole"
            )
        state, version = merge(state, versioned(change.patch)), change.version
    if not changes:
        return base
    last = changes[-1]

    return msgspec.structs.replace(
        with_state(base, state),
        version=last.version,
        last_seq=last.seq,
        last_active=last.at,
    )


def first_of(session_id: str, created_at: datetime, change: SessionChange) -> Session:
    """
    The session at its first version, from the change of `session.created`.
    """
    bare = Session(
        id=session_id,
        version=change.version,
        owner_id=change.patch["owner_id"],
        created_at=created_at,
        last_active=change.at,
        last_seq=change.seq,
    )
    return with_state(bare, versioned(change.patch))


def versioned(patch: dict[str, Any]) -> dict[str, Any]:
    """
    The patch without the full context, which versions do not cover.
    """
    if "full_context" not in patch:
        return patch
    return {name: value for name, value in patch.items() if name != "full_context"}


def _same(one: Any, other: Any) -> bool:
    # By their canonical form: to Python 1, 1.0 and True are equal.
    return _canonical(one) == _canonical(other)

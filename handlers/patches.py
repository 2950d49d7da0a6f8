"""
Merge patches of a session: which fields they may touch, and what those may hold.
"""

from datetime import datetime
from typing import Any

import msgspec

from bus.errors import Invalid, TooLarge
from bus.messages import Session, check_json, check_name
from handlers.session import changed, merge

MAX_ACL = 1000
MAX_TAGS = 32
MAX_LABEL = 64
# Half of MongoDB's limit for one document, of which the rest of the session takes
# less than a tenth.
CONTEXT_BYTES = 8 * 1024 * 1024

PATCHABLE = frozenset(
    {"acl", "context_summary", "fields", "full_context", "tags", "work_in_progress"}
)
PROTECTED = frozenset(Session.__struct_fields__) - PATCHABLE


def patched(session: Session, patch: dict[str, Any], now: datetime) -> Session:
    """
    The session one version on, with *patch* merged in (RFC 7396).

    Of a patch to `full_context` only its size is kept, in `context_bytes`.

    Raises:
        Invalid: a field is unknown, protected, or gets a value of a wrong type.
        TooLarge: the state would exceed HOT_BYTES, or the context CONTEXT_BYTES.
    """
    changes: dict[str, Any] = {}
    for name, value in patch.items():
        if name == "full_context":
            changes["context_bytes"] = _context_bytes(session, value)
        else:
            changes[name] = _merged(session, name, value)

    return changed(session, now, **changes)


def check_label(value: object, field: str) -> str:
    """
    *value*, if it is text of 1 to MAX_LABEL characters without NUL.

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
    Accept *fields* if the application's type for them does; None: anything.

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
    # Every path in the result is one of the field's or one of the patch's, so
    # what both may hold, the result may hold: no second check.
    return merge(getattr(session, name), value)


def _not_patchable(name: str) -> Invalid:
    if name in PROTECTED:
        return Invalid(f"{name} is protected; it cannot be patched", field=name)
    # Shortened: the name is the caller's, and the refusal is kept for long.
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
    return tuple(dict.fromkeys(check_name(name, "acl") for name in value))


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


def _context_bytes(session: Session, value: Any) -> int:
    if value is None:
        return 0
    check_json(value, "full_context")
    _check_object(value, "full_context")
    size = session.context_bytes + _document_bytes(value)
    if size > CONTEXT_BYTES:
        raise TooLarge(
            f"full_context may take {size} bytes with this patch; the limit is "
            f"{CONTEXT_BYTES}. Set it to null, then write anew what is still needed",
            size=size,
            limit=CONTEXT_BYTES,
        )
    return size


def _document_bytes(value: Any) -> int:
    """
    At least what MongoDB takes for *value* (bsonspec.org); a list of small numbers
    takes twelve times what it takes in msgpack.
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

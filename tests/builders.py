"""
Valid values with one line each, so that a test names only what it is about.
"""

from datetime import UTC, datetime
from typing import Any

import msgspec

from bus.messages import SCHEMA, Envelope, Session
from handlers.commands import Command

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


def an_envelope(
    kind: str, *, session: str = "s1", body: Any = None, **fields: Any
) -> Envelope:
    """
    An envelope as the SDK would make it; *body* is packed, `{}` by default.
    """
    known: dict[str, Any] = {"v": SCHEMA, "id": "i1.0.1", "token": "t"}
    packed = msgspec.Raw(msgspec.msgpack.encode({} if body is None else body))

    return Envelope(**known | fields, kind=kind, session=session, body=packed)


def a_session(**fields: Any) -> Session:
    """
    Ada's session `s1` at version 1, in which nobody takes part yet.
    """
    known: dict[str, Any] = {
        "id": "s1",
        "version": 1,
        "owner_id": "ada",
        "created_at": NOW,
        "last_active": NOW,
    }
    return Session(**known | fields)


def a_command(kind: str, body: Any, **fields: Any) -> Command:
    """
    An authorised command of the MAD `fiedler` on behalf of Ada for `s1`.
    """
    known: dict[str, Any] = {
        "id": "i1.0.1",
        "session_id": "s1",
        "mad": "fiedler",
        "principal": "ada",
    }
    return Command(**known | fields, kind=kind, body=body)

"""
Valid values with one line each, so that a test names only what it is about.
"""

import time
from datetime import UTC, datetime
from typing import Any

import msgspec

from everbus.bus.messages import SCHEMA, Envelope, Session
from everbus.gateway.identity.grants import Grants, derived_key
from everbus.gateway.identity.principal import Principal, Role
from everbus.handlers.commands import Command

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


def an_envelope(
    kind: str, *, session: str = "s1", body: Any = None, **fields: Any
) -> Envelope:
    """
    An envelope as the SDK would make it; *body* is packed, `{}` by default.
    """
    known: dict[str, Any] = {"v": SCHEMA, "id": "i1.0.1", "grant": b"g"}
    packed = msgspec.Raw(msgspec.msgpack.encode({} if body is None else body))

    return Envelope(**known | fields, kind=kind, session=session, body=packed)


def an_unsent(kind: str, **fields: Any) -> Envelope:
    """
    An envelope as a publisher is given it: without an id and without a grant.
    """
    return an_envelope(kind, **{"id": "", "grant": b""} | fields)


def sealed_grant(
    secret: str,
    name: str,
    role: Role,
    *,
    mad: str,
    instance: str = "",
    tenant: str = "",
    ttl_s: float = 24 * 3600,
) -> bytes:
    """
    A grant as managers that share the JWT secret *secret* give it to an instance.

    For commands under ids that are no numbers, any *instance* will do.
    """
    principal = Principal(name, role, time.time() + ttl_s, tenant)

    return Grants(derived_key(secret)).for_instance(principal, mad, instance)


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

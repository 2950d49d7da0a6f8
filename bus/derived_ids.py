"""
Session ids that follow from names: of "the session of a user", and of a request's key.

Nobody but their tenant may create a session under one, or a stranger could take it
first. A UUID tells by its version that it is derived.
"""

import re
import uuid

from everbus.bus.errors import Invalid
from everbus.bus.keys import EDGE

# Namespace of the ids of "the session of a user" (RFC 9562, section 5.5).
USER_SESSIONS = uuid.UUID("6f0f0f4c-6b52-5c0e-9a3b-2f1f3a9c7d10")
_UUID = re.compile(
    r"(?i)[0-9a-f]{8}-[0-9a-f]{4}-([58])[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
)


def user_session_id(tenant: str, user_id: str) -> str:
    """
    The id of the one session of *user_id*, a UUIDv5.
    """
    whose = user_id
    # No tenant's name has a slash or is empty: no user shares an id with another's.
    if tenant or "/" in user_id:
        whose = f"{tenant}/{user_id}"

    return str(uuid.uuid5(USER_SESSIONS, whose))


def check_reserved(session_id: str, tenant: str, user_id: str, mad: str) -> None:
    """
    Accept the id for a new session of *user_id* in *tenant*, created by *mad*.

    Raises:
        Invalid: naming `session`: the id is derived, and not from these names. Only an
            edge derives ids from keys (UUIDv8).
    """
    found = _UUID.fullmatch(session_id)
    if found is None or (found[1] == "8" and mad == EDGE):
        return
    if session_id == user_session_id(tenant, user_id):
        return
    raise Invalid(
        f"session id {session_id} has the form of an id that follows from names "
        "(UUIDv5, UUIDv8), which are reserved; choose another one, a UUIDv7 best",
        field="session",
    )

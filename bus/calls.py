"""
What all calls of the SDK share: the way to the managers, and their replies.
"""

from typing import Any

import msgspec

from bus.codec import unpack
from bus.lease import Lease
from bus.messages import Reply, Session, TimelineEntry
from bus.requests import Requests

DEFAULT_TIMEOUT_S = 10.0


class Calls:
    """
    Calls of one instance of a MAD.

    Attributes:
        name: the MAD's.
        instance: what tells this instance apart from all others there ever were.
    """

    def __init__(
        self,
        name: str,
        requests: Requests,
        *,
        instance: str = "",
        lease: Lease | None = None,
    ) -> None:
        self.name = name
        self.instance = instance
        self._requests = requests
        self._lease = lease
        self._ask = requests.ask


def session_in(reply: Reply) -> Session:
    """
    The session that a reply carries, its recent entries as TimelineEntry.
    """
    session: Session = unpack(reply.body, Session)
    if not session.recent_timeline:
        return session
    tail = tuple(msgspec.convert(e, TimelineEntry) for e in session.recent_timeline)

    return msgspec.structs.replace(session, recent_timeline=tail)


def given(**fields: Any) -> dict[str, Any]:
    """
    Those *fields* that are not None, as a command's body.
    """
    return {name: value for name, value in fields.items() if value is not None}

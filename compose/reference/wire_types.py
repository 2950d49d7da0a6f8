"""
The types on the wire, by kind of command: bodies, and values of replies.
"""

from typing import Any

import msgspec

from everbus.bus.events import EventPage
from everbus.bus.heartbeat import BEAT, JOIN, LEAVE
from everbus.bus.messages import (
    Checkpoint,
    CheckpointPage,
    CommandOutcome,
    CommittedTurn,
    Difference,
    Durable,
    Session,
    SessionPage,
    Stats,
    TimelinePage,
)
from everbus.gateway.lane.cache import RequestOutcome
from everbus.gateway.lane.delivery import CANCEL_KIND, OUTCOME_KIND
from everbus.gateway.presence.heartbeats import Heartbeat
from everbus.handlers.routes import HANDLERS

# Only the gateway may send these.
GATEWAY_ONLY = frozenset({"session.archive", "participant.lost"})
HEARTBEATS = (JOIN, BEAT, LEAVE)
# Kinds whose reply is something else than the session.
VALUES: dict[str, Any] = {
    "session.delete": None,
    "session.durable": Durable,
    "session.turn": CommittedTurn,
    "session.diff": Difference,
    "session.list": SessionPage,
    "session.stats": Stats,
    "session.broadcast": dict[str, str],
    "session.watch": EventPage,
    "timeline.append": dict[str, int],
    "timeline.read": TimelinePage,
    "checkpoint.create": Checkpoint,
    "checkpoint.list": CheckpointPage,
    OUTCOME_KIND: CommandOutcome,
    CANCEL_KIND: CommandOutcome,
}


def bodies() -> dict[str, Any]:
    """
    Kind → type of its body, of all commands that a MAD may send.
    """
    sent = {k: route.body for k, route in HANDLERS.items() if k not in GATEWAY_ONLY}

    return {**sent, OUTCOME_KIND: RequestOutcome, CANCEL_KIND: RequestOutcome}


def described(kind: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """
    A struct for its JSON schema: msgspec describes no default that is encoded already.
    """
    fields: list[Any] = []
    for one in msgspec.structs.fields(kind):
        if one.required:
            fields.append((one.name, one.type))
        elif isinstance(one.default, msgspec.Raw):
            fields.append((one.name, Any, None))
        elif one.default is msgspec.NODEFAULT:
            fields.append((one.name, one.type, one.default_factory()))
        else:
            fields.append((one.name, one.type, one.default))
    namespace = {"__doc__": kind.__doc__}

    return msgspec.defstruct(kind.__name__, fields, kw_only=True, namespace=namespace)


def value_of(kind: str) -> Any:
    """
    Type of the value that a reply to *kind* carries; None for none.
    """
    return VALUES.get(kind, Session)


def heartbeat_bodies() -> dict[str, Any]:
    """
    Kind → type of the body, of the messages about a lease.
    """
    return dict.fromkeys(HEARTBEATS, Heartbeat)

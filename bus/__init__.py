"""
The contract and the wire: all that a MAD's author installs.
"""

from everbus.bus.client import Mad
from everbus.bus.connection import connect
from everbus.bus.errors import (
    AlreadyExists,
    Cancelled,
    Defect,
    EverbusError,
    Expired,
    Forbidden,
    Invalid,
    NotFound,
    Overloaded,
    ReplyTimeout,
    Superseded,
    TooLarge,
    Unauthenticated,
    Unavailable,
    VersionConflict,
)
from everbus.bus.events import SessionEvent
from everbus.bus.messages import (
    Checkpoint,
    CheckpointPage,
    CommandOutcome,
    CommittedTurn,
    Difference,
    Durability,
    Durable,
    Session,
    SessionChange,
    SessionPage,
    Stats,
    TierStats,
    TimelineEntry,
    TimelinePage,
)
from everbus.bus.settled_numbers import RefusedCommand
from everbus.bus.turn_calls import Turn

__all__ = [
    "AlreadyExists",
    "Cancelled",
    "Checkpoint",
    "CheckpointPage",
    "CommandOutcome",
    "CommittedTurn",
    "Defect",
    "Difference",
    "Durability",
    "Durable",
    "EverbusError",
    "Expired",
    "Forbidden",
    "Invalid",
    "Mad",
    "NotFound",
    "Overloaded",
    "RefusedCommand",
    "ReplyTimeout",
    "Session",
    "SessionChange",
    "SessionEvent",
    "SessionPage",
    "Stats",
    "Superseded",
    "TierStats",
    "TimelineEntry",
    "TimelinePage",
    "TooLarge",
    "Turn",
    "Unauthenticated",
    "Unavailable",
    "VersionConflict",
    "connect",
]

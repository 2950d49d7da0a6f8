"""
The contract and the wire: all that a MAD's author installs.
"""

from bus.client import Mad
from bus.connection import connect
from bus.errors import (
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
from bus.events import SessionEvent
from bus.messages import (
    Checkpoint,
    CheckpointPage,
    CommandOutcome,
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

__all__ = [
    "AlreadyExists",
    "Cancelled",
    "Checkpoint",
    "CheckpointPage",
    "CommandOutcome",
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
    "Unauthenticated",
    "Unavailable",
    "VersionConflict",
    "connect",
]

"""
What handlers want from the tiers below before a command can be applied.
"""

from datetime import datetime

import msgspec

from bus.events import Position
from handlers.commands import ListSessions


class WarmPage(msgspec.Struct, frozen=True, kw_only=True):
    """
    A timeline page that reaches below the hot tail; given as a TimelinePage.

    Attributes:
        first: the lowest seq that may be on it.
        last: the highest one.
        since: as in ReadTimeline; `until` too.
        limit: how many at most, from *first* on, or from *last* if newest first.
        tail: the newest entries, encoded, as the hot tier has them.
        end: the seq of the last of *tail*: the timeline's last.
    """

    first: int
    last: int
    limit: int
    end: int
    since: datetime | None = None
    until: datetime | None = None
    newest_first: bool = False
    tail: tuple[bytes, ...] = ()


class FullContext(msgspec.Struct, frozen=True, kw_only=True):
    """
    The full context as of *version* at least; given as a JSON object.
    """

    version: int


class StateAt(msgspec.Struct, frozen=True, kw_only=True):
    """
    The state at *version*, at most *current*; given as a Session.
    """

    version: int
    current: int


class ChangesBetween(msgspec.Struct, frozen=True, kw_only=True):
    """
    What changed between two versions; given as a Difference.
    """

    from_version: int
    to_version: int
    current: int


class CheckpointsOf(msgspec.Struct, frozen=True, kw_only=True):
    """
    A page of checkpoints; given as a CheckpointPage.
    """

    before: str | None
    limit: int


class CheckpointState(msgspec.Struct, frozen=True, kw_only=True):
    """
    The verified state of a checkpoint; given as a JSON object.
    """

    checkpoint_id: str


class EventsAfter(msgspec.Struct, frozen=True, kw_only=True):
    """
    What happened behind *after*, up to *through*, where the session is now; given as
    an EventPage, done if it reaches *through*.

    Attributes:
        limit: how many events at most, 1 to 1,000.
    """

    after: Position
    through: Position
    limit: int


class FoundSessions(msgspec.Struct, frozen=True, kw_only=True):
    """
    A page of sessions; given as a SessionPage.

    Attributes:
        visible_to: only sessions of which this principal is owner or member;
            empty: all.
        tenant: only sessions of this tenant; empty: those of none.
    """

    query: ListSessions
    visible_to: str
    tenant: str = ""


class Statistics(msgspec.Struct, frozen=True):
    """
    Counts and sizes; given as Stats.
    """


Wanted = (
    WarmPage
    | FullContext
    | StateAt
    | ChangesBetween
    | CheckpointsOf
    | CheckpointState
    | EventsAfter
    | FoundSessions
    | Statistics
)

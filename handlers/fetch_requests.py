"""
Data of the lower tiers that a handler needs before it can decide.
"""

from datetime import datetime

import msgspec

from everbus.bus.events import Position
from everbus.handlers.commands import ListSessions


class WarmPage(msgspec.Struct, frozen=True, kw_only=True):
    """
    A timeline page that reaches below the hot tail; answered by a TimelinePage.

    Attributes:
        first: the lowest seq on the page.
        last: the highest seq on the page.
        since: as in ReadTimeline; `until` too.
        limit: most entries, from *first* on, or from *last* if newest first.
        tail: the newest entries, encoded, from the hot tier.
        end: seq of the last entry of *tail*, and of the timeline.
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
    The full context at *version* or later; answered by a JSON object.
    """

    version: int


class StateAt(msgspec.Struct, frozen=True, kw_only=True):
    """
    The state at *version*, at most *current*; answered by a Session.
    """

    version: int
    current: int


class ChangesBetween(msgspec.Struct, frozen=True, kw_only=True):
    """
    The changes between two versions; answered by a Difference.
    """

    from_version: int
    to_version: int
    current: int


class CheckpointsOf(msgspec.Struct, frozen=True, kw_only=True):
    """
    A page of checkpoints; answered by a CheckpointPage.
    """

    before: str | None
    limit: int


class CheckpointState(msgspec.Struct, frozen=True, kw_only=True):
    """
    The verified state of a checkpoint; answered by a JSON object.
    """

    checkpoint_id: str


class EventsAfter(msgspec.Struct, frozen=True, kw_only=True):
    """
    Events behind *after* up to *through*, the session's position; answered by an
    EventPage, done if it reaches *through*.

    Attributes:
        limit: most events, 1 to 1,000.
    """

    after: Position
    through: Position
    limit: int


class FoundSessions(msgspec.Struct, frozen=True, kw_only=True):
    """
    A page of sessions; answered by a SessionPage.

    Attributes:
        visible_to: only sessions with this principal, as an entry of an access list,
            as owner or on the ACL; empty: all.
        tenant: only sessions of this tenant; empty: sessions without a tenant.
    """

    query: ListSessions
    visible_to: str
    tenant: str = ""


class Statistics(msgspec.Struct, frozen=True):
    """
    Counts and sizes; answered by Stats.
    """


FetchRequest = (
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

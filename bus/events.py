"""
Events of a session as subscribers see them, and their positions.

Each event moves exactly one of version, last seq and notices by one, so that their
sum numbers the events of a session 1, 2, 3 … without gap: a gap in the numbers shows
a subscriber that it missed an event.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec

from everbus.bus.errors import Invalid
from everbus.bus.messages import Session

# The `after` of the first event.
BEGINNING = "0"
DELETED = "session.deleted"
# Moves between tiers are audited, but subscribers do not see them.
TIER_MOVES = frozenset({"session.archived", "session.rehydrated"})

_EPOCH = datetime.fromtimestamp(0, UTC)
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
# Eighteen digits at most, so that a forged count stays a 64-bit number.
_COUNT = r"(0|[1-9][0-9]{0,17})"
_ID = re.compile(rf"([0-9a-z]{{1,13}})-{_COUNT}\.{_COUNT}\.{_COUNT}")


class Position(NamedTuple):
    """
    A place in the event stream of a session: its counts up to there.

    Attributes:
        generation: creation time of the session in ms, base 36; a later session
            under the same id has another one.
    """

    generation: str
    version: int = 0
    seq: int = 0
    notices: int = 0

    @property
    def number(self) -> int:
        """
        Number of events up to here.
        """
        return self.version + self.seq + self.notices

    @property
    def id(self) -> str:
        """
        Id of the event at this position.
        """
        return f"{self.generation}-{self.version}.{self.seq}.{self.notices}"


class SessionEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    One event of a session.

    Attributes:
        id: the `after` that continues a watch behind this event; opaque.
        kind: in the past tense, for example `session.updated`.
        at: when it was committed, on the bus server's clock.
        version: the session's version after it.
        seq: the timeline's last seq after it.
        mad: the MAD that published the command.
        principal: the principal of the command.
        patch: merge patch (RFC 7396) from the state before to the state after, for
            every kind that moves the version.
        entry: the appended value, of `timeline.appended`.
        message: the message, of `session.broadcast`.
        turn: id of the turn, of `session.turned` and the entries before it.
    """

    id: str
    session: str
    kind: str
    at: datetime
    version: int
    seq: int
    mad: str
    principal: str
    command_id: str
    patch: dict[str, Any] | None = None  # JSON values
    entry: Any = None  # JSON value; pre-encoded bytes on the way out
    message: Any = None  # JSON value
    turn: str = ""

    @property
    def position(self) -> Position:
        """
        Position of this event.
        """
        return position_in(self.id)


class EventPage(msgspec.Struct, frozen=True, kw_only=True):
    """
    A page of events in their order.

    Attributes:
        next: the `after` of the next page.
        done: whether nothing was behind them at the time of the request.
    """

    events: tuple[SessionEvent, ...]
    next: str
    done: bool = True


def generation_of(created_at: datetime) -> str:
    """
    Generation of a session id: creation time in ms, base 36.
    """
    # In whole numbers: a float of seconds cannot tell milliseconds of far years apart.
    left, digits = (created_at - _EPOCH) // timedelta(milliseconds=1), ""
    while left:
        left, digit = divmod(left, 36)
        digits = _DIGITS[digit] + digits

    return digits or "0"


def position_of(session: Session) -> Position:
    """
    Current position of the session.
    """
    return Position(
        generation_of(session.created_at),
        session.version,
        session.last_seq,
        session.notices,
    )


def position_in(event_id: str) -> Position:
    """
    Position in an event's id.

    Raises:
        Invalid: *event_id* is not the id of an event.
    """
    found = _ID.fullmatch(event_id)
    if found is None:
        raise Invalid(
            f"after is {event_id!a:.80}; wanted the id of an event, or {BEGINNING} "
            "for all of them",
            field="after",
        )
    return Position(found[1], int(found[2]), int(found[3]), int(found[4]))

"""
What happens in a session, as those hear it who watch: events and their places.

Each event moves exactly one of version, last seq and notices by one, so that their
sum numbers the events of a session 1, 2, 3 … without gap: whoever watches can tell
by the number alone whether it has missed one.
"""

import re
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from bus.errors import Invalid
from bus.messages import Session

# Resuming after this is watching from the very beginning.
BEGINNING = "0"
DELETED = "session.deleted"
# Moves between tiers are audited, but nothing happens in the session by them.
UNSEEN = frozenset({"session.archived", "session.rehydrated"})

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
# Eighteen digits at most, so that a forged count stays a 64-bit number.
_COUNT = r"(0|[1-9][0-9]{0,17})"
_ID = re.compile(rf"([0-9a-z]{{1,13}})-{_COUNT}\.{_COUNT}\.{_COUNT}")


class Position(NamedTuple):
    """
    A place in what happens in a session: what it had counted up to there.

    Attributes:
        life: when the session was created, in ms, base 36: tells it from another
            one of the same id.
    """

    life: str
    version: int = 0
    seq: int = 0
    notices: int = 0

    @property
    def number(self) -> int:
        """
        How many events there were up to here.
        """
        return self.version + self.seq + self.notices

    @property
    def id(self) -> str:
        """
        The id of the event that led here.
        """
        return f"{self.life}-{self.version}.{self.seq}.{self.notices}"


class SessionEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    Something that happened in a session.

    Attributes:
        id: watching can go on behind it; to be taken as it is, not to be read.
        kind: in the past tense, for example `session.updated`.
        at: when it was committed, on the bus server's clock.
        version: the session's version after it.
        seq: the timeline's last seq after it.
        mad: the MAD that published the command that did it.
        principal: who asked for it.
        patch: the merge patch (RFC 7396) that leads from the state before to the one
            after, for every kind that moves the version.
        entry: what was appended, of `timeline.appended`.
        message: what was said, of `session.broadcast`.
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

    @property
    def position(self) -> Position:
        """
        Where it leads to.
        """
        return position_in(self.id)


class EventPage(msgspec.Struct, frozen=True, kw_only=True):
    """
    Events in their order.

    Attributes:
        next: the `after` of the next page.
        done: whether there was nothing behind them when it was asked.
    """

    events: tuple[SessionEvent, ...]
    next: str
    done: bool = True


def life_of(created_at: datetime) -> str:
    """
    What tells one life of a session id from another.
    """
    left, digits = round(created_at.timestamp() * 1000), ""
    while left:
        left, digit = divmod(left, 36)
        digits = _DIGITS[digit] + digits

    return digits or "0"


def position_of(session: Session) -> Position:
    """
    Where the session is now.
    """
    return Position(
        life_of(session.created_at), session.version, session.last_seq, session.notices
    )


def position_in(event_id: str) -> Position:
    """
    The place behind an event.

    Raises:
        Invalid: no event has such an id.
    """
    found = _ID.fullmatch(event_id)
    if found is None:
        raise Invalid(
            f"after is {event_id!a:.80}; wanted the id of an event, or {BEGINNING} "
            "for all of them",
            field="after",
        )
    return Position(found[1], int(found[2]), int(found[3]), int(found[4]))

"""
What `find` of a warm tier was asked: its cursor, its bounds, its words.
"""

import base64
import binascii
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from bus.errors import Invalid
from bus.messages import Session, check_session_id
from gateway.store.words import words_in
from handlers.commands import ListSessions

MAX_FOUND = 1000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Place(NamedTuple):
    """
    Where a page ended, in the order of last activity.
    """

    last_active: datetime
    id: str


def place_of(session: Session) -> Place:
    """
    The place of *session*; later ones come first.
    """
    return Place(session.last_active, session.id)


def cursor_of(place: Place) -> str:
    """
    *place* as an opaque text that is safe in a URL.
    """
    ms = (place.last_active - _EPOCH) // timedelta(milliseconds=1)

    return base64.urlsafe_b64encode(f"{ms} {place.id}".encode()).decode().rstrip("=")


def place_in(cursor: str) -> Place:
    """
    The place that `cursor_of` made *cursor* of.

    Raises:
        Invalid: it made no such cursor.
    """
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        text = base64.b64decode(padded, altchars=b"-_", validate=True).decode()
        ms, _, session_id = text.partition(" ")
        place = Place(
            _EPOCH + timedelta(milliseconds=int(ms)), check_session_id(session_id)
        )
    except (binascii.Error, ValueError, OverflowError, Invalid) as error:
        raise Invalid(
            f"cursor {ascii(cursor)[:80]} is none of ours; begin without one",
            field="cursor",
        ) from error
    return place


def checked(query: ListSessions) -> list[str]:
    """
    The different words that *query* looks for, the longest first.

    Raises:
        Invalid: naming `limit` or `text`.
    """
    if not 1 <= query.limit <= MAX_FOUND:
        raise Invalid(f"limit is {query.limit}; 1 to {MAX_FOUND}", field="limit")
    if query.text is None:
        return []
    words = sorted(set(words_in(query.text)), key=lambda word: (-len(word), word))
    if not words:
        raise Invalid("text holds no word; give letters or digits", field="text")

    return words


def checkpoint_place(before: str) -> int:
    """
    The place of a checkpoint in its session's row that a page's `next` tells.

    Raises:
        Invalid: *before* is not the `next` of a page.
    """
    if before.isascii() and before.isdigit() and len(before) < 16:
        return int(before)
    raise Invalid(
        f"before is {ascii(before)[:80]}, not the next of a page; begin without one",
        field="before",
    )


def fits(session: Session, query: ListSessions, visible_to: str, tenant: str) -> bool:
    """
    Whether *session* is as *query* wants it, but for its words.
    """
    at = session.last_active
    return (
        session.tenant == tenant
        and query.owner in (None, session.owner_id)
        and (query.participant is None or query.participant in session.participants)
        and query.state in (None, session.state)
        and (query.tag is None or query.tag in session.tags)
        and (query.active_since is None or at >= query.active_since)
        and (query.active_before is None or at < query.active_before)
        and (not visible_to or visible_to in (session.owner_id, *session.acl))
    )

"""
The query of a warm tier's `find`: cursor, bounds, words.
"""

import base64
import binascii
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from everbus.bus.errors import Invalid
from everbus.bus.messages import Session, check_session_id
from everbus.gateway.store.search_words import words_in
from everbus.handlers.access_list import entries_admitting, readers_of
from everbus.handlers.commands import ListSessions

MAX_FOUND = 1000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class PageCursor(NamedTuple):
    """
    The end of a page, in the order of last activity.
    """

    last_active: datetime
    id: str


def place_of(session: Session) -> PageCursor:
    """
    The place of *session*; later ones come first.
    """
    return PageCursor(session.last_active, session.id)


def cursor_of(place: PageCursor) -> str:
    """
    *place* as an opaque text that is safe in a URL.
    """
    ms = (place.last_active - _EPOCH) // timedelta(milliseconds=1)

    return base64.urlsafe_b64encode(f"{ms} {place.id}".encode()).decode().rstrip("=")


def place_in(cursor: str) -> PageCursor:
    """
    The place in a *cursor* of `cursor_of`.

    Raises:
        Invalid: it is no such cursor.
    """
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        text = base64.b64decode(padded, altchars=b"-_", validate=True).decode()
        ms, _, session_id = text.partition(" ")
        place = PageCursor(
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
    The distinct search words of *query*, the longest first.

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
    The place of a checkpoint in its session's sequence, from the `next` of a page.

    Raises:
        Invalid: *before* is not the `next` of a page.
    """
    if before.isascii() and before.isdigit() and len(before) < 16:
        return int(before)
    raise Invalid(
        f"before is {ascii(before)[:80]}, not the next of a page; begin without one",
        field="before",
    )


def is_visible(session: Session, visible_to: str) -> bool:
    """
    Whether the principal of the entry *visible_to* is owner or in the ACL.
    """
    readers = readers_of(session.owner_id, session.acl)

    return any(one in readers for one in entries_admitting(visible_to))


def fits(session: Session, query: ListSessions, visible_to: str, tenant: str) -> bool:
    """
    Whether *session* matches *query*, apart from its words.
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
        and (not visible_to or is_visible(session, visible_to))
    )

"""
What only asks: the filters of a search, who sees what, versions of the past.
"""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from everbus.bus.errors import Invalid, NotFound
from everbus.bus.messages import SessionPage, Stats
from everbus.handlers import commands as body
from everbus.handlers.commands import ListSessions
from everbus.handlers.fetch_requests import (
    ChangesBetween,
    FoundSessions,
    StateAt,
    Statistics,
)
from tests.builders import NOW, a_command, a_session
from tests.unit.commands import at, diff, find, handle


def test_a_search_is_for_what_the_principal_may_see():
    query = ListSessions(owner="bo", tag="sea", limit=7)
    wanted = {"owner": "bo", "tag": "sea", "limit": 7}

    own = handle(None, find(**wanted))
    every = handle(None, find(sees_all=True, **wanted))

    assert own.fetch == FoundSessions(query=query, visible_to="user:ada")
    assert every.fetch == FoundSessions(query=query, visible_to="")
    assert (own.session, own.events) == (None, ())


def test_what_was_found_is_the_reply():
    page = SessionPage((a_session(),), "there")

    outcome = handle(None, find(fetched=page))

    assert (outcome.reply, outcome.fetch) == (page, None)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"owner": "a b"}, "owner"),
        ({"participant": "a.b"}, "mad"),
        ({"tag": ""}, "tag"),
        ({"text": ""}, "text"),
        ({"text": "x" * 257}, "text"),
        ({"text": "a\0"}, "text"),
        ({"cursor": "x" * 1025}, "cursor"),
        ({"active_since": datetime(2026, 1, 1)}, "active_since"),  # noqa: DTZ001
        ({"active_before": datetime.max.replace(tzinfo=UTC)}, "active_before"),
    ],
)
def test_a_filter_that_can_fit_nothing_is_refused(query, field):
    with pytest.raises(Invalid) as refused:
        handle(None, find(**query))

    assert refused.value.details == {"field": field}


def test_times_are_asked_for_in_utc_and_whole_milliseconds():
    """
    MongoDB cuts off what is finer: a time must not let in what was before it.
    """
    there = timezone(timedelta(hours=2))
    since = datetime(2026, 3, 1, 12, 0, 0, 1, tzinfo=there)

    fetch = handle(None, find(active_since=since)).fetch

    assert isinstance(fetch, FoundSessions)
    assert fetch.query.active_since == datetime(2026, 3, 1, 10, 0, 0, 1000, tzinfo=UTC)


def test_statistics_are_read_and_told():
    command = a_command("session.stats", body.ReadStats())
    stats = Stats(sessions=0, states={}, tiers={})
    told = a_command("session.stats", body.ReadStats(), fetched=stats)

    assert handle(None, command).fetch == Statistics()
    assert handle(None, told).reply is stats


def test_a_version_of_the_past_is_read_from_the_tiers_below():
    there = a_session(version=7)

    assert handle(there, at(3)).fetch == StateAt(version=3, current=7)
    assert handle(there, at(7)).fetch == StateAt(version=7, current=7)
    then = a_session(version=3)
    assert handle(there, at(3, fetched=then)).reply is then


def test_a_difference_is_read_from_the_tiers_below():
    there = a_session(version=7)

    wanted = ChangesBetween(from_version=2, to_version=5, current=7)
    assert handle(there, diff(2, 5)).fetch == wanted
    assert handle(there, diff(5, 5)).fetch is not None


@pytest.mark.parametrize("command", [at(8), diff(8, 9), diff(1, 8)])
def test_a_version_of_the_future_is_not_found(command):
    with pytest.raises(NotFound, match="no version") as refused:
        handle(a_session(version=7), command)

    assert refused.value.details == {"session": "s1", "current_version": 7}


@pytest.mark.parametrize(
    ("command", "field"),
    [
        (at(0), "version"),
        (diff(0, 1), "from_version"),
        (diff(1, -1), "to_version"),
        (diff(3, 2), "from_version"),
    ],
)
def test_versions_are_asked_for_in_their_order(command, field):
    with pytest.raises(Invalid) as refused:
        handle(a_session(version=7, created_at=NOW), command)

    assert refused.value.details == {"field": field}

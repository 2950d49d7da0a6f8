"""
Appends, the bounded tail, pages from it, and JSON merge patches (RFC 7396).
"""

from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everbus.bus.errors import Invalid, VersionConflict
from everbus.bus.messages import Session, TimelineEntry, TimelinePage, pack
from everbus.handlers.fetch_requests import WarmPage
from everbus.handlers.outcomes import Event
from everbus.handlers.patches import RECENT_ENTRIES, TAIL_BYTES, merge, trimmed
from everbus.handlers.timeline import MAX_PAGE
from everbus.handlers.timeline_pages import page_of, page_range
from tests.builders import NOW, a_session
from tests.unit.commands import (
    LATER,
    a_talk,
    after,
    append,
    handle,
    hot_bytes,
    read,
    seqs,
    the_event,
    update,
)


def unpacked(entry: bytes) -> TimelineEntry:
    return msgspec.msgpack.decode(entry, type=TimelineEntry)


def a_page(session: Session, **wanted: Any) -> tuple[list[int], int | None]:
    reply = handle(session, read(**wanted)).reply
    return [entry["seq"] for entry in msgspec.msgpack.decode(pack(reply))["entries"]], (
        reply.next
    )


def test_an_append_gets_the_next_seq_and_leaves_the_version_alone():
    there = a_session(version=7, last_seq=4)

    outcome = handle(there, append({"text": "hi"}, id="i1.0.9", mad="bo"))

    wanted = TimelineEntry(seq=5, at=LATER, author="bo", entry={"text": "hi"})
    assert unpacked(outcome.entries[0]) == wanted
    assert outcome.reply == {"seq": 5}
    assert outcome.session == a_session(
        version=7, last_seq=5, last_active=LATER, recent_timeline=outcome.entries
    )
    assert the_event(outcome) == Event(
        kind="timeline.appended",
        command_id="i1.0.9",
        mad="bo",
        principal="ada",
        version=7,
        seq=5,
    )


def test_an_append_needs_no_version():
    assert after(a_session(version=7), append("hi", expected_version=3)).last_seq == 1


@pytest.mark.parametrize("last_seq", [0, 4])
def test_an_append_that_expects_the_last_seq_gets_the_next(last_seq):
    there = a_session(last_seq=last_seq)

    there = after(there, append("hi", expected_last_seq=last_seq))

    assert there.last_seq == last_seq + 1


@pytest.mark.parametrize("state", ["active", "dormant"])
@pytest.mark.parametrize("expected", [0, 3, 5, -1])
def test_an_append_that_expects_another_last_seq_is_a_conflict(state, expected):
    """
    It resumes nothing, either: a refusal has no effect.
    """
    there = a_session(version=7, last_seq=4, state=state)

    with pytest.raises(VersionConflict, match=f"at entry 4, not {expected}") as refused:
        handle(there, append("hi", expected_last_seq=expected))

    assert refused.value.details == {"current_version": 7, "current_last_seq": 4}


@pytest.mark.parametrize("entry", [None, 0, "", [], {}, {"a": [1, {"b": None}]}])
def test_any_json_value_may_be_appended(entry):
    assert unpacked(handle(a_session(), append(entry)).entries[0]).entry == entry


@pytest.mark.parametrize(
    "packed",
    [
        pytest.param(pack({"$set": 1}), id="operator key"),
        pytest.param(pack({1: 1}), id="number as key"),
        pytest.param(pack(float("nan")), id="nan"),
        pytest.param(pack(2**63), id="2^63"),
        pytest.param(pack(b"x"), id="bytes"),
        pytest.param(pack(LATER), id="timestamp"),
        pytest.param(b"\xd4\x05x", id="extension"),
        pytest.param(b"\x91" * 33 + b"\xc0", id="33 levels"),
        pytest.param(b"\x91" * 100_000 + b"\xc0", id="100,000 levels"),
        pytest.param(b"\xa1\xff", id="no utf-8"),
        pytest.param(b"\xa3\xed\xa0\x80", id="surrogate in utf-8"),
        pytest.param(b"\x81\x80\x01", id="a map as a key"),
        pytest.param(b"\xc1", id="no msgpack"),
        pytest.param(b"\x93\x01", id="truncated"),
        pytest.param(b"", id="empty"),
    ],
)
def test_an_entry_that_some_store_cannot_hold_is_refused(packed):
    with pytest.raises(Invalid) as refused:
        handle(a_session(), append(msgspec.Raw(packed)))

    assert refused.value.details == {"field": "entry"}


@pytest.mark.parametrize("hidden", [b"\xc4\x01x", b"\x81\xa4$set\x01", pack(2**63)])
def test_a_key_given_twice_hides_no_value_from_the_check(hidden):
    """
    The decoder keeps the last one; what it never showed must not be stored.
    """
    packed = b"\x82\xa1a" + hidden + b"\xa1a\x01"

    [entry] = handle(a_session(), append(msgspec.Raw(packed))).entries

    assert hidden not in entry
    assert entry.endswith(pack({"a": 1}))


def test_the_tail_holds_the_newest_twenty_in_order():
    there = a_talk(RECENT_ENTRIES + 5)

    assert seqs(there.recent_timeline) == list(range(6, 26))
    assert there.last_seq == 25


def test_the_tail_is_bounded_in_bytes():
    there = a_talk(20, of_bytes=2_000)

    held = sum(map(len, there.recent_timeline))
    assert TAIL_BYTES - 2_100 < held <= TAIL_BYTES
    assert seqs(there.recent_timeline) == list(
        range(21 - len(there.recent_timeline), 21)
    )
    assert hot_bytes(there) == held + hot_bytes(a_session(last_seq=20))


def test_an_entry_too_large_for_the_tail_empties_it():
    """
    The tail has no holes: what comes before a missing entry is missing too.
    """
    there = after(a_talk(3), append("x" * TAIL_BYTES))

    assert (there.recent_timeline, there.last_seq) == ((), 4)
    assert seqs(after(there, append("hi")).recent_timeline) == [5]


def test_the_tail_gives_way_to_a_large_state():
    there = after(a_session(), update({"work_in_progress": {"a": "x" * 48_000}}))

    for n in range(20):
        there = after(there, append({"n": n, "text": "x" * 300}))

    assert 1 <= len(there.recent_timeline) < 4
    assert there.last_seq == 20


@given(st.lists(st.binary(max_size=3_000), max_size=30), st.integers(-10, 60_000))
def test_a_trimmed_tail_is_the_longest_suffix_within_its_bounds(tail, room):
    kept = trimmed(tuple(tail), room)

    def fits(count: int) -> bool:
        size = sum(len(entry) for entry in tail[len(tail) - count :])
        return count == 0 or (count <= 20 and size <= min(room, TAIL_BYTES))

    assert kept == tuple(tail[len(tail) - len(kept) :])
    assert fits(len(kept))
    assert len(kept) == len(tail) or not fits(len(kept) + 1)


@pytest.mark.parametrize(
    ("wanted", "seqs_wanted", "next_wanted"),
    [
        ({"limit": 20}, list(range(6, 26)), None),
        ({"limit": 1}, [25], None),
        ({"after": 5, "limit": 1}, [6], 6),
        ({"after": 5, "limit": 19}, list(range(6, 25)), 24),
        ({"after": 5, "limit": 20}, list(range(6, 26)), None),
        ({"after": 20}, [21, 22, 23, 24, 25], None),
        ({"after": 24, "limit": MAX_PAGE}, [25], None),
        ({"after": 25}, [], None),
        ({"after": 2**60}, [], None),
        ({"after": 5, "before": 8}, [6, 7], None),
        ({"after": 5, "before": 8, "limit": 1}, [6], 6),
        ({"before": 1}, [], None),
        ({"before": 0}, [], None),
        ({"newest_first": True, "limit": 2}, [25, 24], 24),
        ({"newest_first": True, "limit": 2, "before": 24}, [23, 22], 22),
        ({"newest_first": True, "limit": 9, "after": 22}, [25, 24, 23], None),
        ({"newest_first": True, "limit": 20}, list(range(25, 5, -1)), 6),
        ({"newest_first": True, "after": 5, "limit": 20}, [*range(25, 5, -1)], None),
    ],
)
def test_a_page_within_the_tail_comes_from_it(wanted, seqs_wanted, next_wanted):
    there = a_talk(25)

    assert a_page(there, **wanted) == (seqs_wanted, next_wanted)


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [
        ({}, 1, 25),
        ({"limit": 21}, 5, 25),
        ({"after": 0, "limit": 3}, 1, 25),
        ({"after": 4, "limit": 1}, 5, 25),
        ({"before": 7, "limit": 1}, 1, 6),
        ({"after": 2, "before": 99}, 3, 25),
        ({"newest_first": True, "limit": 21}, 1, 25),
        ({"newest_first": True, "limit": 21, "after": 4}, 5, 25),
    ],
)
def test_a_page_that_reaches_below_the_tail_is_told_to_the_warm_tier(
    wanted, first, last
):
    there = a_talk(25)
    limit, newest_first = wanted.get("limit", 100), wanted.get("newest_first", False)

    outcome = handle(there, read(**wanted))

    assert outcome.fetch == WarmPage(
        first=first,
        last=last,
        limit=limit,
        end=25,
        newest_first=newest_first,
        tail=there.recent_timeline,
    )
    assert (outcome.session, outcome.reply, outcome.events) == (there, None, ())


def test_the_page_that_was_read_below_is_the_reply():
    page = page_of((b"\xc0",), None)

    assert handle(a_talk(25), read(fetched=page)).reply is page


def test_an_empty_timeline_is_one_empty_page():
    assert a_page(a_session()) == ([], None)
    assert a_page(a_session(), after=0) == ([], None)


def test_reading_pages_one_after_the_other_shows_each_entry_once():
    there, found, after_seq = a_talk(20), [], 0

    while after_seq is not None:
        page, after_seq = a_page(there, after=after_seq, limit=7)
        found += page

    assert found == list(range(1, 21))


def test_a_timeline_whose_tail_is_empty_is_read_from_the_warm_tier():
    there = a_session(last_seq=3)

    assert handle(there, read()).fetch == WarmPage(first=1, last=3, limit=100, end=3)
    assert a_page(there, after=3) == ([], None)


@pytest.mark.parametrize("limit", [0, -1, MAX_PAGE + 1])
def test_a_page_has_1_to_1000_entries(limit):
    with pytest.raises(Invalid) as refused:
        handle(a_session(), read(limit=limit))

    assert refused.value.details == {"field": "limit"}


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"after": -1}, "after"),
        ({"before": -1}, "before"),
        ({"since": datetime(2026, 1, 1)}, "since"),  # noqa: DTZ001
        ({"until": datetime(2026, 1, 1)}, "until"),  # noqa: DTZ001
    ],
)
def test_a_bound_that_is_none_is_refused(wanted, field):
    with pytest.raises(Invalid) as refused:
        handle(a_session(), read(**wanted))

    assert refused.value.details == {"field": field}


def test_reading_changes_nothing():
    there = a_talk(3)

    outcome = handle(there, read())

    assert outcome.session is there
    assert outcome.events == ()


def a_timeline(gaps_ms: list[int], kept: int) -> tuple[Session, list[TimelineEntry]]:
    """
    A session with an entry after each gap, of which *kept* are hot, and all entries.
    """
    session, at, entries = a_session(created_at=START, last_active=START), START, []
    for gap in gaps_ms:
        at += timedelta(milliseconds=gap)
        outcome = handle(session, append(gap), at)
        assert outcome.session is not None
        session = outcome.session
        entries.append(unpacked(outcome.entries[0]))
    tail = session.recent_timeline
    kept = min(kept, len(tail))
    hot = tail[len(tail) - kept :]

    return msgspec.structs.replace(session, recent_timeline=hot), entries


def read_below(wanted: WarmPage, entries: list[TimelineEntry]) -> TimelinePage:
    """
    What the tiers below answer, as their contract says it.
    """
    fit = [
        entry.seq
        for entry in entries[wanted.first - 1 : wanted.last]
        if wanted.since is None or entry.at >= wanted.since
        if wanted.until is None or entry.at < wanted.until
    ]
    if not fit:
        return page_of((), None)
    part = page_range(fit[0], fit[-1], wanted.limit, wanted.newest_first)
    found = entries[part.first - 1 : part.last]

    return page_of(
        [pack(e) for e in (found[::-1] if wanted.newest_first else found)], part.next
    )


START = NOW.replace(microsecond=0)
gaps = st.lists(st.sampled_from([0, 0, 1, 5, 1000]), max_size=30)
moments = st.none() | st.integers(-1, 6000).map(
    lambda ms: START + timedelta(milliseconds=ms)
)
numbers = st.none() | st.integers(0, 32)


@settings(deadline=None, max_examples=400)
@given(
    gaps=gaps,
    kept=st.sampled_from([0, 1, 3, 20]),
    after_seq=numbers,
    before=numbers,
    since=moments,
    until=moments,
    newest_first=st.booleans(),
    limit=st.integers(1, 8),
)
def test_pages_show_each_entry_within_all_bounds_once(
    gaps, kept, after_seq, before, since, until, newest_first, limit
):
    """
    In both directions, from whichever tier a page comes; and `next` is None on the
    last page and on no other.
    """
    there, entries = a_timeline(gaps, kept)
    wanted = [
        entry.seq
        for entry in entries
        if after_seq is None or entry.seq > after_seq
        if before is None or entry.seq < before
        if since is None or entry.at >= since
        if until is None or entry.at < until
    ]
    if not newest_first and {after_seq, before, since, until} == {None}:
        wanted = wanted[-limit:]
    found: list[int] = []
    bounds = {"after": after_seq, "before": before}
    for _ in range(40):
        times = {"since": since, "until": until, "newest_first": newest_first}
        outcome = handle(there, read(**bounds, **times, limit=limit))
        page = outcome.reply
        if outcome.fetch is not None:
            assert isinstance(outcome.fetch, WarmPage)
            page = read_below(outcome.fetch, entries)
        some = [entry["seq"] for entry in msgspec.msgpack.decode(pack(page))["entries"]]
        assert len(some) == limit or page.next is None
        found += some
        if page.next is None:
            break
        bounds["before" if newest_first else "after"] = page.next

    assert found == (wanted[::-1] if newest_first else wanted)


def test_a_page_by_time_comes_from_the_tail_where_it_tells_for_sure():
    there, entries = a_timeline([10] * 25, 20)
    oldest, newest = entries[5].at, entries[-1].at
    just_later = oldest + timedelta(milliseconds=1)

    assert a_page(there, since=just_later) == (list(range(7, 26)), None)
    assert a_page(there, since=newest, until=newest) == ([], None)
    assert a_page(there, since=LATER + timedelta(days=1)) == ([], None)
    assert a_page(there, since=oldest, newest_first=True, limit=19) == (
        list(range(25, 6, -1)),
        7,
    )
    for bounds in (
        {"since": oldest},
        {"until": oldest, "newest_first": True},
        {"since": oldest, "newest_first": True, "limit": 20},
    ):
        assert isinstance(handle(there, read(**bounds)).fetch, WarmPage)


@pytest.mark.parametrize(
    ("range_", "limit", "newest_first", "page"),
    [
        ((1, 9), 3, False, (1, 3, 3)),
        ((1, 9), 9, False, (1, 9, None)),
        ((5, 9), 99, False, (5, 9, None)),
        ((1, 9), 3, True, (7, 9, 7)),
        ((7, 9), 3, True, (7, 9, None)),
    ],
)
def test_a_page_is_cut_from_the_end_where_it_begins(range_, limit, newest_first, page):
    assert page_range(*range_, limit, newest_first) == page


@pytest.mark.parametrize("newest_first", [False, True])
def test_of_nothing_an_empty_page_is_cut(newest_first):
    part = page_range(10, 9, 5, newest_first)

    assert part.first > part.last
    assert part.next is None


# RFC 7396, appendix A: original, patch, result.
APPENDIX_A = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize(("original", "patch", "result"), APPENDIX_A)
def test_a_merge_patch_is_applied_as_the_rfc_shows(original, patch, result):
    before = msgspec.json.encode([original, patch])

    assert merge(original, patch) == result
    assert msgspec.json.encode([original, patch]) == before


objects = st.dictionaries(
    st.sampled_from("abc"),
    st.recursive(
        st.none() | st.integers() | st.lists(st.integers()),
        lambda inner: st.dictionaries(st.sampled_from("abc"), inner),
        max_leaves=8,
    ),
)


def paths(value: Any, here: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    inner = value.items() if isinstance(value, dict) else ()
    return {here}.union(*(paths(child, (*here, name)) for name, child in inner))


@given(objects, objects)
def test_a_merge_leads_no_deeper_than_its_parts(original, patch):
    """
    So a patch within bounds keeps a field within bounds without another check.
    """
    assert paths(merge(original, patch)) <= paths(original) | paths(patch)


@given(objects, objects)
def test_a_merge_patch_applied_again_changes_nothing_more(original, patch):
    once = merge(original, patch)

    assert merge(once, patch) == once

"""
Appends, the bounded tail, pages from it, and JSON merge patches (RFC 7396).
"""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.codec import pack
from bus.errors import Invalid
from bus.messages import Session, TimelineEntry
from handlers.commands import Event, WarmPage
from handlers.routes import MAX_PAGE, page_of
from handlers.session import RECENT_ENTRIES, TAIL_BYTES, merge, trimmed
from tests.builders import a_session
from tests.unit.commands import (
    LATER,
    a_talk,
    after,
    append,
    handle,
    hot_bytes,
    read,
    seqs,
    update,
)


def unpacked(entry: bytes | None) -> TimelineEntry:
    assert entry is not None
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
    assert unpacked(outcome.entry) == wanted
    assert outcome.reply == {"seq": 5}
    assert outcome.session == a_session(
        version=7, last_seq=5, last_active=LATER, recent_timeline=(outcome.entry,)
    )
    assert outcome.event == Event(
        kind="timeline.appended",
        command_id="i1.0.9",
        mad="bo",
        principal="ada",
        version=7,
        seq=5,
    )


def test_an_append_never_conflicts():
    assert after(a_session(version=7), append("hi", expected_version=3)).last_seq == 1


@pytest.mark.parametrize("entry", [None, 0, "", [], {}, {"a": [1, {"b": None}]}])
def test_any_json_value_may_be_appended(entry):
    assert unpacked(handle(a_session(), append(entry)).entry).entry == entry


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

    entry = handle(a_session(), append(msgspec.Raw(packed))).entry

    assert entry is not None
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
    there = after(a_session(), update({"work_in_progress": {"a": "x" * 50_000}}))

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
        ({"after": 0, "limit": 3}, 1, 3),
        ({"after": 4, "limit": 1}, 5, 5),
        ({"after": 4, "limit": 2}, 5, 6),
        ({"after": 4, "limit": 1000}, 5, 25),
    ],
)
def test_a_page_that_begins_before_the_tail_is_told_to_the_warm_tier(
    wanted, first, last
):
    outcome = handle(a_talk(25), read(**wanted))

    assert outcome.warm == WarmPage(first, last, 25)
    assert (outcome.reply, outcome.event) == (None, None)


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

    assert handle(there, read()).warm == WarmPage(1, 3, 3)
    assert a_page(there, after=3) == ([], None)


@pytest.mark.parametrize("limit", [0, -1, MAX_PAGE + 1])
def test_a_page_has_1_to_1000_entries(limit):
    with pytest.raises(Invalid) as refused:
        handle(a_session(), read(limit=limit))

    assert refused.value.details == {"field": "limit"}


def test_a_page_begins_at_0_or_later():
    with pytest.raises(Invalid) as refused:
        handle(a_session(), read(after=-1))

    assert refused.value.details == {"field": "after"}


def test_reading_changes_nothing():
    there = a_talk(3)

    outcome = handle(there, read())

    assert outcome.session is there
    assert outcome.event is None


def test_the_last_page_tells_that_it_is_the_last():
    assert page_of((b"\xc0",), 3, 4).next == 3
    assert page_of((b"\xc0",), 4, 4).next is None


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

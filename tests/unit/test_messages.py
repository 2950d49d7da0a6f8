"""
The values on the wire: ids by their patterns, and what JSON may hold.
"""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everbus.bus.arguments import MAX_SOUND_KEY, MAX_SOUND_KEYS
from everbus.bus.errors import Invalid
from everbus.bus.messages import (
    MAX_DEPTH,
    MAX_INTEGER,
    check_command_id,
    check_json,
    check_name,
    check_session_id,
)
from tests.builders import a_session
from tests.unit.forging import ISSUED_NAMES

NEVER_AN_ID = [
    "",
    "_a",
    "-a",
    ".a",
    "a b",
    "a\n",
    "a\0",
    "a/b",
    "a:b",
    "a*",
    "a?",
    "[a]",
    "{a}",
    "$a",
    "ä",
    "a\u0661",
    None,
    7,
    b"a",
    ["a"],
]


def nested(levels: int, innermost: Any) -> Any:
    value = innermost
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


@pytest.mark.parametrize("value", ["a", "0", "A.b_c-d", "a.", "x" * 64])
def test_session_ids_are_letters_digits_and_three_marks(value):
    assert check_session_id(value) == value


@pytest.mark.parametrize("value", [*NEVER_AN_ID, "x" * 65, "a@b"])
def test_other_session_ids_are_refused(value):
    """
    Ids become key names and object names: no glob, brace, slash or colon.
    """
    with pytest.raises(Invalid) as refused:
        check_session_id(value)

    assert refused.value.details == {"field": "session"}


@pytest.mark.parametrize("value", ["a", "i1.0.1", "x" * 80])
def test_command_ids_may_be_longer(value):
    assert check_command_id(value) == value


@pytest.mark.parametrize("value", [*NEVER_AN_ID, "x" * 81, "a@b"])
def test_other_command_ids_are_refused(value):
    with pytest.raises(Invalid) as refused:
        check_command_id(value)

    assert refused.value.details == {"field": "id"}


@pytest.mark.parametrize("value", ["ada", "ada@example.com", *ISSUED_NAMES])
def test_names_are_what_issuers_give(value):
    assert check_name(value, "mad") == value


@pytest.mark.parametrize(
    "value",
    [
        *("", "-a", ".a", "$a", "a b", "a\n", "a\0", "a*", "{a}", "x" * 256),
        *("e\u0301", "a\u200b", "\u202ea", "a\ufe0f", "\u3164", "a\u00a0", "\ud800"),
    ],
)
def test_other_names_are_refused_by_their_field(value):
    with pytest.raises(Invalid) as refused:
        check_name(value, "mad")

    assert refused.value.details == {"field": "mad"}


def test_a_refusal_does_not_repeat_a_huge_value():
    """
    Refusals are kept and replied; a sender must not make them large.
    """
    with pytest.raises(Invalid) as refused:
        check_session_id("\u20ac" * 100_000)

    assert len(refused.value.message) < 300


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -MAX_INTEGER,
        MAX_INTEGER,
        1.5,
        -0.0,
        5e-324,
        1.7e308,
        "",
        "€ 😀",
        "nul \0 in text",
        [],
        (),
        {},
        {"": 1},
        {"a$": 1, "a b": 2, "ü": 3},
        [1, [2.5, {"a": [None, "b"]}]],
    ],
)
def test_what_every_store_can_hold_is_accepted(value):
    check_json(value, "entry")


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(float("nan"), id="nan"),
        pytest.param(float("inf"), id="inf"),
        pytest.param(float("-inf"), id="-inf"),
        pytest.param(float("1e999"), id="1e999"),
        pytest.param(MAX_INTEGER + 1, id="2^53+1"),
        pytest.param(-MAX_INTEGER - 1, id="-2^53-1"),
        pytest.param(2**64 - 1, id="2^64-1"),
        pytest.param("\ud800", id="lone surrogate"),
        pytest.param("a\udfffb", id="lone low surrogate"),
        pytest.param({"\ud800": 1}, id="lone surrogate in a key"),
        pytest.param({"$set": 1}, id="operator key"),
        pytest.param({"$": 1}, id="dollar key"),
        pytest.param({"a.b": 1}, id="dotted key"),
        pytest.param({".": 1}, id="dot key"),
        pytest.param({"a\0b": 1}, id="nul key"),
        pytest.param({1: 1}, id="number as key"),
        pytest.param({None: 1}, id="null as key"),
        pytest.param({b"a": 1}, id="bytes as key"),
        pytest.param({(): 1}, id="array as key"),
        pytest.param(b"bytes", id="bytes"),
        pytest.param(bytearray(b"bytes"), id="bytearray"),
        pytest.param(datetime(2026, 1, 1, tzinfo=UTC), id="datetime"),
        pytest.param(msgspec.msgpack.Ext(5, b"x"), id="msgpack extension"),
        pytest.param(msgspec.Raw(b"\xc0"), id="raw"),
        pytest.param(Decimal(1), id="decimal"),
        pytest.param({1, 2}, id="set"),
        pytest.param(object(), id="object"),
    ],
)
@pytest.mark.parametrize("depth", [0, 1, MAX_DEPTH - 1])
def test_what_some_store_would_change_is_refused(value, depth):
    """
    S13: nothing that MongoDB reads as an operator, no number that JSON rounds.
    """
    with pytest.raises(Invalid) as refused:
        check_json(nested(depth, value), "entry")

    assert refused.value.details == {"field": "entry"}
    assert "nested" not in refused.value.message


@pytest.mark.parametrize("value", [float("nan"), b"x", 2**53 + 1, "\ud800"])
def test_values_in_the_deepest_container_are_checked_too(value):
    with pytest.raises(Invalid):
        check_json(nested(MAX_DEPTH, value), "entry")


@pytest.mark.parametrize("innermost", [1, [], {}, ()])
def test_32_levels_are_accepted(innermost):
    levels = MAX_DEPTH if innermost == 1 else MAX_DEPTH - 1

    check_json(nested(levels, innermost), "entry")


@pytest.mark.parametrize("innermost", [1, [], {}, ()])
def test_33_levels_are_refused(innermost):
    """
    An empty container counts as a level: it is one in every store.
    """
    levels = MAX_DEPTH + 1 if innermost == 1 else MAX_DEPTH

    with pytest.raises(Invalid, match="deeper than 32 levels"):
        check_json(nested(levels, innermost), "entry")


def test_a_hundred_thousand_levels_are_refused_without_recursion():
    with pytest.raises(Invalid, match="deeper than 32 levels"):
        check_json(nested(100_000, 1), "entry")


def test_a_value_that_holds_itself_is_refused():
    value: list[Any] = []
    value.append(value)

    with pytest.raises(Invalid, match="refers back to itself"):
        check_json(value, "entry")


@pytest.mark.parametrize("room", [MAX_SOUND_KEYS, 0])
def test_field_names_seen_before_vouch_for_no_others(monkeypatch, room):
    """
    Also with no room to remember any: then each is looked at each time.
    """
    monkeypatch.setattr("everbus.bus.arguments.MAX_SOUND_KEYS", room)
    monkeypatch.setattr("everbus.bus.arguments._valid_keys", set())
    for _ in range(2):
        check_json({"sound": 1, "also": {"sound": 2}}, "entry")
        for key in ("$set", "a.b", "nul\0", "\ud800", 7):
            with pytest.raises(Invalid, match=r"key|Unicode"):
                check_json({"sound": 1, key: 2}, "entry")


def test_field_names_are_remembered_in_bounded_room(monkeypatch):
    seen: set[object] = set()
    monkeypatch.setattr("everbus.bus.arguments._valid_keys", seen)
    for n in range(2 * MAX_SOUND_KEYS):
        check_json({f"k{n}": n, "x" * 1000 + str(n): n}, "entry")

    assert 0 < len(seen) <= MAX_SOUND_KEYS
    assert max(len(str(key)) for key in seen) <= MAX_SOUND_KEY


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(json_values)
def test_an_accepted_value_comes_back_from_json_and_msgpack_unchanged(value):
    """
    The rule's whole point: what is accepted reads the same in every tier.
    """
    try:
        check_json(value, "entry")
    except Invalid:
        return

    assert msgspec.msgpack.decode(msgspec.msgpack.encode(value)) == value
    assert msgspec.json.decode(msgspec.json.encode(value)) == value


def test_the_values_on_the_wire_cannot_be_changed():
    with pytest.raises(AttributeError):
        a_session().version = 2  # type: ignore[misc]

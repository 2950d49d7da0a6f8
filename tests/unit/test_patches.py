"""
What a patch may do to tags, fields and the full context.
"""

from typing import Any

import bson
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everbus.bus.errors import Invalid, TooLarge
from everbus.handlers.fetch_requests import FullContext
from everbus.handlers.patches import CONTEXT_BYTES, MAX_TAGS
from everbus.handlers.routes import HANDLERS, routes_with
from tests.builders import a_session
from tests.unit.commands import LATER, after, handle, restore, the_event, update


def test_tags_are_replaced_and_held_once_each():
    there = a_session(tags=("old",))

    changed = after(there, update({"tags": ["sea", "Über uns", "sea"]}))

    assert changed.tags == ("sea", "Über uns")
    assert after(changed, update({"tags": None})).tags == ()


@pytest.mark.parametrize(
    "tags",
    [
        *({}, "sea", 1, [1], [None], [[]], [""], ["x" * 65], ["a\0"]),
        ["\ud800"],
        [f"t{n}" for n in range(MAX_TAGS + 1)],
    ],
    ids=lambda tags: ascii(tags)[:12],
)
def test_tags_are_a_few_short_words(tags):
    with pytest.raises(Invalid) as refused:
        handle(a_session(), update({"tags": tags}))

    assert refused.value.details == {"field": "tags"}


class Model(msgspec.Struct, forbid_unknown_fields=True):
    """
    What an application adds to its sessions.
    """

    current_model: str = "small"
    budget: int | None = None
    steps: list[int] = []


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"current_model": 7}, "fields.current_model"),
        ({"budget": "much"}, "fields.budget"),
        ({"steps": [1, "two"]}, "fields.steps[1]"),
        ({"mood": 1}, "fields"),
    ],
)
def test_fields_are_held_to_the_applications_type(fields, field):
    handler = routes_with(Model)["session.update"].handler

    with pytest.raises(Invalid) as refused:
        handler(a_session(), update({"fields": fields}), LATER)

    assert refused.value.details == {"field": field}


def test_fields_are_judged_after_the_merge():
    handler = routes_with(Model)["session.update"].handler
    there = a_session(fields={"current_model": "large", "budget": 3})

    changed = handler(there, update({"fields": {"budget": None}}), LATER).session

    assert changed is not None
    assert changed.fields == {"current_model": "large"}


def test_fields_of_the_past_are_held_to_the_type_of_today():
    handler = routes_with(Model)["checkpoint.restore"].handler

    with pytest.raises(Invalid) as refused:
        handler(a_session(), restore(fetched={"fields": {"budget": "much"}}), LATER)

    assert refused.value.details == {"field": "fields.budget"}


def test_without_a_type_fields_hold_anything():
    assert routes_with(None) is HANDLERS
    changed = after(a_session(), update({"fields": {"mood": [1, {"a": None}]}}))
    assert changed.fields == {"mood": [1, {"a": None}]}


def test_a_type_changes_no_other_route():
    typed = routes_with(Model)

    assert list(typed) == list(HANDLERS)
    same = {kind for kind in HANDLERS if typed[kind] == HANDLERS[kind]}
    assert set(HANDLERS) - same == {
        "session.update",
        "session.turn",
        "checkpoint.restore",
    }


def test_of_the_full_context_only_its_size_is_hot():
    patch = {"full_context": {"a": [1, 2], "b": "ü" * 50}}

    outcome = handle(a_session(), update(patch))

    assert outcome.session is not None
    assert outcome.session.full_context is None
    assert 100 < outcome.session.context_bytes < 200
    assert the_event(outcome).patch == patch


def test_null_empties_the_full_context():
    outcome = handle(a_session(context_bytes=900), update({"full_context": None}))

    assert outcome.session is not None
    assert outcome.session.context_bytes == 0
    assert the_event(outcome).patch == {"full_context": None}


def test_the_full_context_is_measured_when_its_bound_is_reached():
    """
    Replacing a value never fails for what was replaced before.
    """
    there = a_session(context_bytes=CONTEXT_BYTES - 10)
    patch = {"full_context": {"a": "x" * 100}}

    asked = handle(there, update(patch))
    outcome = handle(there, update(patch, fetched={"a": "y" * 100}))

    assert asked.fetch == FullContext(version=there.version)
    assert asked.session is there
    assert outcome.session.context_bytes < 200


def test_a_full_context_over_its_limit_is_refused_with_the_remedy():
    there = a_session(context_bytes=CONTEXT_BYTES - 10)
    fetched = {"b": "x" * (CONTEXT_BYTES - 10)}

    with pytest.raises(TooLarge, match="a key set to null goes") as refused:
        handle(there, update({"full_context": {"a": "x"}}, fetched=fetched))

    assert refused.value.details["limit"] == CONTEXT_BYTES
    assert refused.value.details["size"] > CONTEXT_BYTES


def test_what_alone_is_over_the_limit_is_refused_unread():
    there = a_session(context_bytes=9)

    with pytest.raises(TooLarge):
        handle(there, update({"full_context": {"a": "x" * CONTEXT_BYTES}}))


values: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=12)
        | st.dictionaries(st.text("abü", min_size=1), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text("abü", min_size=1), values, max_size=4))
def test_the_size_that_is_kept_is_at_least_what_mongodb_takes(context):
    """
    A list of small numbers takes twelve times what it takes on the wire.
    """
    changed = after(a_session(), update({"full_context": {"c": context}}))

    assert changed.context_bytes >= len(bson.encode({"c": context}))

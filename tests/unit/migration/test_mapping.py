"""
What becomes what, and how a wrong mapping or a wrong row is refused.
"""

import re
from datetime import UTC, datetime

import pytest

from everbus.compose.migration.mapping import load_mapping, session_id_of
from everbus.compose.migration.rules import MappingError
from everbus.compose.migration.values import FieldRule, RowProblem
from tests.unit.migration.old_store import MAPPING, a_mapping_file

ROW = {"id": "c1", "user_name": "ada", "title": "Tides", "labels": "a, b"}


@pytest.fixture
def mapping(tmp_path):
    return load_mapping(a_mapping_file(tmp_path))


def test_a_row_becomes_a_session(mapping):
    plan = mapping.session({**ROW, "notes": '{"n": 1, "none": null}'})

    assert plan.session_id == "c1"
    assert (plan.owner, plan.mads) == ("ada", ("fiedler",))
    assert plan.state == {
        "context_summary": {"title": "Tides"},
        "full_context": {"notes": {"n": 1}},
        "tags": ["a", "b"],
    }


def test_a_message_becomes_an_entry_and_empty_fields_are_left_out(mapping):
    row = {"id": 7, "role": "user", "body": None, "created": 1.5, "model": "m"}

    assert mapping.entry(row) == {
        "role": "user",
        "at": "1970-01-01T00:00:01.500000+00:00",
        "extra": {"model": "m"},
    }


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({"body": "x"}, "role", "is missing; wanted text"),
        ({"role": 5}, "role", "is 5; wanted text in UTF-8"),
        ({"role": "u", "body": b"\xff"}, "body", "wanted a JSON value in UTF-8"),
        ({"role": "u", "body": 2**60}, "body", "beyond"),
        ({"role": "u", "created": "noon"}, "created", "wanted seconds since 1970"),
        ({"role": "u", "created": 1e30}, "created", "wanted seconds since 1970"),
        ({"role": "u", "body": "x" * 250_000}, "entry", "at most 245760"),
        ({"role": "u", "odd.key": 1}, "extra", "odd.key"),
    ],
)
def test_a_wrong_value_is_refused_with_field_and_reason(mapping, row, field, reason):
    with pytest.raises(RowProblem) as caught:
        mapping.entry(row)

    assert caught.value.field == field
    assert reason in caught.value.reason


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"user_name": None}, "user_name"),
        ({"user_name": "*"}, "user_name"),
        ({"id": b"x"}, "id"),
        ({"labels": "x" * 65}, "labels"),
        ({"labels": ",".join(map(str, range(33)))}, "labels"),
        ({"notes": "{"}, "notes"),
    ],
)
def test_a_wrong_conversation_is_refused(mapping, change, field):
    with pytest.raises(RowProblem) as caught:
        mapping.session({**ROW, **change})

    assert caught.value.field == field


def test_ids_that_cannot_be_kept_are_hashed_and_no_two_meet():
    """
    Reserved forms of UUIDs, long ids, and ids that look like our hashes.
    """
    hashed = session_id_of("a b")
    uuid5 = "3b241101-e2bb-5255-8caf-4136c566a962"

    assert session_id_of("c1", "old-") == "old-c1"
    assert re.fullmatch("m-[0-9a-f]{40}", hashed)
    assert len({session_id_of(k) for k in ("a b", hashed, uuid5, "x" * 65)}) == 4
    assert session_id_of(uuid5).startswith("m-")


@pytest.mark.parametrize(
    ("kind", "found", "value"),
    [
        ("id", 7, "7"),
        ("json", '{"a": [1]}', {"a": [1]}),
        ("list", ["a"], ["a"]),
        ("time", datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00+00:00"),
        ("time", "2026-01-02T01:00:00+01:00", "2026-01-02T00:00:00+00:00"),
        ("time_ms", 1000, "1970-01-01T00:00:01+00:00"),
        ("value", {"at": datetime(2026, 1, 2)}, {"at": "2026-01-02T00:00:00+00:00"}),  # noqa: DTZ001
    ],
)
def test_types_of_fields(kind, found, value):
    assert FieldRule(field="f", type=kind).read({"f": found}) == value


def test_a_dotted_name_leads_into_objects_and_a_constant_needs_no_field():
    assert FieldRule(field="a.b").read({"a": {"b": 1}}) == 1
    assert FieldRule(field="a.b").read({"a": 3}) is None
    assert FieldRule(value="ada").read({}) == "ada"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('owner = "user_name"', "owner = 5", "line 7: session.owner: Expected"),
        ('path = "old.db"', "", "source.path: is missing"),
        ('kind = "sqlite"', 'kind = "sqlight"', "line 3: source.kind: Invalid"),
        ('rest = "extra"', 'rust = "extra"', "unknown field `rust`"),
        ('mads = ["fiedler"]', 'mads = ["a b"]', "line 10: session.mads[0]: "),
        ("[source]", "[source", "wanted a TOML file"),
        ('rest = "extra"', "whole = true", "either `whole` or `fields`"),
    ],
)
def test_a_wrong_mapping_is_refused_with_line_key_and_wanted(tmp_path, old, new, told):
    path = a_mapping_file(tmp_path, MAPPING.replace(old, new, 1))

    with pytest.raises(MappingError) as caught:
        load_mapping(path)

    assert str(path) in str(caught.value)
    assert told in str(caught.value)


def test_a_message_may_be_the_entry_as_it_is(tmp_path):
    text = """
        [source]
        kind = "jsonl"
        path = "x.jsonl"
        [session]
        owner = "user_id"
        [entry]
        whole = true
        leave_out = ["secret"]
        """
    mapping = load_mapping(a_mapping_file(tmp_path, text))

    row = {"role": "user", "content": None, "secret": 1}
    assert mapping.entry(row) == {"role": "user", "content": None}

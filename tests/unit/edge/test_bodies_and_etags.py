"""
What is said over HTTP and what it means here: bodies, tags, problems.
"""

import json

import pytest

from everbus.bus.errors import (
    Defect,
    EverbusError,
    Expired,
    Invalid,
    Overloaded,
    ReplyTimeout,
    Unavailable,
    VersionConflict,
)
from everbus.gateway.edge.etags import expected_version, is_known, tag_of
from everbus.gateway.edge.json_body import parse_body
from everbus.gateway.edge.problem import RefusedRequest, problem


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"1", 1),
        (
            b' {"a": [1, 2.5, null, true, "\xc3\xbc"]} ',
            {"a": [1, 2.5, None, True, "ü"]},
        ),
        (b'{"a": {"b": 1}, "b": {"a": 1}}', {"a": {"b": 1}, "b": {"a": 1}}),
        (b"-0.0", -0.0),
        (b"1e308", 1e308),
        (b"[" * 33 + b"]" * 33, None),
    ],
    ids=str,
)
def test_json_is_read(text, value):
    read = parse_body(text)

    assert value is None or read == value


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b" ", b"{", b"{'a': 1}", b'{"a": 1,}', b"01", b"1.", b"+1", b"nul"),
        *(b"NaN", b"Infinity", b"-Infinity", b"1e309", b"-1e309", b'["\x00"]'),
        *(b'{"a": 1, "a": 1}', b'[{"a": 1, "\\u0061": 1}]', b"\xff", b"\xef\xbb\xbf1"),
        *('"a"'.encode("utf-16"), b"[" * 100_000, b"9" * 5000, b"1 2", b"/**/1"),
    ],
    ids=lambda text: repr(text[:16]),
)
def test_what_is_no_json_is_refused(text):
    with pytest.raises(RefusedRequest) as refusal:
        parse_body(text)

    assert refusal.value.refused_status == 400
    assert refusal.value.details["field"] == "body"


def test_depth_is_bounded_also_where_the_parser_goes_deeper():
    with pytest.raises(Invalid):
        parse_body(b"[" * 34 + b"]" * 34)


def test_tags_are_versions():
    assert tag_of(7) == '"7"'
    assert expected_version('"7"', None) == expected_version('W/"7"', 7) == 7
    assert expected_version("*", None) is None
    assert expected_version("*", 3) == expected_version(None, 3) == 3


def test_a_version_is_known_by_any_of_the_tags():
    assert is_known('"1", W/"7"', 7)
    assert is_known("*", 7)
    assert not is_known('"17", "71"', 7)
    assert not is_known(None, 7)


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (Invalid("a", field="f"), 422, "invalid", None),
        (VersionConflict("a", current_version=3), 409, "version_conflict", None),
        (RefusedRequest(VersionConflict, 412, "a"), 412, "version_conflict", None),
        (Overloaded("a", retry_after_s=2.1), 429, "overloaded", "3"),
        (Unavailable("a"), 503, "unavailable", "1"),
        (Expired("a"), 408, "expired", None),
        (ReplyTimeout("a", command_id="c"), 504, "timeout", "1"),
        (Defect("a"), 500, "defect", None),
    ],
    ids=lambda value: getattr(value, "code", str(value)),
)
def test_problems(error, status, code, retry_after):
    answer = problem(error, "r-1")
    told = json.loads(answer.body)

    assert answer.status_code == told["status"] == status
    assert (told["code"], told["request_id"]) == (code, "r-1")
    assert told["type"] == f"urn:everbus:error:{code}"
    assert answer.headers.get("Retry-After") == retry_after
    assert answer.media_type == "application/problem+json"


def test_a_detail_cannot_stand_for_another_member():
    answer = problem(EverbusError("a", status=200, code="ok", type="x"), "r")

    assert json.loads(answer.body)["status"] == 500


def test_a_fault_of_ours_tells_nothing_of_us():
    answer = problem(Defect("redis://:secret@host broke"), "r")

    assert b"secret" not in answer.body

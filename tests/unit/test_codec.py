"""
The wire form: round trips, bounds, and what is refused as malformed.
"""

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from everbus.bus.errors import Malformed, TooLarge
from everbus.bus.messages import (
    MAX_COMMAND_BYTES,
    SCHEMA,
    Envelope,
    Ordinal,
    Reply,
    TimelineEntry,
    TimelinePage,
    command_id,
    ordinal_of,
    pack,
    pack_envelope,
    unpack,
    unpack_envelope,
    unpack_reply,
)
from everbus.handlers.commands import UpdateSession
from tests.builders import NOW, a_session, an_envelope

PLAIN = pack({"v": 1, "id": "i.0.1", "kind": "session.get"})
# The two ways in: a field that we keep undecoded, and one that we do not know.
DEEP = [
    b"\x84\xa1v\x01\xa2id\xa1i\xa4kind\xa1k" + field + b"\x91" * 100_000 + b"\xc0"
    for field in (b"\xa4body", b"\xa5later")
]


def test_an_envelope_survives_the_wire():
    sent = an_envelope(
        "session.update",
        session="s-1",
        body={"patch": {"work_in_progress": {"n": [1, 2.5, None, "ü"]}}},
        expected_version=7,
        deadline_ms=1500,
        grant=b"a grant",
        reply=True,
        trace="00-1-2-01",
    )

    assert unpack_envelope(pack_envelope(sent)) == sent


def test_an_envelope_at_its_defaults_travels_without_them():
    sent = Envelope(v=SCHEMA, id="i.0.1", kind="session.get")

    packed = pack_envelope(sent)

    assert packed == PLAIN
    assert unpack_envelope(packed) == sent


@pytest.mark.parametrize(
    "sent",
    [
        Reply(id="i.0.1"),
        Reply(id="i.0.1", body=msgspec.Raw(pack(a_session(acl=("bo",))))),
        Reply(id="i", code="invalid", message="no", details={"field": "patch"}),
    ],
)
def test_a_reply_survives_the_wire(sent):
    assert unpack_reply(pack(sent)) == sent


def test_a_reply_of_a_newer_replica_is_read_without_its_new_fields():
    assert unpack_reply(pack({"id": "i", "later": [1]})) == Reply(id="i")


def test_times_survive_the_wire_to_the_microsecond():
    sent = a_session(last_active=NOW)

    assert unpack(pack(sent), type(sent)) == sent


def test_a_command_of_exactly_the_limit_travels():
    spare = MAX_COMMAND_BYTES - len(pack_envelope(an_envelope("k", body="x" * 70_000)))
    sent = an_envelope("k", body="x" * (70_000 + spare))

    packed = pack_envelope(sent)

    assert len(packed) == MAX_COMMAND_BYTES
    assert unpack_envelope(packed) == sent


def test_a_command_over_the_limit_is_refused_with_its_size_before_it_travels():
    spare = MAX_COMMAND_BYTES - len(pack_envelope(an_envelope("k", body="x" * 70_000)))

    with pytest.raises(TooLarge) as refused:
        pack_envelope(an_envelope("k", body="x" * (70_001 + spare)))

    size, limit = MAX_COMMAND_BYTES + 1, MAX_COMMAND_BYTES
    assert refused.value.details == {"size": size, "limit": limit}


def test_a_command_over_the_limit_is_malformed_when_it_arrives():
    with pytest.raises(Malformed) as refused:
        unpack_envelope(PLAIN + b"\xc0" * MAX_COMMAND_BYTES)

    assert refused.value.details == {"cause": "too_large"}


@pytest.mark.parametrize("end", range(len(PLAIN)))
def test_a_truncated_envelope_is_malformed(end):
    with pytest.raises(Malformed) as refused:
        unpack_envelope(PLAIN[:end])

    assert refused.value.details == {"cause": "undecodable"}


@pytest.mark.parametrize(
    "packed",
    [
        pytest.param(b"\xc1", id="no msgpack"),
        pytest.param(b"{}", id="json"),
        pytest.param(PLAIN + b"\x00", id="trailing bytes"),
        pytest.param(pack([1, "i", "k"]), id="an array"),
        pytest.param(pack({"v": 1, "id": "i"}), id="no kind"),
        pytest.param(pack({"id": "i", "kind": "k"}), id="no schema"),
        pytest.param(pack({"v": "1", "id": "i", "kind": "k"}), id="v is text"),
        pytest.param(pack({"v": 1, "id": 7, "kind": "k"}), id="id is a number"),
        pytest.param(pack({"v": 1, "id": b"i", "kind": "k"}), id="id is bytes"),
        pytest.param(b"\x83\xa1v\x01\xa2id\xa1\xff\xa4kind\xa1k", id="no utf-8"),
        pytest.param(b"\xdf\xff\xff\xff\xff", id="a map of 4 G entries"),
        pytest.param(PLAIN.replace(b"\x83", b"\x84") + b"\xa4body", id="no body"),
    ],
)
def test_what_is_no_envelope_is_malformed(packed):
    with pytest.raises(Malformed) as refused:
        unpack_envelope(packed)

    assert refused.value.details == {"cause": "undecodable"}


@pytest.mark.parametrize("packed", DEEP, ids=["body", "unknown field"])
def test_a_hundred_thousand_levels_are_malformed(packed):
    """
    Depth must not exhaust the stack: that would kill every session's replica.
    """
    with pytest.raises(Malformed) as refused:
        unpack_envelope(packed)

    assert refused.value.details == {"cause": "undecodable"}


def test_a_newer_schema_is_refused_by_the_commands_id():
    with pytest.raises(Malformed) as refused:
        unpack_envelope(pack({"v": SCHEMA + 1, "id": "i.0.1", "kind": "k"}))

    assert refused.value.details == {"cause": "newer_schema", "command_id": "i.0.1"}


def test_unknown_fields_are_ignored_so_that_the_envelope_can_grow():
    sent = {"v": 1, "id": "i.0.1", "kind": "session.get", "later": {"a": [1]}}

    assert unpack_envelope(pack(sent)) == unpack_envelope(PLAIN)


@given(st.binary(max_size=200))
@example(DEEP[0])
@example(b"")
def test_arbitrary_bytes_are_an_envelope_or_malformed(packed):
    """
    Whatever a hostile MAD publishes, the lane meets one kind of error.
    """
    try:
        found = unpack_envelope(packed)
    except Malformed:
        return
    assert isinstance(found, Envelope)


@given(
    st.integers(0, len(PLAIN) - 1),
    st.binary(max_size=4),
    st.integers(0, 4),
)
def test_a_damaged_envelope_is_an_envelope_or_malformed(at, bytes_in, bytes_out):
    """
    Near misses reach deeper into the decoder than noise does.
    """
    damaged = PLAIN[:at] + bytes_in + PLAIN[at + bytes_out :]

    try:
        found = unpack_envelope(damaged)
    except Malformed:
        return
    assert isinstance(found, Envelope)


@pytest.mark.parametrize(
    "packed",
    [
        pytest.param(b"\x81\xa5patch\x01", id="wrong type"),
        pytest.param(b"\x81\xa5patch", id="truncated"),
        pytest.param(b"\x81\xa5patch\x81\xa1a\xa1\xff", id="no utf-8"),
        pytest.param(b"\x81\xa5patch\x81\x80\x01", id="a map as a key"),
        pytest.param(b"\x81\xa5patch\x81\xa1a" + b"\x91" * 100_000, id="too deep"),
    ],
)
def test_a_body_that_is_not_of_its_kind_fails_validation(packed):
    """
    One exception for every bad body, so that its caller cannot miss one.
    """
    with pytest.raises(msgspec.ValidationError):
        unpack(packed, UpdateSession)


@given(st.binary(max_size=100))
def test_arbitrary_bytes_are_a_body_or_fail_validation(packed):
    try:
        found = unpack(packed, UpdateSession)
    except msgspec.ValidationError:
        return
    assert isinstance(found, UpdateSession)


def test_a_page_is_unpacked_with_its_types():
    sent = TimelinePage((TimelineEntry(1, NOW, "bo", {"a": 1}),), next=1)

    assert unpack(pack(sent), TimelinePage) == sent


@given(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,40}", fullmatch=True),
    st.integers(0, 1023),
    st.integers(1, 10**18 - 1),
)
def test_an_ordinal_is_read_back_from_its_command_id(instance, partition, n):
    assert ordinal_of(command_id(instance, partition, n)) == Ordinal(
        instance, partition, n
    )


@pytest.mark.parametrize(
    "identifier",
    [
        "free-form",
        "i.0",
        "i.0.1.2",
        "i.x.1",
        "i.0.x",
        "i.0.-1",
        "i.0.",
        ".0.1",
        "i.0.0",
        "i.0.01",
        "i.00.1",
        "i.0.1\n",
        "i.0.٣",
        "i.0.²",
        "i.0." + "9" * 5000,
    ],
)
def test_an_id_that_no_count_makes_has_no_ordinal(identifier):
    """
    Were `i.0.01` the first command too, one id could pass for another's.
    """
    assert ordinal_of(identifier) is None

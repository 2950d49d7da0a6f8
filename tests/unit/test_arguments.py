"""
Arguments that cannot be: Invalid with their name, before anything is sent.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone, tzinfo

import pytest

from everbus.bus.client import Mad
from everbus.bus.errors import EverbusError, Invalid, ReplyTimeout
from everbus.bus.messages import pack, unpack
from everbus.bus.quotation import quoted
from everbus.bus.requests import Requests
from tests.unit.fake_bus import FakeBus, a_publisher_on

ENDS = (
    datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14))),
    datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone(timedelta(hours=-1))),
)


class NoZone(tzinfo):
    """
    A time zone that nobody can use.
    """

    def __init__(self, offset):
        self.offset = offset

    def utcoffset(self, moment):
        if self.offset is None:
            raise LookupError("no such zone")
        return self.offset


class Never(datetime):
    """
    No time at all, as `NaT` of pandas, which is an instance of datetime.
    """

    def utcoffset(self):
        return self

    def astimezone(self, zone=None):
        return self

    def date(self):
        raise ValueError("this is no date")


class Moment(datetime):
    """
    A time of somebody's own class, as those of pandas and pendulum.
    """


NO_TIMEOUT = (
    *(None, "5", -1, -0.001, True, math.inf, -math.inf, math.nan, 1e308, 10**400),
    *(b"5", [], timedelta(seconds=5)),
)
NO_INTEGER = ("1", 1.0, True, -1, 2**60, 10**5000, math.nan, [], {})
NO_TIME = (
    *(*ENDS, datetime(2026, 1, 1), "2026-01-01", 5, True),  # noqa: DTZ001 - naive
    datetime(2026, 1, 1, tzinfo=NoZone(None)),
    datetime(2026, 1, 1, tzinfo=NoZone(timedelta(days=5))),
    Never(2026, 1, 1, tzinfo=UTC),
)
NO_TEXT = (5, b"x", ["x"], True, "\ud800")


class Endless(Mapping):
    """
    A mapping of somebody's own, without end.
    """

    def __getitem__(self, key):
        return 1

    def __iter__(self):
        n = 0
        while True:
            n += 1
            yield f"key{n}"

    def __len__(self):
        return 1


def cases():
    for value in NO_TIMEOUT:
        yield "timeout", value, lambda m, v: m.get_session("s", timeout=v)
        yield "timeout", value, lambda m, v: m.flush(timeout=v)
        yield "timeout", value, lambda m, v: m.list_sessions(timeout=v)
        yield "timeout", value, lambda m, v: m.outcome("i.0.1", timeout=v)
        yield "timeout", value, lambda m, v: m.get_or_create_session("u", timeout=v)
    for value in NO_INTEGER:
        yield (
            *("expected_version", value),
            lambda m, v: m.update_session("s", {}, expected_version=v),
        )
        yield (
            *("expected_version", value),
            lambda m, v: m.delete_session("s", expected_version=v),
        )
        yield (
            *("expected_last_seq", value),
            lambda m, v: m.append_and_wait("s", 1, expected_last_seq=v),
        )
        yield "limit", value, lambda m, v: m.timeline("s", limit=v)
        yield "limit", value, lambda m, v: m.checkpoints("s", limit=v)
        yield "limit", value, lambda m, v: m.list_sessions(limit=v)
        yield "after", value, lambda m, v: m.timeline("s", after=v)
        yield "before", value, lambda m, v: m.timeline("s", before=v)
        yield "version", value, lambda m, v: m.session_at("s", v)
        yield "to_version", value, lambda m, v: m.diff("s", 1, v)
    for value in NO_TIME:
        yield "since", value, lambda m, v: m.timeline("s", since=v)
        yield "until", value, lambda m, v: m.timeline("s", until=v)
        yield "active_since", value, lambda m, v: m.list_sessions(active_since=v)
        yield "active_before", value, lambda m, v: m.list_sessions(active_before=v)
    for value in NO_TEXT:
        yield "role", value, lambda m, v: m.add_participant("s", "ann", role=v)
        yield "name", value, lambda m, v: m.create_checkpoint("s", name=v)
        yield "kind", value, lambda m, v: m.create_checkpoint("s", kind=v)
        yield "text", value, lambda m, v: m.list_sessions(text=v)
        yield "cursor", value, lambda m, v: m.list_sessions(cursor=v)
        yield "state", value, lambda m, v: m.list_sessions(state=v)
        yield "session", value, lambda m, v: m.get_session(v)
        yield "session", value, lambda m, v: m.create_session("u", session_id=v)
        yield "user_id", value, lambda m, v: m.create_session(v)
        yield "id", value, lambda m, v: m.outcome(v)
        yield "checkpoint_id", value, lambda m, v: m.restore_checkpoint("s", v)
        yield "durability", value, lambda m, v: m.create_session("u", durability=v)
    for value in ("yes", 1, None, []):
        yield "full", value, lambda m, v: m.get_session("s", full=v)
        yield "wait", value, lambda m, v: m.durable("s", wait=v)
        yield "newest_first", value, lambda m, v: m.timeline("s", newest_first=v)
    for value in ([], [("a", 1)], "ab", None, 5, {1: 2}, {"a": {1}}, {"a": math.nan}):
        yield "patch", value, lambda m, v: m.update_session("s", v)
    yield "durability", [], lambda m, v: m.create_session("u", durability=v)
    yield "session", "", lambda m, v: m.create_session("u", session_id=v)


@pytest.mark.parametrize(
    ("field", "value", "call"), list(cases()), ids=lambda one: ascii(type(one).__name__)
)
async def test_a_wrong_argument_is_named_and_nothing_is_sent(field, value, call):
    publisher = a_publisher_on(FakeBus())
    mad = Mad("fiedler", Requests(publisher, None, 4))  # type: ignore[arg-type]

    with pytest.raises(Invalid) as refused:
        await call(mad, value)

    assert refused.value.details["field"] == field
    assert field in refused.value.message
    assert publisher.waiting == 0


def shared(levels):
    """
    A list that is small in memory, and endless when it is written out.
    """
    value = ["x"]
    for _ in range(levels):
        value = [value] * 10
    return value


class Node:
    """
    An object of the application, whose repr never ends.
    """

    def __repr__(self):
        while True:
            pass


@pytest.mark.parametrize(
    "value",
    [
        *(shared(40), tuple(shared(40)), {"a": shared(40)}, [Node()]),
        *(Node(), OrderedDict(a=shared(40))),
    ],
    ids=lambda one: type(one).__name__,
)
@pytest.mark.parametrize(
    "call",
    [
        lambda m, v: m.get_session(v),
        lambda m, v: m.create_session(v),
        lambda m, v: m.get_session("s", timeout=v),
        lambda m, v: m.session_at("s", v),
        lambda m, v: m.timeline("s", since=v),
        lambda m, v: m.join("s", role=v),
    ],
    ids=("id", "name", "timeout", "integer", "time", "text"),
)
async def test_the_refusal_of_an_endless_value_is_short_and_comes_at_once(call, value):
    """
    It quotes the value; to write all of it out would take for ever.
    """
    publisher = a_publisher_on(FakeBus())
    mad = Mad("fiedler", Requests(publisher, None, 4))  # type: ignore[arg-type]

    with pytest.raises(Invalid) as refused:
        await call(mad, value)

    assert len(refused.value.message) < 300


async def test_an_entry_with_an_object_of_the_application_is_refused_by_its_type():
    publisher = a_publisher_on(FakeBus())
    mad = Mad("fiedler", Requests(publisher, None, 4))  # type: ignore[arg-type]

    with pytest.raises(Invalid, match="entry holds a value of type Node, which JSON"):
        mad.append("s", {"node": Node()})


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("\ud800 \xe9", r"'\ud800 \xe9'"),
        ({"a": [1, None]}, "{'a': [1, None]}"),
        (math.nan, "nan"),
        (b"x", "b'x'"),
        (10**5000, "a value of type int"),
        ("x" * 1000, "'" + "x" * 79),
    ],
    ids=lambda one: ascii(one)[:10] if isinstance(one, str) else type(one).__name__,
)
def test_a_short_value_is_quoted_as_it_is(value, shown):
    assert quoted(value) == shown


class Asked:
    """
    The times in the one request that was made, which gets no reply.
    """

    async def ask(self, kind, session_id, body, timeout):
        self.times = [value for value in body.values() if isinstance(value, datetime)]
        raise ReplyTimeout("no reply")

    async def ask_anyone(self, kind, body, timeout):
        await self.ask(kind, "", body, timeout)


@pytest.mark.parametrize(
    "call",
    [
        lambda m, v: m.timeline("s", since=v),
        lambda m, v: m.timeline("s", until=v),
        lambda m, v: m.list_sessions(active_since=v),
        lambda m, v: m.list_sessions(active_before=v),
    ],
    ids=("since", "until", "active_since", "active_before"),
)
async def test_a_time_of_a_class_of_somebodys_own_is_sent(call):
    asked = Asked()

    with pytest.raises(ReplyTimeout):
        await call(Mad("fiedler", asked), Moment(2026, 1, 1, tzinfo=UTC))  # type: ignore[arg-type]

    assert unpack(pack(asked.times), list) == [datetime(2026, 1, 1, tzinfo=UTC)]


def test_a_patch_without_end_is_refused():
    publisher = a_publisher_on(FakeBus())
    mad = Mad("fiedler", Requests(publisher, None, 4))  # type: ignore[arg-type]

    with pytest.raises(EverbusError, match="patch"):
        mad.update_later("s", Endless())

    assert publisher.waiting == 0


def test_any_mapping_is_a_patch():
    publisher = a_publisher_on(FakeBus())
    mad = Mad("fiedler", Requests(publisher, None, 4))  # type: ignore[arg-type]

    mad.update_later("s", OrderedDict(tags=["a"]), expected_version=2)

    assert publisher.waiting == 1

"""
JSON values that are circular, endless or shared; and subclasses of JSON's types.
"""

import json
import time
from collections import Counter, OrderedDict, defaultdict, namedtuple
from enum import Enum, IntEnum, StrEnum

import pytest

from everbus.bus.arguments import MAX_VALUE_BYTES, check_json
from everbus.bus.errors import EverbusError, Invalid, TooLarge
from everbus.bus.messages import pack, unpack

Point = namedtuple("Point", "x y")


class Colour(StrEnum):
    RED = "red"


class Mixed(str, Enum):  # noqa: UP042 - the older spelling is what is tried
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Text(str):
    __slots__ = ()


class Whole(int):
    pass


class Real(float):
    pass


def a_tree():
    root = {"name": "root", "children": []}
    root["children"] += [{"name": n, "parent": root} for n in range(10)]
    return root


def shared(levels, wide):
    value = [1]
    for _ in range(levels):
        value = [value] * wide
    return value


def refusal_of(value):
    begun = time.process_time()
    with pytest.raises(EverbusError) as refused:
        check_json(value, "entry")
    assert time.process_time() - begun < 2
    return refused.value


@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: [v], lambda v: {"a": (v,)}])
def test_a_value_that_refers_to_itself_is_invalid_at_once(wrap):
    refused = refusal_of(wrap(a_tree()))

    assert isinstance(refused, Invalid)
    assert "refers back to itself" in refused.message


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(shared(31, 10), id="arrays"),
        pytest.param([["x" * 100_000] * 100_000], id="text"),
        pytest.param([list(range(100_000))] * 100_000, id="wide arrays"),
        pytest.param([{"k" * 60_000: 1}] * 100_000, id="names"),
        pytest.param([{"k k" * 20_000: 1}] * 100_000, id="unusual names"),
    ],
)
def test_one_part_referred_to_very_often_is_refused_by_its_size(value):
    refused = refusal_of(value)

    assert isinstance(refused, TooLarge)
    assert refused.details["size"] > refused.details["limit"] == MAX_VALUE_BYTES


def test_one_part_referred_to_twice_is_no_circle():
    part = {"a": [1]}

    check_json({"one": part, "two": part, "list": [part, part]}, "entry")


@pytest.mark.parametrize(
    "value",
    [
        *(Colour.RED, Mixed.RED, Level.HIGH, Text("x"), Whole(3), Real(1.5)),
        *(OrderedDict(a=1), Counter("aa"), defaultdict(list, a=[1]), Point(1, 2)),
        *({Colour.RED: 1}, {Text("k"): 1}, [{"a": Text("é")}], {Mixed.RED: Text("")}),
    ],
)
def test_a_subclass_is_written_as_json_dumps_writes_it(value):
    check_json(value, "entry")

    assert unpack(pack({"entry": value}), dict)["entry"] == json.loads(
        json.dumps(value)
    )


def test_numbers_of_numpy_are_written_as_json_dumps_does_or_refused():
    numpy = pytest.importorskip("numpy")

    check_json([numpy.float64(1.5), numpy.str_("x")], "entry")
    for value in (numpy.int64(1), numpy.float32(1), numpy.bool_(True), numpy.ones(2)):
        assert "which JSON cannot carry" in refusal_of(value).message


def test_a_value_that_cannot_even_be_shown_is_refused():
    class Hostile:
        def __repr__(self):
            raise RuntimeError("no")

    assert "a value of type Hostile" in refusal_of([Hostile()]).message


def itself():
    value = {"a": "x"}
    value["b"] = value

    return value


@pytest.mark.parametrize(
    "bad",
    [
        2**53 + 1,
        -(2**53) - 1,
        float("nan"),
        "\ud800",
        b"bytes",
        {"a.b": 1},
        {"$a": 1},
        {1: "a"},
        {"a": {"b": {"c": {"d": "\ud800"}}}},
        itself(),
    ],
)
def test_a_small_object_under_known_names_is_checked_like_any_other(bad):
    """
    Most values are small objects of short texts, and take a shorter way.
    """
    check_json({"a": "x", "b": {"c": 1, "d": None}}, "entry")

    refusal_of({"a": "x", "b": bad})
    refusal_of({"a": {"b": {"c": bad}}})

"""
A turn of the SDK: awaited, or filled in a block; one command, or none.
"""

import asyncio
from typing import Any

import msgspec
import pytest

from everbus.bus.client import Mad
from everbus.bus.errors import Invalid, TooLarge
from everbus.bus.messages import CommittedTurn, Reply, pack, unpack

DONE = CommittedTurn(turn="i.0.1", version=2, seqs=(1, 2))
TAGS = {"tags": ["a"]}


class FakeRequests:
    """
    Notes what is asked, and answers that it was done.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def check(self) -> None:
        """
        Accept every call.
        """

    async def ask(self, kind, session_id, body, timeout, version=None, **how):
        # As the bus carries it.
        sent = unpack(pack(body), dict)
        self.asked.append((kind, session_id, sent, version, how))
        return Reply(id="i.0.1", body=msgspec.Raw(pack(DONE)))


@pytest.fixture
def requests():
    return FakeRequests()


@pytest.fixture
def mad(requests):
    return Mad("fiedler", requests)


PLAIN = {"command_id": None, "durability": "hot"}


async def test_a_turn_that_is_awaited_is_one_command(mad, requests):
    done = await mad.turn("s", ["a", {"n": 1}], TAGS)

    assert done == DONE
    body = {"entries": ["a", {"n": 1}], "patch": TAGS}
    assert requests.asked == [("session.turn", "s", body, None, PLAIN)]


async def test_conditions_and_ids_are_sent_if_there_are_any(mad, requests):
    await mad.turn(
        *("s", ["a"]),
        expected_version=7,
        expected_last_seq=0,
        turn_id="run-7",
        command_id="order-7",
        durability="warm",
    )

    body = {"entries": ["a"], "expected_last_seq": 0, "turn": "run-7"}
    how = {"command_id": "order-7", "durability": "warm"}
    assert requests.asked == [("session.turn", "s", body, 7, how)]


async def test_a_block_sends_at_its_end(mad, requests):
    async with mad.turn("s", ["a"], expected_version=1) as turn:
        turn.append("b")
        turn.update(TAGS)
        assert requests.asked == []
        assert turn.committed is None

    assert turn.committed == DONE
    body = {"entries": ["a", "b"], "patch": TAGS}
    assert requests.asked == [("session.turn", "s", body, 1, PLAIN)]


async def test_a_block_that_fails_sends_nothing(mad, requests):
    async def fail() -> None:
        async with turn:
            turn.append("b")
            raise KeyError("b")

    turn = mad.turn("s", ["a"])
    with pytest.raises(KeyError):
        await fail()

    assert (turn.committed, requests.asked) == (None, [])


async def test_a_turn_is_sent_once(mad, requests):
    async with mad.turn("s", ["a"]) as turn:
        pass

    for again in (turn.append, turn.update):
        with pytest.raises(Invalid, match="begin another one"):
            again({})
    with pytest.raises(Invalid, match="begin another one"):
        async with turn:
            pass
    assert len(requests.asked) == 1


async def test_a_turn_keeps_values_as_they_were_given(mad, requests):
    """
    The caller fills one object again and again.
    """
    said, patch = {"n": 0}, {"fields": {"x": 1}}
    async with mad.turn("s", [said]) as turn:
        turn.update(patch)
        for said["n"] in (1, 2):
            turn.append(said)
        patch["fields"]["x"] = object()

    [(_, _, body, _, _)] = requests.asked
    assert body["entries"] == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert body["patch"] == {"fields": {"x": 1}}


async def test_a_turn_that_was_sent_within_its_block_is_not_sent_again(mad, requests):
    async with mad.turn("s", ["a"]) as turn:
        await turn
        with pytest.raises(Invalid, match="was sent"):
            await turn

    assert len(requests.asked) == 1


async def test_a_turn_of_a_failed_block_takes_nothing_more(mad):
    with pytest.raises(ZeroDivisionError):
        async with mad.turn("s", ["a"]) as turn:
            raise ZeroDivisionError

    with pytest.raises(Invalid, match="was sent"):
        turn.append("b")


async def test_a_turn_has_one_patch(mad):
    turn = mad.turn("s", patch=TAGS)

    with pytest.raises(Invalid, match="one of both"):
        turn.update(TAGS)
    turn.close()


async def test_tasks_take_a_turn_as_any_call(mad, requests):
    async with asyncio.TaskGroup() as tasks:
        one = tasks.create_task(mad.turn("s", ["a"]))
    [other] = await asyncio.gather(mad.turn("s", ["b"]))
    third = await asyncio.wait_for(mad.turn("s", ["c"]), 1)

    assert [one.result(), other, third] == [DONE] * 3
    assert isinstance(mad.turn("s").close(), type(None))


@pytest.mark.parametrize("wrong", ["text", b"bytes", {"a": 1}, 7, None])
def test_entries_are_a_list(mad, wrong):
    with pytest.raises(Invalid) as refused:
        mad.turn("s", wrong)

    assert refused.value.details == {"field": "entries"}


@pytest.mark.parametrize(
    ("how", "field"),
    [
        ({"entries": ["a", float("nan")]}, "entries[1]"),
        ({"patch": ["a"]}, "patch"),
        ({"expected_last_seq": -1}, "expected_last_seq"),
        ({"expected_last_seq": True}, "expected_last_seq"),
        ({"turn_id": "a b"}, "turn"),
        ({"turn_id": 7}, "turn"),
    ],
)
def test_a_bad_argument_is_refused_before_anything_is_sent(mad, requests, how, field):
    with pytest.raises(Invalid) as refused:
        mad.turn("s", **how)

    assert refused.value.details == {"field": field}
    assert requests.asked == []


async def test_an_entry_that_is_added_is_checked(mad):
    turn = mad.turn("s")

    with pytest.raises(Invalid):
        turn.append(float("inf"))
    with pytest.raises(TooLarge):
        turn.append("x" * 300_000)
    turn.close()
    with pytest.raises(Invalid, match="begin another one"):
        turn.append("a")


def test_a_turn_that_nobody_awaits_warns_as_any_call(mad):
    with pytest.warns(RuntimeWarning, match="never awaited"):
        mad.turn("s", ["a"])

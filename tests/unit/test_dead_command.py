"""
Dead letters as people see them, and which of them can be sent once more as what.
"""

import json
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from everbus.bus.errors import Invalid
from everbus.bus.keys import GATEWAY, partition_of
from everbus.bus.messages import (
    MAX_COMMAND_BYTES,
    OnBehalf,
    check_command_id,
    pack,
    unpack_envelope,
)
from everbus.compose import cli
from everbus.compose.dead_letter_view import letter_fields
from everbus.compose.dead_letters import (
    Filters,
    Group,
    LetterCounts,
    add_to_group,
    matching_letters,
    partitions_near_cap,
)
from everbus.compose.exit_codes import Failed
from everbus.compose.progress import Pace
from everbus.compose.redrive_command import _selection
from everbus.gateway.lane.redrive import Edit, NotRedrivable, redriven
from everbus.gateway.store import key_names
from everbus.gateway.store.dead_letters import (
    PAGE,
    Buried,
    DeadLetter,
    LetterId,
    newest,
    page,
    parse_letter_id,
)
from tests.builders import an_envelope
from tests.memory_server import memory_redis, wire_to_memory

PARTITIONS = 16
SESSION = "s1"
HOME = partition_of(SESSION, PARTITIONS)
EDGE_ID = "18446744073709551615-18446744073709551615"


def a_letter(kind="timeline.append", body=None, letter=None, **fields):
    envelope = an_envelope(
        kind, session=SESSION, body=body or {"entry": 1}, grant=b"", **fields
    )
    known = {
        "mad": "fiedler",
        "entry": "1-0",
        "index": 0,
        "cause": "not_found",
        "message": "no session",
        "at_ms": 1_700_000_000_000,
        "principal": "ada",
        "role": "user",
        "envelope": envelope,
    }
    return Buried(LetterId(HOME, "7-0"), DeadLetter(**known | (letter or {})))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0-1-0", LetterId(0, "1-0")),
        ("15-1700000000000-12", LetterId(15, "1700000000000-12")),
        (f"3-{EDGE_ID}", LetterId(3, EDGE_ID)),
    ],
)
def test_an_id_is_what_was_shown(text, wanted):
    assert parse_letter_id(text, PARTITIONS) == wanted
    assert str(wanted) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "1", "1-1", "-1-1-1", "1-1-1-1", "1-1-*", "1--1", " 1-1-1", "1-1-1\n"),
        *("01-1-1", "1-01-1", "1-1-00", "1-$-0", "1-(1-0", "1-1-0x1", "+-1-1", "a-1-1"),
        *("1-18446744073709551616-0", "1-0-18446744073709551616", "16-1-1", "9999-1-1"),
        *("\u0661-1-1", "1-\u0662-1", "1" * 500),
    ],
)
def test_what_is_no_id_is_refused_before_the_bus_is_asked(text):
    with pytest.raises(Invalid):
        parse_letter_id(text, PARTITIONS)


@given(st.text())
def test_whatever_is_typed_is_an_id_or_refused(text):
    with suppress(Invalid):
        assert str(parse_letter_id(text, PARTITIONS)) == text


def test_a_redriven_command_is_the_dead_one_without_what_is_over():
    buried = a_letter(
        expected_version=3, trace="00-a", deadline_ms=5, reply=True, epoch=4
    )

    envelope = redriven(buried, PARTITIONS)

    assert envelope.kind == "timeline.append"
    assert (envelope.session, envelope.expected_version) == (SESSION, 3)
    assert bytes(unpack_envelope(pack(envelope)).body) == pack({"entry": 1})
    assert envelope.trace == "00-a"
    assert (envelope.deadline_ms, envelope.reply, envelope.grant) == (None, False, b"")
    assert envelope.epoch == 0
    assert envelope.on_behalf == OnBehalf(mad="fiedler", principal="ada", role="user")
    assert envelope.id == f"redriven-{HOME}-7-0" == check_command_id(envelope.id)


def test_the_longest_id_of_a_redriven_command_is_an_id():
    check_command_id(f"redriven-{LetterId(1023, EDGE_ID)}")


def test_who_asked_is_the_mad_where_its_grant_was_never_judged():
    buried = a_letter(letter={"principal": "", "role": "", "cause": "poison"})

    assert redriven(buried, PARTITIONS).on_behalf == OnBehalf(
        mad="fiedler", principal="fiedler", role="mad"
    )


def test_what_a_command_claims_of_its_sender_counts_for_nothing():
    forged = OnBehalf(mad="root", principal="root", role="admin")

    assert redriven(a_letter(on_behalf=forged), PARTITIONS).on_behalf == OnBehalf(
        mad="fiedler", principal="ada", role="user"
    )


def test_the_gateways_own_command_stays_its_own():
    lost = {"mad": "x", "instance": "i", "epoch": 1}
    own = {"mad": GATEWAY, "principal": GATEWAY, "role": "gateway"}

    for kind in ("participant.lost", "instance.lost"):
        envelope = redriven(a_letter(kind, lost, own), PARTITIONS)
        assert envelope.on_behalf is None
    with pytest.raises(NotRedrivable):
        redriven(a_letter("instance.lost", lost), PARTITIONS)


@pytest.mark.parametrize(
    ("buried", "why"),
    [
        (a_letter(letter={"envelope": None, "cause": "undecodable"}), "no command"),
        (a_letter(letter={"envelope": None, "cause": "trimmed"}), "no command"),
        (a_letter(letter={"cause": "expired"}), "in time or not at all"),
        (a_letter(letter={"cause": "unauthenticated"}), "nobody knows who asked"),
        (a_letter("session.rename"), "know no kind 'session.rename'"),
        (a_letter("request.outcome", {"command_id": "x"}), "know no kind"),
        (a_letter("session.get"), "only reads"),
        (a_letter()._replace(id=LetterId(HOME ^ 1, "7-0")), "another partition"),
        (a_letter(body={"entry": "x" * (MAX_COMMAND_BYTES - 90)}), "the limit is"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_redriven_says_why(buried, why):
    with pytest.raises(NotRedrivable, match=why):
        redriven(buried, PARTITIONS)


def test_an_edit_is_held_to_the_kind():
    buried = a_letter("session.update", {"patch": {}})

    edited = redriven(buried, PARTITIONS, Edit(body={"patch": {"tags": ["sea"]}}))
    other = redriven(
        buried, PARTITIONS, Edit(kind="timeline.append", body={"entry": None})
    )

    assert msgspec.msgpack.decode(edited.body) == {"patch": {"tags": ["sea"]}}
    assert other.kind == "timeline.append"
    for body, field in (
        ({"patch": 7}, "patch"),
        ({}, "patch"),
        ({"patsh": {}, "patch": {}}, "no field 'patsh'"),
        ({"patch": {"$set": 1}}, r"\$set"),
    ):
        with pytest.raises(Invalid, match=field):
            redriven(buried, PARTITIONS, Edit(body=body))


def test_another_kind_can_make_an_unknown_one_redrivable():
    buried = a_letter("timeline.apend")

    assert redriven(buried, PARTITIONS, Edit(kind="timeline.append"))
    with pytest.raises(NotRedrivable):
        redriven(buried, PARTITIONS, Edit(body={"entry": 1}))


def test_all_filters_have_to_fit():
    buried = a_letter()

    assert Filters().match(buried)
    assert Filters("not_found", "fiedler", "timeline.append", SESSION, HOME).match(
        buried
    )
    for wrong in (
        Filters(cause="poison"),
        Filters(mad="hymir"),
        Filters(kind="session.get"),
        Filters(session="s2"),
        Filters(partition=HOME ^ 1),
        Filters("not_found", "hymir"),
    ):
        assert not wrong.match(buried)
    assert not Filters(kind="timeline.append").match(
        a_letter(letter={"envelope": None})
    )


def test_a_group_counts_by_mad_and_kind_and_knows_its_first_and_last():
    groups: dict[str, Group] = {}
    for at_ms, mad in ((2_000, "ada"), (1_000, "ada"), (3_000, "bob")):
        add_to_group(groups, a_letter(letter={"at_ms": at_ms, "mad": mad}))

    [found] = groups.values()
    assert found.count == 3
    assert (found.oldest.timestamp(), found.newest.timestamp()) == (1, 3)
    assert found.mads == {"ada": 2, "bob": 1}


def test_a_partition_is_full_before_it_loses_letters():
    assert partitions_near_cap({0: 0, 1: 8_999, 2: 9_000, 3: 10_050}) == [2, 3]


@pytest.mark.parametrize(
    ("packed", "payload", "told"),
    [
        (pack({"a": [1, None, "ü"]}), {"a": [1, None, "ü"]}, ""),
        (pack(b"\x00\x01"), None, "c4020001"),
        (pack(float("inf")), None, "cb7ff0000000000000"),
        (b"\x91" * 3000 + b"\x01", None, "91" * 256),
        (b"\xc1", None, "c1"),
        (b"", None, ""),
    ],
)
def test_a_payload_is_json_where_it_can_be(packed, payload, told):
    envelope = msgspec.structs.replace(
        a_letter().letter.envelope, body=msgspec.Raw(packed)
    )
    shown = letter_fields(a_letter(letter={"envelope": envelope}))

    assert (shown["payload"], shown["payload_hex"]) == (payload, told)
    assert shown["payload_bytes"] == len(packed)
    json.loads(msgspec.json.encode(shown))


@pytest.fixture
async def redis():
    async with memory_redis() as running:
        yield running


@pytest.fixture
async def wire(redis):
    async with wire_to_memory(redis) as connected:
        yield connected


def bury(redis, partition, count, first=1):
    """
    Letters `<n>-0` of that partition, from n = *first* on.
    """
    packed = pack(a_letter().letter)
    for n in range(first, first + count):
        letter = ("cause", "not_found", "d", packed)
        redis.call("XADD", key_names.dead(partition), f"{n}-0", *letter)


async def test_letters_come_page_by_page_to_the_end_that_there_was(redis, wire):
    """
    Those that are buried while we look are for the next time.
    """
    bury(redis, 0, PAGE + 5)
    bury(redis, 2, 3)
    ends = await newest(wire, 4)
    bury(redis, 0, 10, first=1000)
    seen = []

    found = [
        str(buried.id)
        async for buried in matching_letters(
            wire, range(4), Filters(), ends, advance=seen.append
        )
    ]

    assert len(found) == PAGE + 5 + 3
    assert found[PAGE + 5 :] == ["2-1-0", "2-2-0", "2-3-0"]
    assert sum(seen) == len(found)
    rest = matching_letters(wire, range(4), Filters(), ends, after=LetterId(2, "1-0"))
    assert [str(buried.id) async for buried in rest] == found[-2:]


async def test_a_letter_that_cannot_be_read_is_shown_all_the_same(redis, wire):
    redis.call("XADD", key_names.dead(0), "5-0", "cause", "x", "d", b"\xc1")
    redis.call("XADD", key_names.dead(0), "6-0", "y", "z")

    first, second = await page(wire, 0)

    assert (first.letter.cause, first.letter.packed) == ("x", b"\xc1")
    assert (second.letter.cause, second.letter.at_ms) == ("unreadable", 6)
    with pytest.raises(NotRedrivable):
        redriven(first, PARTITIONS)


async def test_at_most_so_many_a_second_go_and_none_is_made_up_for():
    """
    Counted on a clock that only waiting moves.
    """
    now, waited = [100.0], []

    async def sleep(seconds):
        waited.append(seconds)
        now[0] += seconds

    pace = Pace(4, lambda: now[0], sleep)
    went = []
    for n in range(17):
        await pace.turn()
        went.append(now[0])
        if n == 8:
            now[0] += 60

    for at in went:
        assert sum(at <= other < at + 1 for other in went) <= 4
    assert went[-1] == 100 + 2 + 60 + 7 * 0.25


def test_one_of_id_filters_and_all_is_wanted():
    assert _selection("0-1-0", Filters(), False).letter_id == "0-1-0"
    assert _selection(None, Filters(mad="x"), False).filters == Filters(mad="x")
    for wrong in (
        (None, Filters(), False),
        ("0-1-0", Filters(mad="x"), False),
        ("0-1-0", Filters(), True),
        (None, Filters(mad="x"), True),
    ):
        with pytest.raises(Failed, match="name the letters") as told:
            _selection(*wrong)
        assert told.value.exit_code == 2


def test_of_those_that_are_left_only_the_first_are_named():
    counts = LetterCounts()
    for n in range(100):
        counts.leave(LetterId(0, f"{n}-0"), "why")

    assert counts.left == 100
    assert [identifier for identifier, _ in counts.named] == [
        f"0-{n}-0" for n in range(20)
    ]


@pytest.mark.parametrize(
    "command",
    [
        *(("dead", verb) for verb in ("list", "show", "redrive", "drop")),
        *(("mads", verb) for verb in ("list", "add", "remove")),
        ("acl",),
    ],
)
def test_every_command_has_help_with_an_example(command):
    told = CliRunner().invoke(cli.app, [*command, "--help"])

    assert told.exit_code == 0
    assert "Example: " in told.output

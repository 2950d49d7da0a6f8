"""
The ingress of a lane: groups, fenced reads, waits and trims, without a server.
"""

import math

import pytest
from redis.exceptions import ResponseError

from everbus.bus import keys
from everbus.bus.wire import WireFailed
from everbus.gateway.lane.connection import Disturbed, LaneLost
from everbus.gateway.lane.delivery import Delivery, Undecodable
from everbus.gateway.lane.intake import MAX_ID_PART, Intake
from tests.lane_parts import FakeWire, packed

ADA = keys.ingress(0, "ada").encode()
GROUP = [b"name", keys.GROUP.encode(), b"last-delivered-id", b"5-0"]


def entry(name: str, *commands: bytes):
    return [name.encode(), [part for one in commands for part in (b"c", one)]]


def a_read(*entries):
    return [9000, [[ADA, list(entries)]]]


async def admitted(wire=None, point=None, **answers):
    known = {"HMGET": [point], "XGROUP": b"OK", "XINFO": [GROUP]}
    wire = wire or FakeWire(**known | answers)
    intake = Intake(wire, 0, 1)
    await intake.admit(["ada"])

    return wire, intake


@pytest.mark.parametrize(
    ("point", "start"),
    [
        (None, "0"),
        (b"7-3", "7-2"),
        (b"7-0", f"6-{MAX_ID_PART}"),
        (b"7", f"6-{MAX_ID_PART}"),
    ],
)
async def test_a_group_begins_at_the_trim_point_never_at_the_end(point, start):
    """
    `$` would skip commands that are older than their first reader.
    """
    wire, _ = await admitted(point=point)

    [group] = [command for command in wire.sent if command[0] == "XGROUP"]
    assert group[4] == start


async def test_a_group_that_exists_is_no_error():
    _, intake = await admitted(XGROUP=ResponseError("BUSYGROUP exists"))

    assert intake.readable == ["ada"]


async def test_an_ingress_that_vanishes_meanwhile_disturbs_the_lane():
    with pytest.raises(Disturbed, match="ingress of ada"):
        await admitted(XINFO=ResponseError("ERR no such key"))


async def test_reading_goes_on_behind_the_last_delivered_entry():
    wire, intake = await admitted(XREAD=None, read=[9000, None])

    await intake.wait(10)

    [waiting] = [command for command in wire.sent if command[0] == "XREAD"]
    assert waiting[-1] == "5-0"


async def test_what_is_read_is_pending_until_it_is_settled():
    _, intake = await admitted()

    now_ms, received = intake.accept(a_read(entry("6-0", packed("session.get"))))

    assert now_ms == 9000
    assert [type(one) for one in received] == [Delivery]
    assert intake.pending == {"ada": {"6-0": None}}
    assert intake.oldest_ms() == 6
    intake.settled({"ada": ["6-0"]})
    assert intake.oldest_ms() is None


async def test_an_ingress_is_trimmed_below_its_oldest_pending_entry():
    _, intake = await admitted()
    reads = [entry(f"{n}-0", packed("session.get", n)) for n in (6, 7, 8)]
    intake.accept(a_read(*reads))

    intake.settled({"ada": ["7-0"]})
    assert intake.trims() == {"ada": "6-0"}
    intake.settled({"ada": ["6-0", "8-0"]})
    assert intake.trims() == {"ada": "8-1"}
    assert intake.trims() == {}


@pytest.mark.parametrize(
    ("last", "below"),
    [(f"6-{MAX_ID_PART}", "7-0"), (f"{MAX_ID_PART}-{MAX_ID_PART}", "")],
)
async def test_the_highest_ids_break_no_trim(last, below):
    _, intake = await admitted()
    intake.accept(a_read(entry(last, packed("session.get"))))

    intake.settled({"ada": [last]})

    assert intake.trims() == {"ada": below}


async def test_a_superseded_read_ends_the_lane():
    _, intake = await admitted()

    with pytest.raises(LaneLost):
        intake.accept([b"superseded"])


async def test_a_vanished_group_makes_the_lane_begin_anew():
    _, intake = await admitted()

    with pytest.raises(Disturbed, match="group is gone"):
        intake.accept([b"nogroup"])


async def test_pending_entries_are_read_page_by_page_to_their_end():
    pages = {
        "0": a_read(entry("1-0", packed("session.get", 1))),
        "1-0": a_read(entry("2-0", packed("session.get", 2))),
        "2-0": a_read(),
    }
    _, intake = await admitted(read=lambda command: pages[command[-1]])

    received = await intake.replay()

    assert [one.entry.id for one in received] == ["1-0", "2-0"]


async def test_an_entry_that_was_trimmed_while_pending_is_a_loss_with_its_cause():
    _, intake = await admitted()

    _, [lost] = intake.accept(a_read([b"6-0", None]))

    assert isinstance(lost, Undecodable)
    assert lost.trouble.details["cause"] == "trimmed"


async def test_after_an_interrupted_wait_the_pending_entries_are_read_first():
    """
    The wait may have taken entries that nobody has seen.
    """
    wire, intake = await admitted(XREAD=WireFailed("interrupted"))
    with pytest.raises(WireFailed):
        await intake.wait(10)
    assert intake.astray

    wire.answers["read"] = a_read(entry("6-0", packed("session.get")))
    intake.accept(await intake.wait(10))
    assert wire.sent[-1][-1] == "5-0"  # by id: pending ones; `>` would be new ones
    assert intake.astray

    wire.answers["read"] = a_read()
    intake.accept(await intake.wait(10))
    assert not intake.astray
    assert wire.words().count("XREAD") == 1


async def test_an_entry_that_only_the_wait_sees_wakes_the_lane_once():
    seen = [[ADA, [[b"8-0", []]]]]
    wire, intake = await admitted(XREAD=seen, read=[9000, None])
    intake.accept(await intake.wait(10))
    assert await intake.look_for_others()

    await intake.wait(10)

    assert [c[-1] for c in wire.sent if c[0] == "XREAD"] == ["5-0", "8-0"]


async def test_an_entry_that_only_the_wait_sees_is_looked_for_at_others_first():
    seen = [[ADA, [[b"8-0", []]]]]
    wire, intake = await admitted(XREAD=seen, read=[9000, None])
    intake.others.look_at = math.inf
    intake.accept(await intake.wait(10))

    wire.answers["claim"] = [1, b""]
    with pytest.raises(Disturbed, match="somebody else has read"):
        await intake.look_for_others()

    claim, *_ = [command for command in wire.sent if command[0] == "claim"]
    assert claim[-2:] == ("5-0", "")


async def test_a_read_that_skips_entries_makes_the_lane_look_at_once():
    wire, intake = await admitted(claim=[0, b""])
    intake.others.look_at = math.inf
    intake.accept(a_read(entry("7-0", packed("session.get", 1))))
    assert not await intake.look_for_others()

    after_others = [ADA, [entry("9-0", packed("session.get", 2))], 1]
    intake.accept([9000, [after_others]])

    wire.answers["claim"] = [0, b""] * 2
    assert await intake.look_for_others()
    *_, claim = [command for command in wire.sent if command[0] == "claim"]
    assert claim[-4:] == ("7-0", "9-0", "9-0", "")

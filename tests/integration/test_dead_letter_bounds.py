"""
Dead letters are bounded for each MAD: one's never push another's out.
"""

import pytest

from everbus.bus.wire import Wire
from everbus.gateway.lane.commit import Batch, BatchLimits, dropped_letters
from everbus.gateway.lane.delivery import received_in
from everbus.gateway.store import dead_letters, key_names
from everbus.gateway.store.scripts import load_scripts
from tests.lane_parts import ARRIVED_MS, NOW, OWNER, packed
from tests.servers import valkey

BODY = {"entry": "x" * 4_000}


@pytest.fixture
async def wire(tmp_path):
    async with valkey(tmp_path) as server:
        wire = Wire(server.url)
        await load_scripts(wire)
        await wire.call("SET", key_names.owner(0), OWNER)
        yield wire
        await wire.close()


async def bury(wire, mad, count, *, items=1000, size=8 << 20):
    """
    Commit letters of a MAD one by one; returns how many older ones were dropped.
    """
    dropped = 0
    for n in range(1, count + 1):
        batch = Batch(0, BatchLimits(dead_letters=items, dead_bytes=size), NOW)
        entry = [b"c", packed("timeline.append", n, body=BODY)]
        [one] = received_in(mad, f"{ARRIVED_MS}-{n}", entry, 0, 1)
        batch.bury(one, "forbidden", f"number {n}")
        dropped += dropped_letters(await wire.call(*batch.command(OWNER)))
    return dropped


async def letters(wire, mad):
    found = await dead_letters.page(wire, 0)
    return [one.letter.message for one in found if one.letter.mad == mad]


async def test_a_mads_newest_letters_push_out_its_oldest_and_nobody_elses(wire):
    await bury(wire, "ada", 1)
    dropped = await bury(wire, "evil", 25, items=10)

    assert dropped == 15
    assert await letters(wire, "ada") == ["number 1"]
    assert await letters(wire, "evil") == [f"number {n}" for n in range(16, 26)]


async def test_letters_are_bounded_in_bytes(wire):
    dropped = await bury(wire, "evil", 25, size=40_000)

    left = await letters(wire, "evil")
    assert 5 <= len(left) <= 10
    assert dropped == 25 - len(left)
    assert left[-1] == "number 25"


async def test_a_dropped_letter_makes_room(wire):
    await bury(wire, "evil", 10, items=10)
    for one in await dead_letters.page(wire, 0):
        assert await wire.call(*dead_letters.drop(one.id)) == 1

    dropped = await bury(wire, "evil", 10, items=10)

    assert dropped == 0
    assert int(await wire.call("HGET", key_names.dead_bytes(0), "evil")) > 40_000
    assert await wire.call("ZCARD", key_names.dead_index(0)) == 10


async def test_a_redriven_letter_leaves_the_index(wire):
    await bury(wire, "evil", 1)
    [one] = await dead_letters.page(wire, 0)

    assert await wire.call(*dead_letters.redrive(one.id, b"x")) == 1

    assert await wire.call("ZCARD", key_names.dead_index(0)) == 0
    assert await wire.call("HGET", key_names.dead_bytes(0), "evil") == b"0"

"""
Turns on real servers: killed in the middle, sent again, moved through all tiers.
"""

import asyncio
import random
import signal

import pytest

from everbus.bus import CommittedTurn, connect
from everbus.gateway.store.cold import format
from tests.commit_log import CommitLog
from tests.integration.conftest import PARTITIONS, a_token
from tests.integration.test_verify_command import verified
from tests.processes import PIPE, start_python
from tests.replicas import a_client, a_mad, letters, manager, settled
from tests.servers import inherited
from tests.stack import CHUNK_ENTRIES

ENTRIES = 5
LIVES = 3
# A MAD that takes turns until it is killed, and says each that was committed.
MAD = """
import asyncio, os, sys
from everbus.bus import connect

url, token, session, life = sys.argv[1:]

async def take(mad, k):
    n = 0
    while True:
        entries = [[life, k, n, i] for i in range(5)]
        await mad.turn(session, entries, {"fields": {f"{life}-{k}": n}})
        os.write(1, b"%d %d\\n" % (k, n))
        n += 1

async def main():
    async with connect(url, mad="mortal", token=token) as mad:
        await asyncio.gather(*(take(mad, k) for k in range(4)))

asyncio.run(main())
"""


def check_whole(entries):
    """
    The timeline has turns of ENTRIES entries and nothing else; what each says.
    """
    groups = [entries[n : n + ENTRIES] for n in range(0, len(entries), ENTRIES)]
    for group in groups:
        assert len({(one.author, one.turn) for one in group}) == 1, group
        assert [one.entry[-1] for one in group] == list(range(ENTRIES))
    assert len({group[0].turn for group in groups}) == len(groups)

    return [group[0].entry[:-1] for group in groups]


async def whole(mad, session_id):
    entries, after = [], 0
    while after is not None:
        page = await mad.timeline(session_id, after=after, limit=1000)
        entries, after = entries + list(page.entries), page.next
    return entries


@pytest.mark.asyncio(loop_scope="module")
async def test_a_mad_that_is_killed_in_mid_turn_leaves_whole_turns_alone(bus, manager):
    """
    Also of turns that are on their way: what it said is there, and nothing in part.
    """
    said = []
    async with connect(bus.url, mad="ada", token=a_token("ada")) as ada:
        session = await ada.create_session("ada")
        await ada.update_session(session.id, {"acl": ["mortal"]})
        for life in range(LIVES):
            process = await start_python(
                *("-c", MAD, bus.url, a_token("mortal"), session.id, str(life)),
                env=inherited(),
                stdout=PIPE,
            )
            try:
                async with asyncio.timeout(20):
                    for _ in range(10 + life):
                        k, n = (await process.stdout.readline()).split()
                        said.append([str(life), int(k), int(n)])
            finally:
                process.kill()
                await process.wait()
        async with a_client(bus.url) as client:
            await settled(client)
            log = await CommitLog.read(client, PARTITIONS)
        there = await ada.get_session(session.id)

    log.check()
    found = check_whole(log.entries[session.id])
    assert there.last_seq == ENTRIES * len(found)
    assert all(one in found for one in said)
    assert there.version == 2 + len(found)
    assert there.fields == {f"{life}-{k}": n for life, k, n in found}


@pytest.mark.parametrize("point", ["after_read", "before_commit", "after_commit"])
async def test_turns_are_taken_once_through_killed_replicas(
    server, client, tmp_path, point
):
    """
    Under numbers, and under ids of the caller's that are repeated.
    """
    await client.flushall()
    nth = random.Random(point).randint(4, 12)
    async with (
        manager(tmp_path, server.url, "m0", fail_point=f"{point}:{nth}") as one,
        a_mad(server.url, "ann") as ann,
        a_mad(server.url, "bob") as bob,
    ):
        session = await ann.create_session("ada")
        takers = [
            asyncio.create_task(take(mad, session.id, own, 8))
            for mad in (ann, bob)
            for own in (True, False)
        ]
        assert await one.ended() == -signal.SIGKILL
        async with manager(tmp_path, server.url, "m1"):
            done = await asyncio.gather(*takers)
            await settled(client)

    log = await CommitLog.read(client, 2)
    log.check()
    entries = log.entries[session.id]
    found = check_whole(entries)
    taken = [turn for some in done for turn in some]
    assert len(found) == len(taken) == 32
    # Each reply tells of the turn as it is there.
    by_turn = {one.turn: [] for one in taken}
    for entry in entries:
        by_turn[entry.turn].append(entry.seq)
    assert {one.turn: list(one.seqs) for one in taken} == by_turn
    assert sorted(one.version for one in taken) == list(range(2, 34))
    assert await letters(client, 2) == []


async def take(mad, session_id, own, count):
    """
    Take turns one after another; under ids of its own each twice.
    """
    done = []
    for n in range(count):
        how = {"command_id": f"{mad.name}-{n}"} if own else {}
        entries = [[mad.name, own, n, i] for i in range(ENTRIES)]
        told = [
            await mad.turn(
                session_id, entries, {"fields": {mad.name: n}}, timeout=30, **how
            )
            for _ in range(1 + own)
        ]
        assert told[0] == told[-1]
        assert isinstance(told[0], CommittedTurn)
        done.append(told[0])
    return done


@pytest.mark.asyncio(loop_scope="module")
async def test_turns_are_the_same_in_all_tiers(stack, monkeypatch):
    """
    Hot, warm and cold; `everbus verify` finds nothing, but an entry of another command
    within a turn.
    """
    monkeypatch.setattr(format, "CHUNK_ENTRIES", CHUNK_ENTRIES)
    async with stack.served() as (mad, hands), hands.draining():
        warm, cold = [(await mad.create_session("ada")).id for _ in range(2)]
        for session in (warm, cold):
            for n in range(8):
                entries = [[n, i] for i in range(ENTRIES)]
                await mad.turn(session, entries, {"fields": {"n": n}})
        before = {one: await whole(mad, one) for one in (warm, cold)}
        await mad.suspend_session(cold)
        await stack.until_cold(cold)
        assert (await hands.archive()).archived == 1
        await hands.upkeep.purge()
        await mad.suspend_session(warm)
        await stack.until_cold(warm)
        assert (await verified(stack)).clean
        after = {one: await whole(mad, one) for one in (warm, cold)}
        timeline, at = stack.held["timeline"], {"session": warm, "seq": 7}
        there = await timeline.find_one(at | {"seq": 1})
        await timeline.update_one(at, {"$set": {"command": there["command"]}})
        found = (await verified(stack)).counts

    check_whole(before[warm])
    assert before == after
    assert found == {"doubled": 2}

"""
Commands that cannot be applied: they end in the dead letters, alone.
"""

import asyncio
import signal

import pytest

from everbus.bus import Defect, keys
from everbus.bus.messages import SCHEMA
from everbus.bus.send_queue import ENTRY_COMMANDS
from everbus.gateway.lane import loop
from everbus.gateway.lane.intake import READ_ENTRIES
from everbus.gateway.lane.loop import MAX_ATTEMPTS, MAX_WAITING
from everbus.gateway.store import key_names
from everbus.gateway.store.dead_letters import letter_of
from everbus.handlers.routes import HANDLERS, update_session
from tests.commit_log import CommitLog, groups
from tests.replicas import (
    a_mad,
    letters,
    manager,
    replica_here,
    settled,
    unsettled,
    until,
)

# A manager that a certain entry kills, as a defect in C code would.
KILLABLE = """
import os, signal
import msgspec
from everbus.compose import role_processes
from everbus.handlers.routes import HANDLERS, append_timeline

def killed_by_a_marker(session, command, now):
    if msgspec.msgpack.decode(command.body.entry) == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return append_timeline(session, command, now)

ordinary = HANDLERS["timeline.append"]
routes = {**HANDLERS, "timeline.append": ordinary._replace(handler=killed_by_a_marker)}
parts = role_processes.lane_parts
role_processes.lane_parts = lambda *three, **more: parts(*three, routes, **more)

from everbus.compose.cli import main

main()
"""


def failing(times):
    """
    Routes whose update is defective for patches with the summary `broken`.
    """
    tried = []

    def update(session, command, now):
        if command.body.patch.get("context_summary") == {"broken": True}:
            tried.append(command.id)
            if len(tried) <= times:
                raise ZeroDivisionError("a defect of ours")
        return update_session(session, command, now)

    ordinary = HANDLERS["session.update"]
    return {**HANDLERS, "session.update": ordinary._replace(handler=update)}, tried


async def the_letter(client):
    [fields] = await letters(client, 1)
    return letter_of(fields)


async def test_a_defect_is_tried_five_times_then_buried_and_told(server, client):
    """
    Its requester gets the code `defect`; the letter has all five attempts.
    """
    routes, tried = failing(99)
    async with (
        replica_here(server.url, routes=routes, partitions=1),
        a_mad(server.url) as mad,
    ):
        session = (await mad.create_session("ada")).id

        with pytest.raises(Defect) as told:
            await mad.update_session(session, {"context_summary": {"broken": True}})
        await settled(client)
        after = await mad.get_session(session)

    letter = await the_letter(client)
    assert len(tried) == MAX_ATTEMPTS
    assert letter.cause == "poison"
    assert letter.attempts == ("ZeroDivisionError: a defect of ours",) * 5
    assert letter.envelope.kind == "session.update"
    assert letter.envelope.grant == b""
    assert "given up after 5 attempts" in told.value.message
    assert after.version == 1


async def test_a_defect_that_passes_is_applied_and_leaves_no_letter(server, client):
    routes, tried = failing(2)
    async with (
        replica_here(server.url, routes=routes, partitions=1),
        a_mad(server.url) as mad,
    ):
        session = (await mad.create_session("ada")).id

        after = await mad.update_session(session, {"context_summary": {"broken": True}})

    assert len(tried) == 3
    assert after.version == 2
    assert await letters(client, 1) == []


async def test_only_the_session_of_a_failing_command_waits_and_keeps_its_order(
    server, client
):
    """
    Others of the same lane go on meanwhile; its own later commands come after.
    """
    routes, tried = failing(99)
    async with (
        replica_here(server.url, routes=routes, partitions=1),
        a_mad(server.url) as mad,
    ):
        ill = (await mad.create_session("ada")).id
        well = (await mad.create_session("ada")).id
        mad.append(ill, {"n": 1})
        broken = asyncio.create_task(
            mad.update_session(ill, {"context_summary": {"broken": True}})
        )
        await until(lambda: tried)
        for n in (2, 3, 4):
            mad.append(ill, {"n": n})
        waiting = asyncio.create_task(mad.append_and_wait(ill, {"n": 5}))
        seqs = [await mad.append_and_wait(well, {"n": n}) for n in range(1, 21)]
        held_back = not waiting.done() and not broken.done()

        with pytest.raises(Defect):
            await broken
        last = await waiting
        await settled(client)

    assert held_back
    assert seqs == list(range(1, 21))
    assert last == 5
    log = await CommitLog.read(client, 1)
    log.check()
    assert log.numbers(ill, "fiedler") == [1, 2, 3, 4, 5]
    assert len(await letters(client, 1)) == 1


@pytest.mark.timeout(120)
async def test_a_command_that_kills_its_replica_is_buried_after_five_deaths(
    server, client, tmp_path
):
    """
    The history names every life that it cost; nothing else is lost or buried.
    """
    await client.hset(keys.CONFIG, mapping={"partitions": 1, "schema": SCHEMA})
    async with a_mad(server.url) as mad:
        async with replica_here(server.url, partitions=1):
            ill = (await mad.create_session("ada")).id
            well = (await mad.create_session("ada")).id
        for n in range(1, 6):
            mad.append(well, {"n": n})
            mad.append(ill, "die" if n == 3 else {"n": n})
        await mad.flush()

        deaths = []
        served = []
        while len(deaths) < 2 * MAX_ATTEMPTS:
            life = await one_life(server, client, tmp_path)
            if life is None:
                break
            deaths.append(life)
            served.append((await CommitLog.read(client, 1)).numbers(well, "fiedler"))
            mad.append(well, {"n": 5 + len(deaths)})
            await mad.flush()

    letter = await the_letter(client)
    log = await CommitLog.read(client, 1)
    assert len(deaths) == MAX_ATTEMPTS
    assert letter.cause == "poison"
    assert letter.mad == "fiedler"
    assert letter.attempts == (
        "an owner died with it in a batch",
        *(f"{life}#0 died while trying it alone" for life in deaths[1:]),
    )
    # Once it was tried alone, every life serves the others before it dies.
    assert [numbers[-1] for numbers in served[2:]] == [7, 8, 9]
    log.check()
    assert log.numbers(well, "fiedler") == list(range(1, 11))
    assert log.numbers(ill, "fiedler") == [1, 2, 4, 5]


async def one_life(server, client, folder):
    """
    The incarnation of a manager that died; None if it could settle everything.
    """
    settings = {"partitions": 1, "lane_ttl_ms": 500, "program": KILLABLE}
    async with manager(folder, server.url, "m1", **settings) as part:

        async def over():
            return not part.alive or not await unsettled(client)

        await until(over, 20)
        if part.alive:
            return None
        assert await part.ended() == -signal.SIGKILL
        [taken] = part.records("lane.taken", lane=0)
        return taken["owner"].rpartition("/")[2]


async def test_an_append_that_waits_for_the_archiver_is_blamed_for_no_restart(
    server, client
):
    """
    Its owners end while it waits, but not of it: it must not become poison.
    """
    settings = {"partitions": 1, "outbox_max_records": 1}
    await client.hset(keys.CONFIG, mapping={"partitions": 1, "schema": SCHEMA})
    async with a_mad(server.url) as mad:
        async with replica_here(server.url, **settings) as replica:
            session = (await mad.create_session("ada")).id
            for n in (1, 2, 3):
                mad.append(session, {"n": n})
            # A MAD as young as its bus sends its first commands twice.
            await until(lambda: waiting_in(replica) >= 3)
        for _ in range(3):
            async with replica_here(server.url, **settings) as replica:
                await until(lambda replica=replica: waiting_in(replica) >= 3)

        blamed = await client.hgetall(key_names.attempts(0))
        log = CommitLog()
        async with replica_here(server.url, **settings):
            await until(lambda: drained(client, log))

    await log.take(client, 1)
    assert blamed == {}
    assert log.numbers(session, "fiedler") == [1, 2, 3]
    assert await letters(client, 1) == []


def waiting_in(replica):
    return sum(lane._held.count for lane in replica.lanes.values())


async def drained(client, log):
    """
    Confirms what the outbox holds; whether no ingress has anything left.
    """
    await log.take(client, 1)
    return not await unsettled(client)


async def test_a_lane_stops_reading_before_its_waiting_commands_fill_its_memory(
    server, client, monkeypatch
):
    """
    The rest stays undelivered on the bus, and is applied in order afterwards.
    """
    # One MAD stands for many: the bound of each is in test_bursts.py.
    monkeypatch.setattr(loop, "MAX_WAITING_OF_MAD", MAX_WAITING)
    monkeypatch.setattr(loop, "MAX_WAITING_OF_MAD_BYTES", 2**40)
    count, limit = 15_000, 80
    async with (
        replica_here(
            server.url,
            partitions=1,
            outbox_max_records=limit,
            # It shares its loop with whoever appends without a pause.
            lane_ttl_ms=30_000,
        ) as replica,
        a_mad(server.url) as mad,
    ):
        session = (await mad.create_session("ada")).id
        while int(await client.get(key_names.backlog(0))) < limit:
            await mad.create_session("ada")
        for n in range(1, count + 1):
            mad.append(session, {"n": n})
            if n % 5_000 == 0:
                await mad.flush()
        lane = replica.lanes[0]
        await until(lambda: lane._held.count >= MAX_WAITING and not lane._queue, 60)
        waiting = lane._held.count
        [group] = await groups(client, keys.ingress(0, "fiedler"))

        log = CommitLog()
        await until(lambda: drained(client, log), 60)

    await log.take(client, 1)

    # One read more than the limit, of 256 entries with 32 commands each.
    assert waiting <= MAX_WAITING + READ_ENTRIES * ENTRY_COMMANDS
    assert group["lag"] > 0
    assert log.numbers(session, "fiedler") == list(range(1, count + 1))
    assert await letters(client, 1) == []

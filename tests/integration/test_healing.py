"""
What the bus may lose or break, and how replicas come to serve again: loudly.
"""

import asyncio
import time
from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from everbus.bus import NotFound, Overloaded, Unavailable, keys
from everbus.bus.messages import SCHEMA, pack, pack_envelope
from everbus.gateway.lane.intake import CONSUMER
from everbus.gateway.store import key_names
from everbus.gateway.store.dead_letters import letter_of
from everbus.gateway.telemetry import metrics
from tests.builders import an_envelope
from tests.closed_load import ClosedLoad
from tests.commit_log import CommitLog
from tests.proxy import Proxy
from tests.replicas import (
    a_client,
    a_mad,
    letters,
    manager,
    replica_here,
    settled,
    unsettled,
    until,
)
from tests.servers import valkey

PARTITIONS = 2


async def sessions_of(mad, count=4):
    return [(await mad.create_session("ada")).id for _ in range(count)]


def events(logs, event, **fields):
    wanted = {"event": event, **fields}.items()
    return [record for record in logs if wanted <= record.items()]


async def keep_trying(mad, within_s=15.0):
    """
    Create a session, as often as it takes; how long it took in seconds.
    """
    begun = time.monotonic()
    while time.monotonic() - begun < within_s:
        try:
            await mad.create_session("ada", timeout=1.0)
        except Unavailable:
            continue
        return time.monotonic() - begun
    raise AssertionError(f"not served within {within_s} s")


async def test_a_flush_of_everything_heals_loudly(server, client, tmp_path):
    """
    MADs that were connected are served again, and so are those that come.

    What was lost is lost, but nobody can overlook it.
    """
    async with (
        manager(tmp_path, server.url, "m1") as part,
        a_mad(server.url, "ann") as ann,
    ):
        sessions = await sessions_of(ann)
        for n in range(200):
            ann.append(sessions[n % 4], {"n": n})
        await client.flushall()

        took_s = await keep_trying(ann)
        async with a_mad(server.url, "bob") as bob:
            fresh = await bob.create_session("ada")
        with pytest.raises(NotFound):
            await ann.get_session(sessions[0])

    assert took_s < 6.0
    assert fresh.version == 1
    assert part.records("bus.emptied", level="error")
    assert await client.hget(keys.CONFIG, "partitions") == b"2"


async def test_a_destroyed_group_is_made_again_where_it_was(server, client, tmp_path):
    """
    From the checkpoint: nothing before it is read again, nothing behind is lost.
    """
    async with (
        manager(tmp_path, server.url, "m1") as part,
        a_mad(server.url, "ann") as ann,
        a_mad(server.url, "bob") as bob,
    ):
        load = ClosedLoad([ann, bob], await sessions_of(ann))
        async with load.running():
            await load.more(20)
            points = [key_names.trim_points(p) for p in range(PARTITIONS)]
            await until(lambda: client.exists(*points))
            for p in range(PARTITIONS):
                for mad in ("ann", "bob"):
                    await client.xgroup_destroy(keys.ingress(p, mad), keys.GROUP)
            await load.more(20)
            load.stop()
            await settled(client)

    assert part.records("lane.disturbed", cause="nogroup", level="error")
    assert part.records("group.created")
    load.check(await CommitLog.read(client, PARTITIONS))
    assert await letters(client, PARTITIONS) == []


async def test_forgotten_scripts_are_loaded_again(server, client, tmp_path):
    async with (
        manager(tmp_path, server.url, "m1"),
        a_mad(server.url, "ann") as ann,
    ):
        load = ClosedLoad([ann], await sessions_of(ann))
        async with load.running():
            for _ in range(3):
                await load.more(10)
                await client.script_flush()
            await load.more(10)
            load.stop()
            await settled(client)

    load.check(await CommitLog.read(client, PARTITIONS))
    assert await letters(client, PARTITIONS) == []


async def test_an_entry_that_was_trimmed_while_pending_is_told_as_lost(server, client):
    """
    A lost command is a dead letter and a metric, never silence.
    """
    stream = keys.ingress(0, "ann")
    await client.hset(keys.CONFIG, mapping={"partitions": 1, "schema": SCHEMA})
    await client.hset(keys.MADS, "ann", "{}")
    await client.xgroup_create(stream, keys.GROUP, "0", mkstream=True)
    envelope = an_envelope("timeline.append", id="i.0.1")
    lost = await client.xadd(stream, {"c": pack_envelope(envelope)})
    await client.xreadgroup(keys.GROUP, CONSUMER, {stream: ">"})
    await client.xtrim(stream, maxlen=0, approximate=False)
    before = metrics.TRIMMED._value.get()

    with capture_logs() as logs:
        async with replica_here(server.url, partitions=1), a_mad(server.url, "ann"):
            [fields] = await until(lambda: letters(client, 1))
            await settled(client)

    letter = letter_of(fields)
    assert letter.cause == "trimmed"
    assert (letter.mad, letter.entry) == ("ann", lost.decode())
    assert metrics.TRIMMED._value.get() == before + 1
    assert events(logs, "entry.trimmed", log_level="error", entry=lost.decode())


async def test_a_hot_session_changed_by_hand_is_noticed_and_not_overwritten(
    server, client
):
    with capture_logs() as logs:
        async with (
            replica_here(server.url, partitions=1),
            a_mad(server.url) as mad,
        ):
            session = (await mad.create_session("ada")).id
            await client.hset(key_names.session(0, session), "version", 41)

            after = await mad.update_session(session, {"context_summary": {"a": 1}})

    assert after.version == 42
    assert events(logs, "lane.disturbed", cause="stale")


CREATED = pack(datetime(2026, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("field", "value"), [("last_seq", 7), ("notices", 3), ("created_at", CREATED)]
)
async def test_whatever_went_back_or_forth_in_a_hot_session_is_noticed(
    server, client, field, value
):
    """
    An append moves no version: a commit that compared nothing else would fork it.
    """
    with capture_logs() as logs:
        async with (
            replica_here(server.url, partitions=1),
            a_mad(server.url) as mad,
        ):
            session = (await mad.create_session("ada")).id
            await client.hset(key_names.session(0, session), field, value)

            seq = await mad.append_and_wait(session, {"n": 1})

    assert seq == (8 if field == "last_seq" else 1)
    assert events(logs, "lane.disturbed", cause="stale")


async def test_a_publishers_record_that_changed_is_noticed(server, client):
    with capture_logs() as logs:
        async with (
            replica_here(server.url, partitions=1),
            a_mad(server.url) as mad,
        ):
            session = (await mad.create_session("ada")).id
            [publisher] = await client.hkeys(key_names.publishers(0))
            await client.hset(key_names.publishers(0), publisher, "1,7")

            assert await mad.append_and_wait(session, {"n": 1}) == 1

    assert events(logs, "lane.disturbed", cause="stale")


async def test_a_hot_session_deleted_by_hand_is_noticed_and_not_made_again(
    server, client
):
    with capture_logs() as logs:
        async with (
            replica_here(server.url, partitions=1),
            a_mad(server.url) as mad,
        ):
            session = (await mad.create_session("ada")).id
            await client.delete(key_names.session(0, session))

            with pytest.raises(NotFound):
                await mad.update_session(session, {"context_summary": {"a": 1}})

    assert events(logs, "lane.disturbed", cause="stale")
    assert not await client.exists(key_names.session(0, session))


@pytest.mark.parametrize("fault", ["killed", "stopped"])
async def test_what_was_acknowledged_survives_the_server(fault, tmp_path):
    """
    Killed or stopped and started again with its AOF, twice, under load.
    """
    async with (
        valkey(tmp_path) as server,
        manager(tmp_path, server.url, "m1"),
        a_mad(server.url, "ann") as ann,
        a_mad(server.url, "bob") as bob,
    ):
        load = ClosedLoad([ann, bob], await sessions_of(ann))
        async with load.running():
            for _ in range(2):
                await load.more(20)
                if fault == "killed":
                    await server.kill()
                await server.restart()
            await load.more(20)
            load.stop()
            async with a_client(server.url) as client:
                await settled(client)
        async with a_client(server.url) as client:
            log = await CommitLog.read(client, PARTITIONS)
            buried = await letters(client, PARTITIONS)

    load.check(log)
    assert buried == []


async def test_a_replica_whose_connections_are_black_holes_serves_again(
    server, client, tmp_path
):
    """
    Connected but deaf: it notices by itself, and is back within seconds.
    """
    async with (
        Proxy("127.0.0.1", server.port) as proxy,
        manager(tmp_path, proxy.url(), "m1") as part,
        a_mad(server.url, "ann") as ann,
    ):
        session = (await ann.create_session("ada")).id
        proxy.black_hole()
        waiting = asyncio.create_task(
            ann.append_and_wait(session, {"n": 1}, timeout=30)
        )
        for lane in range(PARTITIONS):
            await part.logged("lane.disturbed", lane=lane)
        dropped = proxy.dropped_bytes

        proxy.heal()
        begun = time.monotonic()
        assert await waiting == 1
        took_s = time.monotonic() - begun

    assert dropped > 0
    assert took_s < 8.0
    (await CommitLog.read(client, PARTITIONS)).check()


async def test_at_the_outbox_limit_requests_are_refused_and_appends_wait(
    server, client
):
    """
    A request hears `overloaded`; an append, of which nobody would hear, is held
    in order and applied once the archiver has caught up.
    """
    limit = 5
    async with (
        replica_here(server.url, partitions=1, outbox_max_records=limit),
        a_mad(server.url) as mad,
    ):
        sessions = await sessions_of(mad, limit)
        for n in range(1, 51):
            for session in sessions[:2]:
                mad.append(session, {"n": n})
        with pytest.raises(Overloaded):
            await mad.update_session(sessions[3], {"context_summary": {"a": 1}})
        read = await mad.get_session(sessions[3])
        # A commit that adds nothing to the outbox must not hide that it is full.
        with pytest.raises(Overloaded):
            await mad.update_session(sessions[3], {"context_summary": {"a": 2}})
        held = await unsettled(client)
        at_the_limit = int(await client.get(key_names.backlog(0)))

        log = CommitLog()

        async def drained():
            await log.take(client, 1)
            return not await unsettled(client)

        await until(drained, 15)
        await log.take(client, 1)
        after = await mad.update_session(sessions[3], {"context_summary": {"a": 1}})
        await log.take(client, 1)

    assert read.version == 1
    assert at_the_limit == limit
    assert held
    log.check()
    for session in sessions[:2]:
        assert log.numbers(session, "fiedler") == list(range(1, 51))
    assert after.version == 2
    assert int(await client.get(key_names.backlog(0))) == 0
    assert await letters(client, 1) == []


@pytest.mark.timeout(90)
async def test_memory_stays_flat_however_long_the_conversations_go_on(server, client):
    """
    20,000 appends to 20 sessions: nothing but the outbox grows with them.
    """
    sizes = []
    async with replica_here(server.url), a_mad(server.url) as mad:
        sessions = await sessions_of(mad, 20)
        log = CommitLog()
        for n in range(1, 20_001):
            mad.append(sessions[n % 20], {"n": n, "text": "a line of talk " * 4})
            if n % 1000 == 0:
                await mad.flush()
                await settled(client)
                await log.take(client, PARTITIONS)
            if n in (10_000, 20_000):
                await until(lambda: trimmed(client), 10, "ingress trimmed")
                sizes.append(await bytes_by_key(client))

    early, late = (sum(size.values()) for size in sizes)
    assert late < early * 1.1, sizes
    assert late < 1_000_000, sizes
    assert sum(len(entries) for entries in log.entries.values()) == 20_000
    publishers = [
        await client.hgetall(key_names.publishers(p)) for p in range(PARTITIONS)
    ]
    assert [len(known) for known in publishers] == [1, 1]
    assert all(len(v) < 64 for known in publishers for v in known.values())


async def trimmed(client):
    """
    Whether every ingress is as short as trimming by whole nodes can make it.
    """
    streams = [key async for key in client.scan_iter("eb:{*}:in:*")]
    return max([await size_of(client, stream) for stream in streams]) < 8 * 1024


async def bytes_by_key(client):
    """
    What each key takes, but for the outboxes and what has a TTL.
    """
    found = {}
    async for key in client.scan_iter(count=1000):
        if b":outbox" in key or await client.ttl(key) >= 0:
            continue
        found[key] = await size_of(client, key)
    return found


async def size_of(client, key):
    """
    Bytes that *key* takes, 0 if it has ended meanwhile.
    """
    return await client.memory_usage(key, samples=0) or 0

"""
Bursts to sessions that wait: nothing is forgotten, and other MADs go on.

The tiers are a stand-in that the test holds in its hands; MongoDB being slow or away
is a gate that is closed.
"""

import asyncio

import pytest

from everbus.gateway.lane import loop
from everbus.gateway.lane.sequence import MAX_RUNS, ProducerWindow
from everbus.gateway.store import key_names
from tests.commit_log import CommitLog
from tests.integration.test_below import HeldTiers, serving
from tests.replicas import a_client, a_mad, replica_here, settled, until
from tests.servers import valkey


@pytest.fixture
async def server(tmp_path):
    async with valkey(tmp_path) as real:
        yield real


@pytest.fixture
def tiers():
    """
    A session `resting` that cannot be had for now; its gate lets it go.
    """
    held = HeldTiers()
    held.hold("resting", version=1, last_seq=0)
    held.gates["resting"] = asyncio.Event()

    return held


async def waiting(client, count):
    """
    Return when *count* commands of *mad* are open below the mark on the bus.
    """

    async def so_many():
        records = await client.hvals(key_names.publishers(0))
        windows = map(ProducerWindow.parse, records)
        return any(
            sum(last - first + 1 for first, last in one.runs) >= count
            for one in windows
        )

    await until(so_many, what=f"{count} numbers are open")


async def test_a_burst_to_a_session_that_is_not_hot_is_not_forgotten(server, tiers):
    """
    In its midst, a hot session of the same MAD gets entries, which settle.
    """
    async with serving(server, tiers) as (_, mad, client):
        hot = (await mad.create_session("ada")).id
        burst = []
        for n in range(1500):
            burst.append(mad.append("resting", {"n": n}))
            if n % 100 == 99:
                mad.append(hot, {"n": n})
        await mad.flush()
        await waiting(client, 1500)
        states = [(await mad.outcome(burst[n])).state for n in (0, 700, 1499)]
        tiers.gates["resting"].set()
        await settled(client)

        # The tail in the hot copy; the whole is in the outbox.
        log = await commits(client)
        assert log.numbers("resting", "fiedler") == [*range(1500)]
        assert log.numbers(hot, "fiedler") == [*range(99, 1500, 100)]
        assert (await mad.outcome(burst[0])).state == "applied"
    assert states == ["pending", "pending", "pending"]


async def commits(client):
    log = await CommitLog.read(client, 1)
    log.check()
    return log


@pytest.fixture
def roomy(monkeypatch):
    """
    As much of one MAD may wait as fills its window.
    """
    monkeypatch.setattr(loop, "MAX_WAITING_OF_MAD", 2 * MAX_RUNS)


@pytest.mark.usefixtures("roomy")
async def test_a_producer_with_a_full_window_waits_and_another_goes_on(server, tiers):
    """
    Each second command settles, so that each of the others is a run of its own.
    """
    count = MAX_RUNS + 200
    async with (
        serving(server, tiers) as (_, mad, client),
        a_mad(server.url, "other") as other,
    ):
        hot = (await mad.create_session("ada")).id
        for n in range(count):
            mad.append("resting", {"n": n})
            mad.append(hot, {"n": n})
        await mad.flush()
        await waiting(client, MAX_RUNS)
        seq = await other.append_and_wait(hot, {"n": 0})
        window = await window_of(client, "fiedler")
        tiers.gates["resting"].set()
        await settled(client)
        log = await commits(client)

    assert seq < count
    assert len(window.runs) == MAX_RUNS
    assert log.numbers("resting", "fiedler") == [*range(count)]
    assert log.numbers(hot, "fiedler") == [*range(count)]


async def window_of(client, mad):
    records = await client.hgetall(key_names.publishers(0))
    [packed] = [v for k, v in records.items() if k.startswith(f"{mad}:".encode())]

    return ProducerWindow.parse(packed)


async def test_too_much_of_one_mad_pauses_its_ingress_alone(server, tiers, monkeypatch):
    monkeypatch.setattr(loop, "MAX_WAITING_OF_MAD", 100)
    async with (
        serving(server, tiers) as (replica, mad, client),
        a_mad(server.url, "other") as other,
    ):
        hot = (await mad.create_session("ada")).id
        for n in range(5000):
            mad.append("resting", {"n": n})
        await mad.flush()
        lane = replica.lanes[0]
        await until(lambda: "fiedler" in lane._intake.paused)
        seqs = [await other.append_and_wait(hot, {"n": n}) for n in range(3)]
        read = lane._held.count
        tiers.gates["resting"].set()
        await settled(client)
        log = await commits(client)

    assert seqs == [1, 2, 3]
    # What one read brings comes on top.
    assert read < 5000
    assert log.numbers("resting", "fiedler") == [*range(5000)]


async def test_a_takeover_in_the_midst_of_a_burst_forgets_nothing(server, tiers):
    async with serving(server, tiers) as (_, mad, client):
        hot = (await mad.create_session("ada")).id
        for n in range(1200):
            mad.append("resting", {"n": n})
            if n % 50 == 49:
                mad.append(hot, {"n": n})
        await mad.flush()
        await waiting(client, 1200)
        async with replica_here(server.url, tiers=tiers, partitions=1, name="heir"):
            await until(lambda: len(tiers.loads) > 1, what="the heir asks")
            for n in range(1200, 1300):
                mad.append("resting", {"n": n})
            tiers.gates["resting"].set()
            await settled(client)
            log = await commits(client)

    assert log.numbers("resting", "fiedler") == [*range(1300)]


async def test_reads_that_pass_appends_held_by_a_full_outbox_lose_none(server):
    async with (
        replica_here(server.url, partitions=1, outbox_max_records=3),
        a_mad(server.url) as mad,
        a_client(server.url) as client,
    ):
        session, other = [(await mad.create_session("ada")).id for _ in range(2)]
        await client.set(key_names.backlog(0), 10)
        for n in range(1200):
            mad.append(session, {"n": n})
            if n % 200 == 199:
                await mad.get_session(other)
        await waiting(client, 1000)
        await client.set(key_names.backlog(0), -10_000)
        await settled(client)
        log = await commits(client)

    assert log.numbers(session, "fiedler") == [*range(1200)]

"""
`everbus bench` as a user starts it: it ends well through kills, finds what somebody
tampers with, and leaves nothing behind.
"""

import asyncio
import json
import signal
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from everbus.bus.keys import partition_of
from everbus.compose.bench import checking
from everbus.compose.bench.plan import MIXES, BenchPlan, Workload
from everbus.compose.bench.run import BenchIdentity, opened
from everbus.gateway.store import key_names
from tests.commandline import CommandLine
from tests.replicas import SECRET, a_client, a_mad, a_token, replica_here
from tests.servers import valkey

PARTITIONS = 2
TINY = BenchPlan(
    mix=dict(MIXES[Workload.mix]),
    seconds=5,
    warm_up_s=0,
    mads=2,
    sessions=3,
    in_flight=8,
    limit=150,
)


@pytest.fixture(autouse=True)
def impatience(monkeypatch):
    """
    There is no MongoDB here, however long one waits for it.
    """
    monkeypatch.setattr(checking, "PAGE_PATIENCE_S", 0.0)


class ProcessOfItsOwn(CommandLine):
    """
    Starts `everbus bench` with these settings.
    """

    def __init__(self, **settings):
        self._env = settings


@asynccontextmanager
async def a_run(folder, *arguments, **settings):
    """
    The command in a process of its own; ended in order if it still runs.
    """
    everbus = ProcessOfItsOwn(TMPDIR=str(folder), **settings)
    process = await everbus.start("bench", "--json", *arguments)
    async with AsyncExitStack() as ending:
        ending.push_async_callback(ended, process)
        yield process


async def ended(process):
    if process.returncode is None:
        process.terminate()
        await process.communicate()


async def told_by(process):
    """
    Its exit code, its report and its talk.
    """
    said, talk = await process.communicate()
    assert b"Traceback" not in talk, talk.decode()
    return process.returncode, json.loads(said) if said else None, talk.decode()


async def test_replicas_are_killed_under_load_and_nothing_is_lost(tmp_path):
    page = tmp_path / "bench.html"
    arguments = ("--own-stack", "--replicas", "2", "--kill-every", "0.8")
    load = ("--seconds", "2", "--warm-up", "0", "--sessions", "20", "--rate", "200")

    async with a_run(
        tmp_path, *arguments, *load, "--html", str(page), EVERBUS_LANE_TTL_MS="1000"
    ) as process:
        code, report, talk = await told_by(process)

    assert code == 0, (report, talk)
    assert report["verdict"] == "verdict: clean"
    assert any(kill["bit"] for kill in report["kills"])
    assert report["checked"]["by"] == "outboxes"
    assert report["checked"]["acknowledged"] > 100
    assert {row["call"] for row in report["rows"]} == set(MIXES[Workload.mix])
    assert page.read_text().count('class="kill"') == 2 * len(report["kills"])
    assert list(tmp_path.glob("everbus-bench-*")) == []


async def test_ctrl_c_ends_the_load_and_what_was_sent_is_checked(tmp_path):
    async with a_run(
        tmp_path, "--own-stack", "--replicas", "1", "--seconds", "60"
    ) as process:
        # The stack's folder tells that it runs, and its log that it serves.
        async with asyncio.timeout(20):
            while not list(tmp_path.glob("everbus-bench-*/env")):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)
        process.send_signal(signal.SIGINT)
        code, report, talk = await told_by(process)

    assert code == 130, talk
    # Right at the begin, nothing was there to be checked yet.
    assert report is None or report["ended"] == "interrupted"
    assert report is None or report["clean"]
    assert list(tmp_path.glob("everbus-bench-*")) == []


@asynccontextmanager
async def a_loaded_bench(folder, plan=TINY):
    """
    A bench that has sent its load, and may be tampered with before it is checked.
    """
    identities = [
        BenchIdentity(f"bench-{n}", a_token(f"bench-{n}", "mad"))
        for n in range(plan.mads)
    ]
    async with (
        valkey(folder) as server,
        a_client(server.url) as client,
        replica_here(server.url, partitions=PARTITIONS),
        opened(plan, server.url, identities) as bench,
    ):
        await bench.create(lambda _: None)
        await bench.run_load()
        await bench.settle()
        yield bench, client, server.url


def outbox_of(bench, number=0):
    return key_names.outbox(partition_of(bench.expectations[number].id, PARTITIONS))


async def nothing(bench, client, url):
    pass


async def lose_a_commit(bench, client, url):
    entries = await client.xrange(outbox_of(bench))
    await client.xdel(outbox_of(bench), entries[-1][0])


async def repeat_a_commit(bench, client, url):
    entries = await client.xrange(outbox_of(bench))
    await client.xadd(outbox_of(bench), entries[-1][1])


async def swap_commits(bench, client, url):
    for number in range(len(bench.expectations)):
        entries = await client.xrange(outbox_of(bench, number))
        await client.delete(outbox_of(bench, number))
        for _, fields in reversed(entries):
            await client.xadd(outbox_of(bench, number), fields)


async def change_a_session(bench, client, url):
    async with a_mad(url, "stranger") as mad:
        await mad.update_session(bench.expectations[0].id, {"tags": ["x"]})


async def say_something(bench, client, url):
    async with a_mad(url, "stranger") as mad:
        await mad.append_and_wait(bench.expectations[0].id, {"text": "hello"})


@pytest.mark.parametrize(
    ("tamper", "by_outboxes", "found"),
    [
        (nothing, True, set()),
        (nothing, False, set()),
        (lose_a_commit, True, {"lost"}),
        (repeat_a_commit, True, {"doubled"}),
        (swap_commits, True, {"out_of_order"}),
        (change_a_session, True, {"foreign"}),
        (change_a_session, False, {"doubled"}),
        (say_something, True, {"foreign"}),
        # By its length, if it is too long to be read without MongoDB.
        (say_something, False, {"foreign", "doubled"}),
    ],
)
async def test_what_is_tampered_with_is_found(tmp_path, tamper, by_outboxes, found):
    """
    The positive control: the check looks at what is there, not at what it hopes for.
    """
    async with a_loaded_bench(tmp_path) as (bench, client, url):
        await tamper(bench, client, url)
        await bench.check(lambda _: None, url if by_outboxes else "")

    counts = set(bench.violations.counts)
    assert bool(found & counts) is bool(found), bench.violations.first
    assert bench.violations.clean is (not found), bench.violations.first


async def test_a_timeline_beyond_what_redis_holds_is_checked_by_its_length(tmp_path):
    """
    Without MongoDB nobody can read it back; that is told, and one entry more is found.
    """
    plan = BenchPlan(
        **{name: getattr(TINY, name) for name in TINY.__struct_fields__}
        | {"mix": {"append": 1}, "sessions": 1}
    )
    async with a_loaded_bench(tmp_path, plan) as (bench, client, url):
        seen = await bench.check(lambda _: None)
        clean = bench.violations.clean
        await say_something(bench, client, url)
        await bench.check(lambda _: None)

    assert clean
    assert dict(bench.violations.counts) == {"doubled": 1}
    assert (seen.whole, seen.measured) == (0, 1)
    assert "EVERBUS_MONGO_URL" in seen.why_not


async def test_a_bench_on_a_bus_finds_a_stranger_and_ends_with_1(tmp_path):
    async with (
        valkey(tmp_path) as server,
        a_client(server.url) as client,
        replica_here(server.url, partitions=PARTITIONS),
        a_mad(server.url, "stranger") as stranger,
        a_run(
            tmp_path,
            *("--seconds", "2", "--warm-up", "0", "--sessions", "1", "--rate", "50"),
            *("--work", "updates", "--bytes", "10"),
            EVERBUS_REDIS_URL=server.url,
            EVERBUS_JWT_SECRET=SECRET,
        ) as process,
    ):
        session = await the_session(client)
        await stranger.update_session(session, {"tags": ["not from the bench"]})
        code, report, talk = await told_by(process)
        there = await client.exists(key_names.session(partition(session), session))

    assert code == 1, talk
    assert report["verdict"] == "verdict: NOT clean: 1 doubled"
    assert report["first"][0]["session"] == session
    # It is evidence.
    assert there
    assert session in talk


async def test_a_clean_bench_on_a_bus_leaves_no_session_behind(tmp_path):
    async with (
        valkey(tmp_path) as server,
        a_client(server.url) as client,
        replica_here(server.url, partitions=PARTITIONS),
        a_run(
            tmp_path,
            *("--seconds", "0.5", "--warm-up", "0", "--sessions", "2", "--expect"),
            *("--mix", "update=1,append=1", "--rate", "40"),
            EVERBUS_REDIS_URL=server.url,
            EVERBUS_JWT_SECRET=SECRET,
        ) as process,
    ):
        code, report, talk = await told_by(process)
        left = [key async for key in client.scan_iter("eb:{*}:session:*")]

    assert (code, talk) == (0, "")
    assert report["plan"]["expect"] is True
    assert left == []


async def the_session(client):
    """
    The one session on the bus, as soon as two of its updates are there.
    """
    async with asyncio.timeout(20):
        while True:
            async for key in client.scan_iter("eb:{*}:session:*"):
                session = key.decode().rpartition(":")[2]
                if await client.xlen(key_names.outbox(partition(session))) > 5:
                    return session
            await asyncio.sleep(0.02)


def partition(session):
    return partition_of(session, PARTITIONS)

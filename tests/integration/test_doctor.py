"""
`everbus doctor` on a real stack: all well, then one thing broken at a time.
"""

from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import msgspec
import pytest
import pytest_asyncio

from everbus.bus import keys
from everbus.bus.messages import pack
from everbus.bus.wire import Wire
from everbus.compose.doctor_command import diagnose
from everbus.compose.exit_codes import FINDING, UNREACHABLE
from everbus.compose.settings import load_settings
from everbus.compose.settings_checks import CHECKS
from everbus.compose.stack_folder import free_port
from everbus.gateway.health.indicators import INDICATORS
from everbus.gateway.health.readings import read_bus
from everbus.gateway.health.status import STALE_MS, STATUS, Status, statuses_in
from everbus.gateway.health.verdicts import Examiner
from everbus.gateway.store import key_names
from tests.processes import PIPE, start_python
from tests.replicas import (
    a_client,
    a_mad,
    archiver,
    manager,
    settings_of,
    until,
)
from tests.servers import inherited, secantus, valkey

pytestmark = pytest.mark.asyncio(loop_scope="module")

PARTITIONS = 2
# How fast the machine is where the tests run is no matter of theirs.
TIMED = frozenset({"commit_p99", "reply_wait"})


class Whole:
    """
    A stack in which all is well, and what doctor says of it.
    """

    def __init__(self, url, mongo_url, client):
        self.url = url
        self.client = client
        # Keys of grants: a shared secret would be a warning.
        self.settings = settings_of(url, mongo_url=mongo_url, grant_shared="false")

    async def turned(self, **changed):
        """
        Indicator → its verdict, of those that do not pass.
        """
        given = self.settings | {f"EVERBUS_{k.upper()}": v for k, v in changed.items()}
        found = (await diagnose(load_settings(given))).findings
        return {
            one.name: one.verdict
            for one in found
            if one.verdict != "pass" and one.name not in TIMED
        }

    async def tell(self, status):
        await self.client.hset(STATUS, f"{status.role}:{status.name}", pack(status))

    async def now_ms(self):
        seconds, micros = await self.client.time()
        return seconds * 1000 + micros // 1000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doctor")
    async with (
        AsyncExitStack() as stack,
        valkey(folder) as bus,
        secantus(folder) as mongo,
        a_client(bus.url) as client,
    ):
        await client.config_set("appendfsync", "always")
        # The first starts are no crashes and no news.
        made = Whole(bus.url, mongo.url, client)
        for start, name in ((manager, "m1"), (manager, "m2"), (archiver, "a1")):
            part = await stack.enter_async_context(
                start(folder, bus.url, name, mongo_url=mongo.url)
            )
            await part.logged(f"{start.__name__}.ready")
        async with a_mad(bus.url) as mad:
            session = await mad.create_session("ada")
            await mad.append_and_wait(session.id, {"role": "user", "text": "hi"})
            await mad.durable(session.id, wait=True)

        async def all_well():
            return await made.turned() == {}

        await until(all_well)
        yield made


@asynccontextmanager
async def changed(client, setting, value):
    """
    The server with another setting, for a while.
    """
    before = (await client.config_get(setting))[setting]
    await client.config_set(setting, value)
    try:
        yield
    finally:
        await client.config_set(setting, before)


async def run(settings, *arguments):
    """
    Exit code, stdout and stderr of `everbus doctor` on a terminal of 80 columns.
    """
    process = await start_python(
        *("-m", "everbus", "doctor", *arguments),
        env={**inherited(), **settings, "COLUMNS": "80"},
        stdout=PIPE,
        stderr=PIPE,
    )
    told, talk = await process.communicate()
    return process.returncode, told.decode(), talk.decode()


async def test_all_is_well_on_a_healthy_stack(whole):
    code, told, talk = await run(whole.settings, "-o", "json")

    found = msgspec.json.decode(told)
    turned = {f["name"] for f in found["findings"] if f["verdict"] != "pass"}
    assert turned <= TIMED
    assert (code, talk) == (FINDING if turned else 0, "")
    assert sum(found["verdicts"].values()) == len(INDICATORS) + len(CHECKS)
    values = {one["name"]: one["value"] for one in found["findings"]}
    assert values["managers"] == 2
    assert values["outbox_age"] == 0


async def test_people_read_it_at_eighty_columns_with_the_remedy(whole):
    async with changed(whole.client, "maxmemory-policy", "allkeys-lru"):
        code, told, _ = await run(whole.settings)

    assert code == FINDING
    assert max(map(len, told.splitlines())) <= 80
    assert "→ CONFIG SET maxmemory-policy noeviction" in told
    assert told.startswith("bus: 1 fail, ")
    assert f" of {len(INDICATORS) + len(CHECKS)} need" in told.splitlines()[-1]
    assert " attention: eviction_policy" in told.splitlines()[-1]


async def test_ci_gets_what_people_read(whole, tmp_path):
    file = tmp_path / "doctor.xml"
    async with changed(whole.client, "maxmemory-policy", "allkeys-lru"):
        code, told, _ = await run(whole.settings, "--junit", str(file))

    assert code == FINDING
    assert told.startswith("bus: 1 fail, ")
    report = file.read_text()
    assert report.count("<testcase ") == len(INDICATORS) + len(CHECKS)
    assert "<failure " in report
    assert "→ CONFIG SET maxmemory-policy noeviction" in report


@pytest.mark.parametrize(
    ("setting", "value", "indicator", "verdict"),
    [
        ("maxmemory-policy", "allkeys-lru", "eviction_policy", "fail"),
        ("appendonly", "no", "persistence", "fail"),
        ("appendfsync", "everysec", "fsync", "warn"),
        ("notify-keyspace-events", "", "notifications", "warn"),
        ("maxmemory", "3mb", "bus_memory", None),
    ],
)
async def test_a_setting_of_the_server_turns_its_indicator(
    whole, setting, value, indicator, verdict
):
    async with changed(whole.client, setting, value):
        found = await whole.turned()

    assert set(found) == {indicator}
    assert verdict in (None, found[indicator])


async def test_a_dead_letter_waits_for_somebody(whole):
    await whole.client.hset(keys.MADS, "mad", "{}")
    await whole.client.publish(keys.NEWS, "mads")
    stream = keys.ingress(0, "mad")

    await whole.client.xadd(stream, {"c": b"no command"})

    await until(lambda: whole.client.xlen(key_names.dead(0)))
    assert await whole.turned() == {"dead_letters": "warn"}
    await whole.client.delete(key_names.dead(0))


async def test_where_config_is_forbidden_that_is_told_and_nothing_else(whole):
    await whole.client.acl_setuser(
        "plain",
        enabled=True,
        passwords=["+x"],
        commands=["+@all", "-config"],
        keys=["*"],
        channels=["*"],
    )
    url = whole.url.replace("redis://", "redis://plain:x@")

    assert await whole.turned(redis_url=url) == {"bus_config": "warn"}

    await whole.client.acl_deluser("plain")


@pytest.mark.parametrize(
    ("told", "indicator", "verdict"),
    [
        ({"skew_ms": 7_000}, "clock_skew", "fail"),
        ({"recent": {"superseded": 1}}, "superseded", "warn"),
        ({"recent": {"failures.replica_crashed": 1}}, "replica_crashes", "warn"),
        ({"recent": {"failures.hot_tier_went_back": 1}}, "lost_writes", "warn"),
        ({"recent": {"doubtful": 2}}, "doubtful", "warn"),
        ({"totals": {"failures.diverged_records": 1}}, "diverged", "fail"),
        ({"gauges": {"breaker.cold": 2}}, "cold_tier", "fail"),
        ({"totals": {"failures.lost_entries": 1}}, "lost_entries", "fail"),
    ],
)
async def test_what_a_process_tells_of_itself_turns_its_indicator(
    whole, told, indicator, verdict
):
    now_ms = await whole.now_ms()
    await whole.tell(
        Status(role="manager", name="m3", at_ms=now_ms, started_ms=0, **told)
    )

    found = await whole.turned()

    await whole.client.hdel(STATUS, "manager:m3")
    assert found == {indicator: verdict}


async def test_a_process_that_fell_silent_is_told_and_counts_no_more(whole):
    silent_ms = await whole.now_ms() - STALE_MS - 1000
    await whole.tell(
        Status(
            role="archiver",
            name="gone",
            at_ms=silent_ms,
            started_ms=0,
            gauges={"breaker.warm": 2},
        )
    )

    found = await whole.turned()

    await whole.client.hdel(STATUS, "archiver:gone")
    assert found == {"silent_processes": "warn"}


@pytest.mark.parametrize(
    ("setting", "value", "name"),
    [
        ("mongo_url", "mongodb://127.0.0.1:{port}/?directConnection=true", "mongodb"),
        ("s3_endpoint", "http://127.0.0.1:{port}", "s3"),
        ("jwt_secret", "short", "tokens"),
    ],
)
async def test_what_is_set_here_is_checked_from_here(whole, setting, value, name):
    here = value.format(port=free_port())

    assert await whole.turned(**{setting: here, "warm_timeout_s": "1"}) == {
        name: "fail"
    }


async def test_a_bus_that_is_away_is_said_with_its_own_exit_code(tmp_path):
    file = tmp_path / "doctor.xml"
    nobody = settings_of(f"redis://127.0.0.1:{free_port()}")

    code, told, talk = await run(nobody, "--junit", str(file))

    assert (code, told, file.exists()) == (UNREACHABLE, "", False)
    assert "no connection to the bus" in talk


async def test_a_bus_without_managers(tmp_path):
    async with valkey(tmp_path) as bus, a_client(bus.url) as client:
        empty = Whole(bus.url, "", client)
        code, _, talk = await run(empty.settings)
        assert code == UNREACHABLE
        assert "no manager ever started on it" in talk

        await client.hset(keys.CONFIG, mapping={"partitions": PARTITIONS, "schema": 1})
        found = await empty.turned()

    assert found == {
        "managers": "fail",
        "lanes_without_owner": "fail",
        "archiver": "warn",
        "fsync": "warn",
    }


async def test_what_waits_is_seen_by_its_age(tmp_path):
    """
    Read and not settled, unread, or not confirmed: each of its lane, to the second.
    """
    async with valkey(tmp_path) as bus, a_client(bus.url) as client:
        await client.hset(keys.CONFIG, mapping={"partitions": PARTITIONS, "schema": 1})
        await client.hset(keys.MADS, mapping={"ann": "{}", "bob": "{}", "new": "{}"})
        seconds, _ = await client.time()
        read, unread = keys.ingress(1, "ann"), keys.ingress(1, "bob")
        for stream, age_s in ((read, 50), (read, 40), (read, 30), (unread, 20)):
            await client.xadd(stream, {"c": b"?"}, id=f"{(seconds - age_s) * 1000}-1")
        for stream in (read, unread):
            await client.xgroup_create(stream, keys.GROUP, "0")
        taken = await client.xreadgroup(keys.GROUP, "lane", {read: ">"}, count=2)
        await client.xack(read, keys.GROUP, taken[0][1][0][0])
        late = f"{(seconds - 90) * 1000}-1"
        await client.xadd(key_names.outbox(0), {"v": b"?"}, id=late)
        wire = Wire(bus.url)

        first, second = (await read_bus(wire)).lanes

        await wire.close()
    near = partial(pytest.approx, abs=2)
    assert (first.pending_s, first.unread_s, first.outbox_s) == (0, 0, near(90))
    assert (second.pending_s, second.unread_s) == (near(40), near(30))
    assert second.outbox_s == 0


async def test_ids_at_the_end_of_all_ids_are_no_trouble(tmp_path):
    """
    A hostile publisher may use the highest id there is on its own ingress.
    """
    async with valkey(tmp_path) as bus, a_client(bus.url) as client:
        await client.hset(keys.CONFIG, mapping={"partitions": 1, "schema": 1})
        await client.hset(keys.MADS, "evil", "{}")
        stream, last = keys.ingress(0, "evil"), f"{2**64 - 1}-{2**64 - 1}"
        await client.xadd(stream, {"c": b"?"}, id=last)
        await client.xgroup_create(stream, keys.GROUP, last)
        wire = Wire(bus.url)

        readings = await read_bus(wire)

        await wire.close()
    assert readings.looked_at == 1
    assert readings.lanes[0].unread_s == 0


async def test_unequal_priorities_of_replicas_are_found(tmp_path, whole):
    """
    The server does not know them: its replicas are asked.
    """
    async with (
        changed(whole.client, "repl-diskless-sync-delay", "0"),
        AsyncExitStack() as stack,
    ):
        for n, priority in enumerate((100, 10)):
            (tmp_path / str(n)).mkdir()
            copy = await stack.enter_async_context(valkey(tmp_path / str(n)))
            # In order, a replica that has just synchronised ends only after 10 s.
            stack.push_async_callback(copy.kill)
            client = await stack.enter_async_context(a_client(copy.url))
            await client.config_set("replica-priority", priority)
            await client.config_set("appendfsync", "always")
            await client.replicaof("127.0.0.1", whole.url.split(":")[2].split("/")[0])

        async def both_follow():
            told = await whole.client.info("replication")
            states = [told.get(f"slave{n}", {}).get("state") for n in range(2)]
            return states == ["online", "online"]

        await until(both_follow)
        found = await whole.turned()

    assert found == {"replica_priority": "warn", "min_replicas": "warn"}


async def test_a_look_reads_no_more_than_it_says(whole):
    """
    No KEYS, no SCAN, and per lane a handful of commands.
    """
    wire = Wire(whole.url)
    await read_bus(wire)

    async def calls(*names):
        """
        Of ten looks, and of what managers and the archiver asked meanwhile.
        """
        before = await whole.client.info("commandstats")
        for _ in range(10):
            await read_bus(wire)
        after = await whole.client.info("commandstats")
        keys = [f"cmdstat_{name}" for name in names]
        none = {"calls": 0}
        return [
            after.get(k, none)["calls"] - before.get(k, none)["calls"] for k in keys
        ]

    windows = [await calls("keys", "scan", "sort", "xlen") for _ in range(5)]
    await wire.close()

    # The others only add to it.
    least = [min(counts) for counts in zip(*windows, strict=True)]
    assert least == [0, 0, 0, 10 * (PARTITIONS + 1)]


async def test_processes_tell_of_themselves(whole):
    """
    Who they are, what they counted, and how fast they commit.
    """

    async def told():
        fields = await whole.client.hvals(STATUS)
        found = {one.name.partition("-")[0]: one for one in statuses_in(fields)}
        fast = [one.recent.get("commit_p99_ms") for one in found.values()]
        drained = "archiver" in found and found["archiver"].totals["drained"]
        return found if any(fast) and drained else None

    found = await until(told)

    assert set(found) == {"m1", "m2", "archiver"}
    assert sum(one.totals["takeovers"] for one in found.values()) >= PARTITIONS
    assert found["archiver"].totals["drained"] > 0
    assert found["archiver"].gauges["breaker.warm"] == 0
    assert all(abs(one.skew_ms) < 100 for one in found.values())


async def test_only_the_first_manager_examines(whole, monkeypatch):
    looked = []

    async def noted(wire, **_):
        looked.append(wire)
        return await read_bus(wire)

    monkeypatch.setattr("everbus.gateway.health.verdicts.read_bus", noted)
    for name in ("m1", "m2"):
        examiner = Examiner(whole.url, name, INDICATORS, outbox_limit=10)
        examiner._examined_at -= 60
        await examiner.examine()
        await examiner.examine()
        await examiner.close()

    assert len(looked) == 1


async def test_an_archiver_that_stopped_is_told_when_something_waits(whole):
    """
    Its lease is given up at once; what was committed since waits.
    """
    await whole.client.set(key_names.owner("archiver"), "9:other/x")
    before = await whole.client.get(key_names.backlog(0))

    await whole.client.delete(key_names.owner("archiver"))
    await whole.client.incrby(key_names.backlog(0), 3)
    found = await whole.turned()

    await whole.client.set(key_names.backlog(0), before or 0)
    assert found == {"archiver": "fail"}

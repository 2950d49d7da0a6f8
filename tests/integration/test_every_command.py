"""
Every command of the command line on a Cluster and behind Sentinels, as on one server.
"""

from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from everbus.bus import connect, keys
from everbus.bus.bus_servers import bus_servers, url_at
from everbus.bus.errors import NotFound
from everbus.bus.wire import Wire
from everbus.compose import mads_command
from everbus.compose.exit_codes import CONFLICT, FINDING
from everbus.compose.settings_checks import CHECKS
from everbus.gateway.health.indicators import INDICATORS
from tests.cluster import cluster
from tests.commandline import CommandLine, own_logs
from tests.replicas import a_token, archiver, manager, settings_of, until
from tests.sentinels import sentinels
from tests.servers import DEBIAN_REDIS, S3_KEYS, nanio, secantus

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(90),
    pytest.mark.usefixtures("own_logs"),
    pytest.mark.skipif(not DEBIAN_REDIS, reason="no redis-server on the PATH"),
]

__all__ = ["own_logs"]

PARTITIONS = 8


class Bus:
    """
    A bus of several servers with a manager, an archiver and the tiers below.

    Attributes:
        replica: URL of one of its replicas.
    """

    def __init__(self, url, replica, environment):
        self.url = url
        self.replica = replica
        self.everbus = CommandLine(url)
        self.everbus._env |= environment

    async def run(self, *arguments, typed=""):
        """
        The JSON that a command prints; it has to succeed.
        """
        ended = await self.everbus(*arguments, "-o", "json", typed=typed)
        assert ended.code == 0, ended
        return ended.json

    async def users(self):
        """
        Address → the users of that server.
        """
        async with bus_servers(self.url) as servers:
            return {
                one.address: {u.decode() for u in await one.wire.call("ACL", "USERS")}
                for one in servers
            }

    async def verdict(self, indicator):
        """
        What doctor says of one indicator.
        """
        ended = await self.everbus("doctor", "-o", "json")
        assert ended.code in (0, FINDING), ended
        findings = {one["name"]: one for one in ended.json["findings"]}
        assert len(findings) == len(INDICATORS) + len(CHECKS)
        return findings[indicator]["verdict"], findings[indicator]["shown"]


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=["cluster", "sentinel"]
)
async def bus(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    async with AsyncExitStack() as closing:
        enter = closing.enter_async_context
        if request.param == "cluster":
            made = await enter(cluster(folder, aof=True))
            follower = await enter(made.follower(folder, of=0))
            replica = f"redis://{follower.address}"
        else:
            made = await enter(sentinels(folder))
            replica = made.servers[1].url
        mongo, s3 = await enter(secantus(folder)), await enter(nanio(folder))
        chosen = {
            "partitions": PARTITIONS,
            "mongo_url": mongo.url,
            "s3_endpoint": s3.url,
            "s3_access_key": S3_KEYS[0],
            "s3_secret_key": S3_KEYS[1],
        }
        for start, name in ((manager, "m1"), (archiver, "a1")):
            part = await enter(start(folder, made.url, name, **chosen))
            await part.logged(f"{start.__name__}.ready")
        given = settings_of(made.url, **chosen, token=a_token(), mad="dev")
        yield Bus(made.url, replica, given)


async def spread(mad):
    """
    A session on each partition.
    """
    found = {}
    while len(found) < PARTITIONS:
        session = (await mad.create_session("ada")).id
        found.setdefault(keys.partition_of(session, PARTITIONS), session)
    return list(found.values())


async def test_the_life_of_a_session(bus):
    run = bus.run
    made = (await run("session", "create", "ada"))["id"]
    watching = await bus.everbus.start("watch", made, "--after", "0")
    await run("session", "update", made, '{"tags": ["sea"]}')
    await run("append", made, '{"text": "hi"}')
    await run("join", made)
    await bus.everbus("session", "broadcast", made, '{"n": 1}')

    shown = await run("session", "show", made)
    page = await run("timeline", made)
    before = await run("session", "at", made, "1")
    changes = await run("session", "diff", made, "1", "2")
    stored = await run("session", "checkpoint", made)
    await run("session", "update", made, '{"tags": ["land"]}')
    restored = await run("session", "restore", made, stored["id"])
    durable = await run("session", "durable", made, "--wait")
    found = await run("session", "list", "--tag", "sea")
    command = found["sessions"][0]["id"] == made
    await run("session", "suspend", made)
    resumed = await run("session", "resume", made)
    ended = await bus.everbus("session", "delete", made, "--yes")
    events, _ = await watching.communicate()

    assert (shown["tags"], before["tags"]) == (["sea"], [])
    assert [one["entry"] for one in page["entries"]] == [{"text": "hi"}]
    assert len(changes["changes"]) == 1
    assert restored["version"] == shown["version"] + 2 == durable["version"]
    assert command
    assert resumed["version"] > restored["version"]
    assert ended.code == 0
    assert b"session.created" in events
    assert b"session.deleted" in events


async def test_hot_sessions_of_all_nodes_are_counted_verified_and_archived(bus):
    async with connect(bus.url, mad="dev", token=a_token()) as mad:
        sessions = await spread(mad)
        for session in sessions:
            await mad.durable(session, wait=True)

        counted = (await bus.run("session", "stats"))["tiers"]["hot"]
        verified = await bus.everbus("verify", "--all", "-o", "json")
        await mad.suspend_session(sessions[0])

    async def archived():
        # A suspended session leaves Redis in the archiver's own time.
        return (await bus.run("archive", "--idle-days", "0"))["archived"]

    assert await until(archived, 30) == 1

    async with bus_servers(bus.url) as servers:
        some = [one for one in servers if one.is_primary]
        memory = [await one.wire.call("INFO", "memory") for one in some]
    used = [int(one.split(b"used_memory:")[1].split()[0]) for one in memory]
    assert counted["sessions"] >= PARTITIONS
    assert counted["bytes"] > 0.8 * sum(used)
    assert (verified.code, verified.json["counts"]) == (0, {})
    assert verified.json["sessions"] >= PARTITIONS


async def test_lanes_and_the_way_of_a_command(bus):
    lanes = await bus.run("lanes")
    async with connect(bus.url, mad="dev", token=a_token()) as mad:
        sessions = await spread(mad)
        sent = [mad.append(session, {"n": 1}) for session in sessions]
        await mad.flush(settled=True)
        steps = [await bus.run("request", "show", one) for one in sent]

    assert {one["name"] for one in lanes} == {*map(str, range(PARTITIONS)), "mads"}
    assert all(one["owner"] for one in lanes)
    assert all("settled" in {one["step"] for one in some} for some in steps)


async def test_dead_letters_of_every_partition(bus):
    names = [f"nobody-{n}" for n in range(200)]
    ghosts = {keys.partition_of(name, PARTITIONS): name for name in names}
    async with connect(bus.url, mad="dev", token=a_token()) as mad:
        for session in ghosts.values():
            mad.append(session, {"n": 1})
        with pytest.raises(NotFound):
            await mad.flush(settled=True)

    groups = (await bus.run("dead", "list"))["groups"]
    letters = (await bus.run("dead", "list", "--each"))["letters"]
    shown = await bus.run("dead", "show", letters[0]["id"])
    redriven = await bus.run("dead", "redrive", "--all")

    async def buried_again():
        found = (await bus.run("dead", "list", "--each"))["letters"]
        return len(found) == PARTITIONS

    await until(buried_again)
    dropped = await bus.run("dead", "drop", "--all", "--yes")

    assert [(one["cause"], one["count"]) for one in groups] == [
        ("not_found", PARTITIONS)
    ]
    assert {int(one["id"].partition("-")[0]) for one in letters} == {*ghosts}
    assert shown["redrivable"]
    assert (redriven["redriven"], dropped["dropped"]) == (PARTITIONS, PARTITIONS)


async def test_a_mad_has_its_user_on_every_server(bus, monkeypatch):
    monkeypatch.setattr(mads_command, "NOTICED_WITHIN_S", 0.3)
    url = (await bus.run("mads", "add", "ann"))["url"]
    everywhere = await bus.users()
    again = await bus.everbus("mads", "add", "ann")
    async with connect(url, mad="ann", token=a_token("ann")) as mad:
        for session in await spread(mad):
            await mad.append_and_wait(session, {"n": 1})
    listed = (await bus.run("mads", "list", "--mad", "ann"))["mads"]
    enabled = await bus.everbus("mads", "enable", "ann")
    removed = await bus.everbus("mads", "remove", "ann")

    assert len(everywhere) >= 3
    assert all("ann" in users for users in everywhere.values())
    assert again.code == CONFLICT
    assert [one["mad"] for one in listed] == ["ann"]
    assert (enabled.code, removed.code) == (0, 0)
    assert not any("ann" in users for users in (await bus.users()).values())


async def test_a_user_that_a_server_lacks_is_told_and_made_under_its_old_password(bus):
    url = (await bus.run("mads", "add", "bob"))["url"]
    replica = Wire(bus.replica)
    await replica.call("ACL", "DELUSER", "bob")

    told = await bus.verdict("bus_users")
    renewed = await bus.run("mads", "add", "bob")
    mended = await bus.verdict("bus_users")

    asked = Wire(url_at(url, replica.address))
    assert await asked.call("PING") == b"PONG"
    await asked.close()
    await replica.close()
    await bus.everbus("mads", "remove", "bob")
    assert told == ("warn", f"bob is not on {replica.address}")
    assert renewed["url"] == ""
    assert mended == ("pass", "the same everywhere")


async def test_doctor_judges_every_server_and_names_it(bus):
    replica = Wire(bus.replica)
    await replica.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    told = await bus.verdict("eviction_policy")
    await replica.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
    mended = await bus.verdict("eviction_policy")
    _, answering = await bus.verdict("bus_nodes")
    await replica.close()
    async with bus_servers(bus.url) as servers:
        serving = sum(one.is_primary for one in servers)

    assert told == ("fail", f"allkeys-lru at {replica.address}")
    assert mended == ("pass", "noeviction")
    assert answering == f"{serving} serve, {len(servers) - serving} follow"
    assert len({one.address for one in servers}) == len(servers) >= 3


async def test_the_rest_that_asks_no_server_or_one_question(bus):
    rules = await bus.run("acl")
    token = await bus.everbus("token", "--name", "ada")
    bench = await bus.everbus.start(
        *("bench", "--seconds", "0.5", "--warm-up", "0", "--sessions", "8"),
        *("--mads", "1", "-o", "json"),
    )
    _, talk = await bench.communicate()

    assert {"everbus-manager", "everbus-archiver", "everbus-edge"} <= set(rules)
    assert token.said.count(".") == 2
    assert bench.returncode == 0, talk

"""
The users that `everbus acl` describes: what they can do on a real server, and no more.
"""

import asyncio
import time
from functools import partial

import pytest
import pytest_asyncio
from redis.exceptions import ResponseError

from everbus.bus import connect, keys
from everbus.bus.connection import connected_as
from everbus.bus.errors import Forbidden
from everbus.bus.requests import Delegation
from everbus.bus.server_errors import error_word
from everbus.bus.wire import Wire
from everbus.compose.acl import mad_rules, role_rules
from everbus.compose.bus_url import url_for_user
from everbus.compose.mad_users import set_user
from everbus.compose.role_processes import run_archiver
from everbus.compose.settings import load_settings
from everbus.gateway.identity.grants import Grants, derived_key
from everbus.gateway.identity.principal import Principal
from everbus.gateway.store import key_names, lease_records
from tests.integration.conftest import (
    ON_EACH_SERVER,
    PARTITIONS,
    SECRET,
    a_replica,
    a_token,
    until,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), ON_EACH_SERVER]

MAD = "fiedler"
MEMORY_WARM = "everbus.compose.testing.memory.warm:MemoryWarm"
PASSWORD = "of-this-test-only"
OWN_REPLY = keys.reply(0, MAD, "i.0.1")
OWN_CHANNEL = keys.wake(MAD, "i")
# What a MAD may do: each command, with arguments with which it may.
OWN = {
    "ping": (),
    "client|setname": ("mad-fiedler",),
    "hmget": (keys.CONFIG, "partitions"),
    "subscribe": (OWN_CHANNEL,),
    "xadd": (keys.ingress(0, MAD), "*", "c", "x"),
    "xread": ("STREAMS", OWN_REPLY, "0"),
    "unlink": (OWN_REPLY,),
    "publish": (keys.token(MAD), "x"),
}
# The same commands on what is not its own.
FOREIGN = [
    ("HMGET", keys.MADS, MAD),
    ("HMGET", key_names.session(0, "s1"), "version"),
    ("HMGET", lease_records.RECORDS, "fiedler:i"),
    ("SUBSCRIBE", keys.wake("other", "i")),
    ("SUBSCRIBE", keys.NEWS),
    ("SUBSCRIBE", "__keyevent@0__:expired"),
    ("SUBSCRIBE", OWN_CHANNEL, keys.NEWS),
    ("XADD", keys.ingress(0, "other"), "*", "c", "x"),
    ("XADD", keys.ingress(0, keys.GATEWAY), "*", "c", "x"),
    ("XADD", keys.ingress(keys.PRESENCE, "other"), "*", "c", "x"),
    ("XADD", keys.ingress(0, "fiedler2"), "*", "c", "x"),
    ("XADD", keys.ingress("ghost", MAD), "*", "c", "x"),
    ("XADD", keys.ingress(16, MAD), "*", "c", "x"),
    ("XADD", OWN_REPLY, "*", "r", "x"),
    ("XADD", key_names.outbox(0), "*", "b", "x"),
    ("HMGET", OWN_REPLY, "r"),
    ("XREAD", "STREAMS", keys.CONFIG, "0"),
    ("XREAD", "STREAMS", keys.ingress(0, MAD), "0"),
    ("XREAD", "STREAMS", keys.reply(0, "other", "i.0.1"), "0"),
    ("XREAD", "STREAMS", OWN_REPLY, key_names.dead(0), "0", "0"),
    ("XREAD", "STREAMS", key_names.outbox(0), "0"),
    ("UNLINK", keys.ingress(0, MAD)),
    ("UNLINK", keys.CONFIG),
    ("UNLINK", OWN_REPLY, keys.reply(0, "other", "i.0.1")),
    ("UNLINK", lease_records.lease("fiedler:i")),
    ("PUBLISH", OWN_CHANNEL, "x"),
    ("PUBLISH", keys.wake("other", "i"), "x"),
    ("PUBLISH", keys.token("other"), "x"),
    ("PUBLISH", keys.token("fiedler2"), "x"),
    ("PUBLISH", keys.token("*"), "x"),
    ("PUBLISH", keys.NEWS, "x"),
    ("PUBLISH", "__keyevent@0__:expired", "x"),
    ("PUBLISH", "__keyspace@0__:eb:{mads}:lease:fiedler:i", "expired"),
    ("SUBSCRIBE", keys.token(MAD)),
]
# The server asks nobody's leave for these.
ALWAYS = {"auth", "hello", "quit", "reset"}
# Allowed for a bus that is a cluster; a single server has no answer to it.
OF_CLUSTERS = {"cluster|slots"}


@pytest_asyncio.fixture(loop_scope="module")
async def admin(bus):
    """
    A connection that may do everything, with the ACL's log emptied before.
    """
    wire = Wire(bus.url)
    await wire.call("ACL", "LOG", "RESET")
    yield wire
    await wire.close()


@pytest_asyncio.fixture(loop_scope="module")
async def own_url(bus, admin):
    """
    The bus's URL for the MAD under its own user.
    """
    await set_user(admin, MAD, PASSWORD, mad_rules(MAD))
    return url_for_user(bus.url, MAD, PASSWORD)


async def word_of(url, *command):
    """
    The code of the error that *command* ends with; empty if it is allowed.
    """
    wire = Wire(url)
    try:
        [reply] = await wire.exchange([command])
    finally:
        await wire.close()
    return error_word(reply) if isinstance(reply, ResponseError) else ""


async def refused(admin, user):
    """
    What the server's log says that *user* was refused.
    """
    entries = await admin.call("ACL", "LOG", 128)
    told = [dict(zip(one[::2], one[1::2], strict=True)) for one in entries]
    return {
        one[b"object"].decode() for one in told if one[b"username"] == user.encode()
    }


async def every_command(admin):
    """
    Name → arity of every command and subcommand; those that only hold others are not.
    """
    listed = [name.decode() for name in await admin.call("COMMAND", "LIST")]
    told = await admin.call("COMMAND", "INFO", *listed)
    holders = {name.partition("|")[0] for name in listed if "|" in name}
    return {
        name: arity
        for name, (_, arity, *_) in zip(listed, told, strict=True)
        if name not in holders
    }


@pytest.mark.parametrize("key", [keys.ingress(0, MAD), OWN_REPLY, "strange"])
async def test_of_all_commands_only_those_few_are_allowed(admin, own_url, key):
    """
    Every one is run, with as many arguments as it wants: a key that it would like.

    Some the server refuses to everybody who comes over the network, and does not ask
    for their rights; of those it is asked what it would say.
    """
    known = await every_command(admin)
    wire = Wire(own_url)
    allowed, closed = set(), set()
    for name in known.keys() - OWN.keys() - ALWAYS - OF_CLUSTERS:
        words = name.upper().split("|")
        command = (*words, *[key] * max(0, abs(known[name]) - len(words)))
        [reply] = await wire.exchange([command])
        if isinstance(reply, ResponseError) and "command not allowed" in str(reply):
            closed.add(name)
            reply = await admin.call("ACL", "DRYRUN", MAD, *command)
        if "has no permissions to run" not in str(reply):
            allowed.add((name, str(reply)))
    await wire.close()

    assert allowed == set()
    assert {name.partition("|")[0] for name in closed} <= {"debug", "module"}
    assert OWN.keys() | ALWAYS <= known.keys()
    assert len(known) > 300


async def test_a_mad_may_do_what_it_needs(own_url, admin):
    found = {
        name: await word_of(own_url, *name.upper().split("|"), *arguments)
        for name, arguments in OWN.items()
    }

    assert found == dict.fromkeys(OWN, "")
    assert await refused(admin, MAD) == set()


@pytest.mark.parametrize("command", FOREIGN, ids=lambda command: " ".join(command))
async def test_a_mad_may_do_it_to_nothing_else(own_url, admin, command):
    assert await word_of(own_url, *command) == "NOPERM"
    assert await refused(admin, MAD) != set()


@pytest.mark.parametrize(
    "command",
    [
        ("PSUBSCRIBE", OWN_CHANNEL),
        ("SPUBLISH", keys.token(MAD), "x"),
        ("EVAL", "return 1", "0"),
        ("FUNCTION", "LIST"),
        ("SCAN", "0"),
        ("KEYS", "*"),
        ("SELECT", "1"),
        ("MULTI",),
        ("CLIENT", "LIST"),
        ("COMMAND", "LIST"),
        ("ACL", "WHOAMI"),
        ("XTRIM", keys.ingress(0, MAD), "MAXLEN", "0"),
        ("XDEL", keys.ingress(0, MAD), "1-1"),
        ("DEL", OWN_REPLY),
        ("XGROUP", "DESTROY", keys.ingress(0, MAD), keys.GROUP),
    ],
    ids=lambda command: " ".join(command),
)
async def test_a_mad_may_not(own_url, command):
    assert await word_of(own_url, *command) == "NOPERM"


async def test_in_another_database_a_mad_may_choose_it(bus, admin):
    """
    Only then: everywhere else SELECT leads nowhere that a MAD has business in.
    """
    await set_user(admin, MAD, PASSWORD, mad_rules(MAD, database=1))
    url = url_for_user(bus.url.removesuffix("/0") + "/1", MAD, PASSWORD)

    assert await word_of(url, "HMGET", keys.CONFIG, "partitions") == ""


async def test_everything_works_under_these_users(bus, admin, own_url):
    """
    A manager and a MAD under their own users: requests, appends, wake-ups, heartbeats.

    The log tells what was tried in vain: to register, which an operator does here,
    and redis-py's word about itself, of which Redis 7.0 knows nothing yet.
    """
    await bus.register(MAD)
    await set_user(admin, "everbus-manager", PASSWORD, role_rules("manager"))
    manager_url = url_for_user(bus.url, "everbus-manager", PASSWORD)
    async with a_replica(manager_url, "one", EVERBUS_LEASE_TTL_S="1"):
        await bus.until_served()
        async with connect(own_url, mad=MAD, token=a_token(MAD)) as mad:
            session = await mad.create_session("ada")
            await mad.join(session.id)
            mad.append(session.id, {"n": 1})
            seq = await mad.append_and_wait(session.id, {"n": 2})
            many = await asyncio.gather(
                *(mad.get_session(session.id) for _ in range(50))
            )
            page = await mad.timeline(session.id)

            async def heartbeat_published():
                found = await lease_records.instances(admin, MAD)
                return [one.state for one in found] == ["living"]

            await until(heartbeat_published, "heartbeats under the MAD's own user")

        async def left():
            found = await lease_records.instances(admin, MAD)
            return [one.state for one in found] == ["left"]

        await until(left, "the MAD's goodbye")

    assert (seq, len(page.entries), len(many)) == (2, 2, 50)
    assert await refused(admin, MAD) <= {"hsetnx", "client|setinfo"}
    assert await refused(admin, "everbus-manager") == set()


async def test_an_edge_works_under_its_own_user(bus, admin):
    """
    Requests for somebody else, signed one by one; it needs neither key nor token.
    """
    await bus.register(keys.EDGE)
    await set_user(admin, "everbus-edge", PASSWORD, role_rules("edge"))
    url = url_for_user(bus.url, "everbus-edge", PASSWORD)
    grants = Grants(derived_key(SECRET))
    ada = Principal("ada", "user", time.time() + 60)
    sign = partial(grants.for_command, ada)
    async with a_replica(bus.url, "one"):
        await bus.until_served()
        async with connected_as(url, keys.EDGE, None, 5, lease=False) as edge:
            acting = edge.acting(Delegation(sign))
            session = await acting.create_session("ada")
            seq = await acting.append_and_wait(session.id, {"n": 1})

    assert (session.owner_id, seq) == ("ada", 1)
    assert await refused(admin, "everbus-edge") <= {"hsetnx", "client|setinfo"}


@pytest.mark.parametrize(
    "command",
    [
        ("HGETALL", key_names.session(0, "s1")),
        ("HMGET", key_names.session(0, "s1"), "version"),
        ("XADD", keys.ingress(0, keys.GATEWAY), "*", "c", "x"),
        ("XADD", keys.ingress(0, MAD), "*", "c", "x"),
        ("XREAD", "STREAMS", keys.reply(0, MAD, "i.0.1"), "0"),
        ("SUBSCRIBE", keys.wake(MAD, "i")),
        ("SUBSCRIBE", keys.token(MAD)),
        ("PSUBSCRIBE", keys.token("*")),
        ("PUBLISH", keys.token(keys.EDGE), "x"),
        ("PUBLISH", keys.wake(keys.EDGE, "i"), "x"),
        ("EVAL", "return 1", "0"),
    ],
    ids=lambda command: " ".join(command),
)
async def test_an_edge_may_not(bus, admin, command):
    await set_user(admin, "everbus-edge", PASSWORD, role_rules("edge"))
    url = url_for_user(bus.url, "everbus-edge", PASSWORD)

    assert await word_of(url, *command) == "NOPERM"


@pytest.mark.parametrize("channel", [keys.token(MAD), keys.token("*")])
async def test_an_archiver_hears_no_tokens(bus, admin, channel):
    await set_user(admin, "everbus-archiver", PASSWORD, role_rules("archiver"))
    url = url_for_user(bus.url, "everbus-archiver", PASSWORD)

    for verb in ("SUBSCRIBE", "PSUBSCRIBE"):
        assert await word_of(url, verb, channel) == "NOPERM"


async def test_a_mad_that_may_not_show_its_token_is_told_the_remedy(bus, admin):
    """
    As users are that were made before there were grants.
    """
    await bus.register(MAD)
    before = [rule for rule in mad_rules(MAD) if "publish" not in rule]
    await set_user(admin, MAD, PASSWORD, before)
    async with a_replica(bus.url, "one"):
        with pytest.raises(Forbidden, match=r"bus/README\.md"):
            async with connect(
                url_for_user(bus.url, MAD, PASSWORD), mad=MAD, token=a_token(MAD)
            ):
                pass


async def test_an_archiver_works_under_its_own_user(bus, admin):
    await set_user(admin, "everbus-archiver", PASSWORD, role_rules("archiver"))
    stop = asyncio.Event()
    async with a_replica(bus.url, "one"):
        await bus.until_served()
        async with connect(bus.url, mad="ada", token=a_token("ada")) as mad:
            session = (await mad.create_session("ada")).id
            settings = load_settings(
                {
                    "EVERBUS_REDIS_URL": url_for_user(
                        bus.url, "everbus-archiver", PASSWORD
                    ),
                    "EVERBUS_WARM_STORE": MEMORY_WARM,
                    "EVERBUS_PARTITIONS": str(PARTITIONS),
                    "EVERBUS_REDIS_UNSAFE": "true",
                }
            )
            running = asyncio.create_task(run_archiver(settings, stop))

            async def drained():
                backlog = key_names.backlog(bus.partition(session))
                return int(await bus.client.get(backlog) or 0) == 0

            await until(drained, "the outbox drained")
            stop.set()
            await running

    assert await refused(admin, "everbus-archiver") == set()


async def test_a_wrong_password_and_a_name_of_nobody_are_refused(bus, own_url):
    for name, password in ((MAD, "wrong"), ("nobody", PASSWORD)):
        wire = Wire(url_for_user(bus.url, name, password))
        with pytest.raises(Exception, match="refuses the credentials"):
            await wire.call("PING")
        await wire.close()


async def test_a_refusal_names_what_a_mad_needs(own_url):
    wire = Wire(own_url)

    with pytest.raises(Forbidden, match=r"bus/README\.md"):
        await wire.call("GET", "eb:{0}:owner")

    await wire.close()

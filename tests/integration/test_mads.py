"""
`everbus mads` on a real bus: who is alive, who is let in, and who is put out.
"""

import msgspec
import pytest
import pytest_asyncio
import redis

from everbus.bus import connect, keys
from everbus.bus.errors import Forbidden, Unauthenticated
from everbus.bus.messages import COMMAND_FIELD, SCHEMA, Envelope, pack, pack_envelope
from everbus.bus.wire import Wire
from everbus.compose import mads_command
from everbus.compose.acl import mad_rules
from everbus.compose.bus_url import url_for_user
from tests.commandline import CommandLine, own_logs
from tests.integration.conftest import (
    ON_EACH_SERVER,
    PARTITIONS,
    a_replica,
    a_token,
    until,
)

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.usefixtures("own_logs"),
]
__all__ = ["own_logs"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watchful(bus):
    """
    A replica that misses a MAD after a second.
    """
    async with a_replica(bus.url, "one", EVERBUS_LEASE_TTL_S="1"):
        await bus.until_served()
        yield


@pytest.fixture
def everbus(bus, monkeypatch):
    """
    The command line; managers hear of what it does within a moment.
    """
    monkeypatch.setattr(mads_command, "NOTICED_WITHIN_S", 0.3)
    return CommandLine(bus.url)


@pytest_asyncio.fixture(loop_scope="module")
async def idle(unserved, monkeypatch):
    """
    The command line on a bus that was set up, and that nobody serves.
    """
    monkeypatch.setattr(mads_command, "NOTICED_WITHIN_S", 0.0)
    await unserved.client.hset(keys.CONFIG, "partitions", PARTITIONS)
    return CommandLine(unserved.url)


async def rows_of(everbus, mad):
    ended = await everbus("mads", "list", "--mad", mad, "-o", "json")
    return ended.json["mads"]


def a_heartbeat(instance, kind="instance.join", epoch=1):
    body = msgspec.Raw(pack({"instance": instance, "epoch": epoch}))
    envelope = Envelope(v=SCHEMA, id=f"{instance}.{epoch}.1", kind=kind, body=body)
    return {COMMAND_FIELD: pack_envelope(envelope)}


async def works(url, name):
    """
    Whether a MAD gets through everything that a session begins with.
    """
    async with connect(url, mad=name, token=a_token(name)) as mad:
        session = await mad.create_session("ada")
        await mad.join(session.id)
        return await mad.append_and_wait(session.id, {"n": 1}) == 1


@ON_EACH_SERVER
@pytest.mark.usefixtures("watchful")
async def test_a_mad_is_seen_alive_in_its_sessions_and_then_gone(bus, everbus):
    async with connect(bus.url, mad="ada", token=a_token("ada")) as mad:
        made = [(await mad.create_session("ada")).id for _ in range(3)]
        for session in made[:2]:
            await mad.join(session)

        async def listed():
            return [row["state"] for row in await rows_of(everbus, "ada")] == ["alive"]

        await until(listed, "the first heartbeat")
        [alive] = await rows_of(everbus, "ada")
        table = await everbus("mads", "list")

    async def left():
        return [row["state"] for row in await rows_of(everbus, "ada")] == ["left"]

    await until(left, "the goodbye")
    [gone] = await rows_of(everbus, "ada")

    assert sorted(alive["sessions"]) == sorted(made[:2])
    assert (alive["epoch"], alive["registered"], alive["noticed"]) == (1, True, "")
    assert 0 < alive["lease_left_s"] <= 1
    assert alive["instance"] in table.said
    assert (table.code, table.talk) == (0, "")
    assert gone["lease_left_s"] is None
    assert gone["ended"] >= gone["last_heartbeat"]


@ON_EACH_SERVER
@pytest.mark.usefixtures("watchful")
async def test_a_lost_one_tells_what_noticed_it(bus, everbus):
    await bus.register("lost")
    await bus.client.xadd(keys.ingress(keys.PRESENCE, "lost"), a_heartbeat("i1"))

    async def lost():
        return [row["state"] for row in await rows_of(everbus, "lost")] == ["lost"]

    await until(lost, "the loss")
    [row] = await rows_of(everbus, "lost")

    assert row["noticed"] in ("event", "sweep")


@ON_EACH_SERVER
@pytest.mark.usefixtures("watchful")
async def test_a_mad_without_instances_is_listed(bus, everbus):
    await bus.register("quiet")

    [row] = await rows_of(everbus, "quiet")

    assert (row["mad"], row["instance"], row["state"]) == ("quiet", "", "")


async def test_a_bus_that_nobody_watches_says_so(idle):
    ended = await idle("mads", "list")

    assert ended.code == 0
    assert "no manager watches the heartbeats" in ended.talk


@ON_EACH_SERVER
@pytest.mark.usefixtures("watchful")
async def test_add_gives_a_url_once_and_it_is_all_that_a_mad_needs(bus, everbus):
    added = await everbus("mads", "add", "hymir")
    again = await everbus("mads", "add", "hymir")
    url = added.said.strip()
    listed = await bus.client.acl_list()
    [user] = [line for line in listed if line.startswith("user hymir ")]

    assert (added.code, again.code) == (0, 5)
    assert url.startswith("redis://hymir:")
    assert url.rpartition("@")[2] == bus.url.removeprefix("redis://")
    assert again.said == ""
    assert "--rotate" in again.talk
    password = url.split(":")[2].partition("@")[0]
    assert len(password) >= 43
    assert password not in added.talk + again.talk + user
    assert await works(url, "hymir")


@ON_EACH_SERVER
@pytest.mark.usefixtures("watchful")
async def test_rotate_ends_the_old_password(bus, everbus):
    first = (await everbus("mads", "add", "gerd", "-o", "json")).json["url"]
    second = (await everbus("mads", "add", "gerd", "--rotate", "-o", "json")).json[
        "url"
    ]

    with pytest.raises(Unauthenticated):
        await works(first, "gerd")
    assert await works(second, "gerd")


@ON_EACH_SERVER
@pytest.mark.usefixtures("watchful")
async def test_add_renews_the_broader_rights_of_an_earlier_version(bus, everbus):
    """
    A pattern of partitions let a MAD fill the bus with streams that nobody reads.
    """
    ended = await everbus("mads", "add", "veteran", "-o", "json")
    url = ended.json["url"]
    wide = "(+xadd %W~eb:{*}:in:veteran)"
    await bus.client.execute_command("ACL", "SETUSER", "veteran", wide)

    renewed = await everbus("mads", "add", "veteran", "-o", "json")

    assert renewed.json["url"] == ""
    assert await works(url, "veteran")
    wire = Wire(url)
    with pytest.raises(Forbidden):
        await wire.call("XADD", "eb:{ghost}:in:veteran", "*", "c", "x")
    await wire.close()


@ON_EACH_SERVER
async def test_no_user_but_a_mads_own_is_ever_replaced_or_removed(bus, everbus):
    """
    Not an operator's, though a MAD has its name; not the server's own.
    """
    wire = Wire(bus.url)
    await wire.call("ACL", "SETUSER", "root", "on", "nopass", "~*", "&*", "+@all")
    await bus.register("root")

    added = await everbus("mads", "add", "root", "--rotate")
    removed = await everbus("mads", "remove", "root")
    reserved = [
        await everbus("mads", verb, name)
        for verb in ("add", "remove")
        for name in ("default", "gateway", "edge", "a*", "a b", "")
    ]
    users = await wire.call("ACL", "USERS")
    await wire.call("ACL", "DELUSER", "root")
    await wire.close()

    assert (added.code, "no MAD's" in added.talk) == (5, True)
    assert (removed.code, "it stays" in removed.talk) == (0, True)
    assert {ended.code for ended in reserved} == {2}
    assert {b"root", b"default"} <= set(users)


async def test_what_else_must_be_known_of_the_users_is_told(idle):
    ended = await idle("mads", "add", "hymir")

    assert "a restart forgets this" in ended.talk
    assert "the user default needs no password" in ended.talk
    assert "not replicated" not in ended.talk


async def test_without_acls_a_mad_is_only_registered(unserved, idle):
    ended = await idle("mads", "add", "hymir", "--no-acl")

    assert (ended.code, ended.said.strip()) == (0, unserved.url)
    assert await unserved.client.hkeys(keys.MADS) == [b"hymir"]
    assert await unserved.client.acl_users() == ["default"]


async def test_a_rewritten_configuration_keeps_the_user_over_a_restart(unserved, idle):
    """
    Without, it is gone: as `mads add` says.
    """
    await idle("mads", "add", "kept")
    await unserved.client.config_rewrite()
    await idle("mads", "add", "forgotten")
    await unserved.server.restart()
    wire = Wire(unserved.url)
    users = await wire.call("ACL", "USERS")
    await wire.close()

    assert sorted(users) == [b"default", b"kept"]


@ON_EACH_SERVER
@pytest.mark.usefixtures("watchful")
async def test_remove_puts_a_mad_out_with_all_that_was_its_own(bus, everbus):
    url = (await everbus("mads", "add", "thor")).said.strip()
    assert await works(url, "thor")
    await bus.until_settled("thor")
    inside = Wire(url)
    await inside.call("PING")

    removed = await everbus("mads", "remove", "thor")
    again = await everbus("mads", "remove", "thor")

    with pytest.raises(Exception, match=r"no connection|refuses"):
        await inside.call("PING")
    await inside.close()
    assert (removed.code, again.code) == (0, 1)
    assert not await bus.client.hexists(keys.MADS, "thor")
    assert await bus.client.keys("eb:*:in:thor") == []
    assert await works((await everbus("mads", "add", "thor")).said.strip(), "thor")


async def test_while_something_waits_nothing_is_removed_unless_by_force(unserved, idle):
    url = (await idle("mads", "add", "loki")).said.strip()
    stream = keys.ingress(1, "loki")
    for _ in range(3):
        await unserved.client.xadd(stream, {"c": "x"})
    await unserved.client.xgroup_create(stream, keys.GROUP, "0")
    await unserved.client.xreadgroup(keys.GROUP, "lane", {stream: ">"}, count=2)

    refused = await idle("mads", "remove", "loki")
    still = Wire(url)
    await still.call("PING")
    await still.close()
    listed = await unserved.client.hexists(keys.MADS, "loki")
    length = await unserved.client.xlen(stream)
    forced = await idle("mads", "remove", "loki", "--force")

    assert (refused.code, listed, length) == (5, True, 3)
    assert "3 of its entries are unsettled, in partition 1" in refused.talk
    assert forced.code == 0
    assert "partition 1: 2 entries that were read and not settled, 1" in forced.talk
    assert not await unserved.client.exists(stream)


async def test_what_comes_between_looking_and_removing_is_not_lost(
    unserved, idle, monkeypatch
):
    """
    On a bus without ACLs the MAD can still publish: then it stays registered.
    """
    await idle("mads", "add", "loki", "--no-acl")
    stream = keys.ingress(1, "loki")
    looked = mads_command._check_settled

    def late(name, left):
        looked(name, left)
        with redis.from_url(unserved.url) as client:
            client.xadd(stream, {"c": "x"})

    monkeypatch.setattr(mads_command, "_check_settled", late)
    ended = await idle("mads", "remove", "loki", "--no-acl")

    assert ended.code == 5
    assert await unserved.client.hexists(keys.MADS, "loki")
    assert await unserved.client.xlen(stream) == 1


async def test_rules_of_all_are_printed_and_are_what_add_sets(unserved, idle):
    await idle("mads", "add", "hymir")
    await unserved.client.hset(keys.MADS, "bad*name", "{}")

    printed = await idle("acl")
    as_json = (await idle("acl", "--mad", "hymir", "-o", "json")).json
    wire = Wire(unserved.url)
    listed = {
        line.split()[1]: line.partition("#")[2].partition(" ")[2]
        for line in map(bytes.decode, await wire.call("ACL", "LIST"))
    }
    for line in printed.said.splitlines():
        name, *rules = line.split(" ")
        await wire.call("ACL", "SETUSER", f"copy-{name}", "on", "#" + 64 * "0", *rules)
    copied = await wire.call("ACL", "LIST")
    await wire.close()

    assert as_json == {"hymir": list(mad_rules("hymir"))}
    assert printed.talk.startswith("left out: ")
    assert f"user copy-hymir on sanitize-payload #{64 * '0'} {listed['hymir']}" in (
        line.decode() for line in copied
    )
    assert url_for_user(unserved.url, "x", "y").startswith("redis://x:y@")

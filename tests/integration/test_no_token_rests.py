"""
A grep of all that lies on disk, in the server and in the logs finds no bearer token.
"""

import json
import time

import pytest
import uuid_utils

from everbus.bus import Unauthenticated, connect, keys
from everbus.bus.errors import Forbidden, NotFound, VersionConflict
from everbus.bus.messages import pack, pack_envelope
from everbus.gateway.identity.tokens import mint
from everbus.gateway.store import key_names
from tests.builders import an_envelope
from tests.commandline import CommandLine, own_logs
from tests.replicas import (
    SECRET,
    a_client,
    a_grant,
    a_token,
    manager,
    settled,
    until,
)
from tests.servers import valkey

pytestmark = pytest.mark.usefixtures("own_logs")
__all__ = ["own_logs"]

MAD = "fiedler"


def tokens():
    """
    One of each kind that a MAD may show; the good one first.
    """
    claims = {"name": MAD, "role": "mad", "issuer": "everbus", "audience": "everbus"}
    now = time.time()
    return {
        "good": a_token(MAD, "mad"),
        "admin": a_token("root", "admin"),
        "expired": mint(SECRET, **claims, ttl_s=60, now=now - 600),
        "forged": mint("x" * 32, **claims, ttl_s=60, now=now),
        "elsewhere": mint(SECRET, **claims | {"audience": "x"}, ttl_s=60, now=now),
    }


def found_in(haystack, secrets):
    """
    Which of *secrets* are in there: any, cut anywhere but in its first part.
    """
    needles = {"eyJ": b"eyJ"}
    for name, token in secrets.items():
        for n, part in enumerate(token.split(".")):
            needles[f"{name}.{n}"] = part[:24].encode()
    return {name for name, needle in needles.items() if needle in haystack}


def on_disk(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


async def told_by(client):
    """
    What the server itself tells of what it was asked, and its every key.
    """
    slow = await client.execute_command("SLOWLOG", "GET", -1)
    refusals = await client.execute_command("ACL", "LOG", 128)
    dumps = [await client.dump(key) async for key in client.scan_iter(count=1000)]
    return repr((slow, refusals)).encode(), b"".join(filter(None, dumps))


async def written(client):
    """
    Have the server write all it knows to disk: as AOF anew, and as RDB.
    """
    await client.execute_command("BGREWRITEAOF")
    await until(lambda: _idle(client), what="the AOF is rewritten")
    await client.execute_command("SAVE")


async def _idle(client):
    state = await client.info("persistence")
    busy = (
        "aof_rewrite_in_progress",
        "aof_rewrite_scheduled",
        "rdb_bgsave_in_progress",
    )
    return not any(state[one] for one in busy)


async def refuse(url, token):
    with pytest.raises(Unauthenticated):
        async with connect(url, mad=MAD, token=token):
            pytest.fail("connected")


async def use(url, secrets, client):
    """
    All that a MAD does with a token, good and bad.
    """
    async with connect(url, mad=MAD, token=secrets["good"]) as mad:
        session = (await mad.create_session("ada")).id
        mad.append(session, {"n": 1})
        await mad.append_and_wait(session, {"n": 2})
        with pytest.raises(VersionConflict):
            await mad.update_session(session, {}, expected_version=9)
        mad.append(str(uuid_utils.uuid7()), "nowhere")
        with pytest.raises(NotFound):
            await mad.flush(settled=True)
    for bad in ("expired", "forged", "elsewhere"):
        await refuse(url, secrets[bad])
    async with connect(url, mad="hymir", token=secrets["admin"]) as admin:
        await admin.get_session(session)
    async with connect(url, mad="eve", token=secrets["good"]) as stranger:
        with pytest.raises(Forbidden):
            await stranger.get_session(session)
    for message in (secrets["good"], b"\xc1" + secrets["good"].encode()):
        await client.publish(keys.token(MAD), bytes(128) + pack(message))
    return session


async def misuse(client, session):
    """
    Forged and garbled commands, each of which becomes a dead letter.
    """
    expired = a_grant(MAD, "mad", ttl_s=-60)
    commands = [
        an_envelope("session.get", session=session, id="f1", grant=b"forged"),
        an_envelope("session.get", session=session, id="f2", grant=expired),
        an_envelope("no.such", session=session, id="f3", grant=a_grant(MAD, "mad")),
    ]
    for partition in range(2):
        stream = keys.ingress(partition, MAD)
        for one in commands:
            await client.xadd(stream, {"c": pack_envelope(one)})
        await client.xadd(stream, {"c": b"\xc1 garbled"})


async def test_a_grep_finds_no_token(tmp_path):
    """
    In AOF (base and increments), RDB, SLOWLOG, ACL LOG, every key, every dead letter,
    and the logs of a manager that tells all.
    """
    secrets, folder = tokens(), tmp_path / "bus"
    folder.mkdir()
    async with (
        valkey(folder) as server,
        manager(
            tmp_path, server.url, "loud", log_level="debug", redis_unsafe="true"
        ) as loud,
        a_client(server.url) as client,
    ):
        everbus = CommandLine(server.url)
        await client.config_set("rdbcompression", "no")
        await client.config_set("slowlog-log-slower-than", 0)
        await client.config_set("slowlog-max-len", 1_000_000)
        await loud.logged("manager.ready")
        session = await use(server.url, secrets, client)
        await misuse(client, session)
        await settled(client)
        letters = [await client.xrange(key_names.dead(p)) for p in range(2)]
        shown = await everbus("dead", "list", "--each", "-o", "json")
        redriven = await everbus("dead", "redrive", "--all", "-o", "json")
        await settled(client)
        before = on_disk(folder)
        await written(client)
        await use(server.url, secrets, client)
        asked, keys_ = await told_by(client)
        # Were one there, this would find it: in each place that was searched.
        await client.set("eb:control", secrets["good"])
        after = on_disk(folder)
        await written(client)
        control = {**after, **on_disk(folder)}
        asked_then, keys_then = await told_by(client)

    logs = loud.output()
    places = {"asked": asked, "keys": keys_, "logs": logs.encode()}
    places |= {"letters": repr(letters).encode(), "shown": shown.said.encode()}
    places |= {f"before {name}": data for name, data in before.items()}
    places |= {
        f"after {name}": data.partition(b"eb:control")[0]
        for name, data in after.items()
    }
    assert {place: found_in(data, secrets) for place, data in places.items()} == {
        place: set() for place in places
    }
    assert {one["cause"] for one in json.loads(shown.said)["letters"]} >= {
        *("not_found", "unauthenticated", "undecodable", "unknown_kind"),
    }
    assert redriven.json["redriven"] >= 1
    assert "token.refused" in logs
    assert "PUBLISH" in asked.decode().upper()
    hits = {name for name, data in control.items() if "eyJ" in found_in(data, secrets)}
    assert {name.rpartition(".")[2] for name in hits} >= {"aof", "rdb"}, hits
    assert "eyJ" in found_in(asked_then, secrets) & found_in(keys_then, secrets)

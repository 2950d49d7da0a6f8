"""
Letters of an earlier life of the managers, redriven in a later one.
"""

import json

import pytest

from everbus.bus import connect, keys
from everbus.bus.messages import SCHEMA, pack_envelope
from everbus.gateway.store import key_names
from everbus.handlers.routes import HANDLERS, append_timeline
from tests.builders import an_envelope
from tests.commandline import CommandLine, own_logs
from tests.commit_log import CommitLog
from tests.replicas import a_token, letters, replica_here, settled

pytestmark = pytest.mark.usefixtures("own_logs")
__all__ = ["own_logs"]


async def test_a_poison_command_is_applied_once_its_cause_is_mended(server, client):
    """
    Five failures buried it; with the handler mended it is redriven, and once.
    """

    def defective(session, command, now):
        if command.body.entry != b"\x01":
            raise ZeroDivisionError("a defect of ours")
        return append_timeline(session, command, now)

    ordinary = HANDLERS["timeline.append"]
    routes = {**HANDLERS, "timeline.append": ordinary._replace(handler=defective)}
    everbus = CommandLine(server.url)
    await client.hset(keys.CONFIG, mapping={"partitions": 1, "schema": SCHEMA})
    async with connect(server.url, mad="fiedler", token=a_token()) as mad:
        async with replica_here(server.url, routes=routes, partitions=1):
            session = (await mad.create_session("ada")).id
            mad.append(session, {"n": 1})
            await mad.flush()
            await settled(client)
        [letter] = (await everbus("dead", "list", "--each", "-o", "json")).json[
            "letters"
        ]
        async with replica_here(server.url, partitions=1):
            ended = await everbus("dead", "redrive", "--cause", "poison", "-o", "json")
            await settled(client)

    log = await CommitLog.read(client, 1)
    assert letter["cause"] == "poison"
    assert letter["attempts"] == ["ZeroDivisionError: a defect of ours"] * 5
    assert (letter["principal"], letter["role"]) == ("ada", "admin")
    assert (ended.code, ended.json["redriven"]) == (0, 1)
    log.check()
    assert log.numbers(session, "fiedler") == [1]
    assert await letters(client, 1) == []


async def test_while_nobody_serves_what_was_redriven_waits_on_the_ingress(
    server, client
):
    """
    As any command does: a letter is not lost on its way.
    """
    everbus = CommandLine(server.url)
    await client.hset(keys.CONFIG, mapping={"partitions": 1, "schema": SCHEMA})
    async with connect(server.url, mad="fiedler", token=a_token()) as mad:
        async with replica_here(server.url, partitions=1):
            session = (await mad.create_session("ada")).id
            stray = an_envelope("session.rename", session=session, id="free-1")
            await client.xadd(keys.ingress(0, "fiedler"), {"c": pack_envelope(stray)})
            await settled(client)
        body = json.dumps({"entry": {"n": 7}})
        ended = await everbus(
            *("dead", "redrive", await only_letter(client)),
            *("--as-kind", "timeline.append", "--edit", "-"),
            typed=body,
        )
        waiting = await client.xlen(key_names.dead(0))
        async with replica_here(server.url, partitions=1):
            await settled(client)
            [buried] = await letters(client, 1)

    assert (ended.code, waiting) == (0, 0)
    # Its grant was never looked at, so it is judged as the MAD's own: no member.
    assert buried[b"cause"] == b"forbidden"


async def only_letter(client):
    [(entry, _)] = await client.xrange(key_names.dead(0))
    return f"0-{entry.decode()}"

"""
Commands without a reply, until they are settled: kept, told, sent again.
"""

import asyncio
import sqlite3
from contextlib import closing

import msgspec
import pytest
import structlog

from everbus.bus import Invalid, NotFound, RefusedCommand, connect, keys
from everbus.bus.messages import COMMAND_FIELD, pack
from tests.integration.conftest import a_token

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.usefixtures("manager"),
]


async def test_flush_settled_waits_until_all_is_applied(mad):
    async with mad("ada") as ada:
        session = await ada.create_session("ada")
        for n in range(200):
            ada.append(session.id, n)

        await ada.flush(settled=True)

        assert ada._requests._publisher.unsettled == 0
        found = await ada.get_session(session.id)
    assert found.last_seq == 200


async def test_what_was_accepted_and_refused_later_is_told_three_times(mad, bus):
    """
    By the callback at once, by the next flush, and as an error in the log.
    """
    told: list[RefusedCommand] = []
    nowhere = bus.a_session_id(0)
    with structlog.testing.capture_logs() as logs:
        async with connect(
            bus.url, mad="ada", token=a_token("ada"), on_refused=told.append
        ) as ada:
            accepted = ada.append(nowhere, 1)
            with pytest.raises(NotFound) as refused:
                await ada.flush(settled=True)
            await ada.flush(settled=True)

    assert [(one.id, one.code, one.session) for one in told] == [
        (accepted, "not_found", nowhere)
    ]
    assert refused.value.details["command_id"] == accepted
    assert [one["id"] for one in refused.value.details["refused"]] == [accepted]
    logged = [one for one in logs if one["event"] == "command.refused"]
    assert [(one["command_id"], one["log_level"]) for one in logged] == [
        (accepted, "error")
    ]


async def test_a_refusal_whose_announcement_was_lost_is_told_all_the_same(mad, bus):
    async with mad("ada") as ada:
        ada._requests._replies._on_refused = None
        accepted = ada.append(bus.a_session_id(0), 1)

        with pytest.raises(NotFound, match=accepted):
            await ada.flush(settled=True)


async def test_a_spooled_command_leaves_the_disk_when_it_is_settled(bus, tmp_path):
    path = tmp_path / "spool.db"
    given = {"mad": "ada", "token": a_token("ada"), "spool": path}
    async with connect(bus.url, **given) as ada:
        session = await ada.create_session("ada")
        for n in range(50):
            ada.append(session.id, n)
        await ada.flush(settled=True)
        assert ada._requests._publisher._queue._spool.count == 0
        ada.append(session.id, 50)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM waiting").fetchone() == (0,)


async def test_what_is_not_settled_is_sent_again_under_another_lineage(mad, bus):
    """
    In order, once, under its numbers: the managers apply each only once.
    """
    async with mad("ada") as ada:
        session = await ada.create_session("ada")
        ada.append(session.id, 0)
        await ada.flush(settled=True)
        unsettled = ada._requests._publisher._unsettled
        partition = bus.partition(session.id)
        for n in range(1, 40):
            ada.append(session.id, n)
        await ada.flush()
        assert unsettled.count == 39
        unsettled._lineages[partition] = -1  # so the managers' answer names another
        await ada.flush(settled=True)

        found = await ada.get_session(session.id)
    assert found.last_seq == 40
    assert [one.entry for one in found.recent_timeline] == list(range(20, 40))


@pytest.mark.parametrize(
    "broken",
    [
        {"expected_version": "1"},
        {"deadline_ms": "soon"},
        {"trace": 5},
        {"v": 99},
        {"grant": "text"},
        {"session": 5},
        {"kind": None},
    ],
)
async def test_what_does_not_decode_is_refused_and_its_outcome_known(mad, bus, broken):
    """
    Its sender waited for its whole timeout, and outcome said `unknown`.
    """
    async with mad("ada") as ada:
        session = await ada.create_session("ada")
        partition = bus.partition(session.id)
        identifier = f"{ada.instance}.{partition}.9"
        envelope = {
            **{"v": 1, "id": identifier, "kind": "session.update"},
            **{"session": session.id, "body": {"patch": {}}, "reply": True},
        }
        waiting = ada._requests._replies.expect(partition, identifier)
        await bus.client.xadd(
            keys.ingress(partition, "ada"), {COMMAND_FIELD: pack(envelope | broken)}
        )

        reply = await asyncio.wait_for(waiting, 5)
        ada._requests._publisher._counts[partition] = 9
        outcome = await ada.outcome(identifier)

    assert reply.code == Invalid.code
    assert (outcome.state, outcome.code) == ("rejected", "invalid")
    assert msgspec.msgpack.decode(reply.body) is None

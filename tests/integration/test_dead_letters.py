"""
`everbus dead` on a real bus: real letters, looked at, sent again, dropped.
"""

import json
import signal

import pytest
import pytest_asyncio

from everbus.bus import keys
from everbus.bus.messages import pack_envelope
from everbus.bus.wire import Wire
from everbus.gateway.lane.redrive import redriven
from everbus.gateway.store import key_names
from everbus.gateway.store.dead_letters import LetterId, one, redrive
from everbus.gateway.store.scripts import load_scripts
from tests.builders import an_envelope
from tests.commandline import CommandLine, own_logs
from tests.integration.conftest import PARTITIONS, a_grant, a_token, until

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.usefixtures("own_logs"),
]
__all__ = ["own_logs"]
served = pytest.mark.usefixtures("manager")


@pytest_asyncio.fixture(loop_scope="module")
async def everbus(bus):
    """
    The command line on a bus whose dead letters are all of this test.
    """
    for partition in range(PARTITIONS):
        await bus.client.delete(key_names.dead(partition))
    return CommandLine(bus.url)


@pytest.fixture
def bury(bus):
    """
    Has the managers bury commands, and returns their letters' ids as people see them.
    """
    made = iter(range(1_000_000))

    async def buried(kind, session, body=None, *, mad="fiedler", **fields):
        partition = bus.partition(session)
        known = {"id": f"free-{session}-{next(made)}", "grant": a_grant(mad)}
        envelope = an_envelope(kind, session=session, body=body, **known | fields)
        before = await bus.client.xlen(key_names.dead(partition))
        await bus.register(mad)
        await bus.publish(mad, partition, envelope)

        async def there():
            return await bus.client.xlen(key_names.dead(partition)) > before

        await until(there, "a letter")
        [(entry, _)] = await bus.client.xrevrange(key_names.dead(partition), count=1)
        return f"{partition}-{entry.decode()}"

    return buried


async def an_orphan(bus, bury, count=1, partition=0):
    """
    A session that does not exist, and letters of *count* appends to it.
    """
    session = bus.a_session_id(partition)
    found = [
        await bury("timeline.append", session, {"entry": {"n": n}})
        for n in range(1, count + 1)
    ]
    return session, found


async def create(bus, session, mad="fiedler"):
    await bus.register(mad)
    reply = await bus.ask(
        mad, "session.create", session, body={"user_id": "ada"}, grant=a_grant(mad)
    )
    assert reply.code == "ok"


async def said(bus, session):
    return [entry.entry["n"] for entry in await bus.entries(session)]


@served
async def test_letters_are_listed_by_cause_and_one_by_one(bus, everbus, bury):
    session, [lost] = await an_orphan(bus, bury, partition=1)
    strange = await bury("session.rename", session, {"to": "x"}, mad="hymir")

    grouped = (await everbus("dead", "list", "-o", "json")).json
    each = (await everbus("dead", "list", "--each", "-o", "json")).json
    ended = await everbus("dead", "list")

    assert {
        g["cause"]: (g["count"], g["mads"], g["kinds"]) for g in grouped["groups"]
    } == {
        "not_found": (1, {"fiedler": 1}, {"timeline.append": 1}),
        "unknown_kind": (1, {"hymir": 1}, {"session.rename": 1}),
    }
    assert grouped["lengths"]["1"] == 2
    assert [letter["id"] for letter in each["letters"]] == [lost, strange]
    assert each["next"] is None
    assert (ended.code, ended.talk) == (0, "")
    assert "hymir (1)" in ended.said


@served
async def test_filters_and_cursor_lead_through_all_letters(bus, everbus, bury):
    _, first = await an_orphan(bus, bury, 3, partition=0)
    session, second = await an_orphan(bus, bury, 2, partition=2)
    strange = await bury("session.rename", session, mad="hymir")

    async def listed(*filters):
        found, cursor = [], ()
        while True:
            args = ("dead", "list", "--each", "--limit", "2", "-o", "json")
            page = (await everbus(*args, *filters, *cursor)).json
            assert len(page["letters"]) <= 2
            found += [letter["id"] for letter in page["letters"]]
            if page["next"] is None:
                return found
            cursor = ("--cursor", page["next"])

    assert await listed() == [*first, *second, strange]
    assert await listed("--cause", "not_found") == [*first, *second]
    assert await listed("--mad", "hymir") == [strange]
    assert await listed("--kind", "timeline.append", "--partition", "2") == second
    assert await listed("--session", session) == [*second, strange]
    assert await listed("--cause", "not_found", "--mad", "hymir") == []


@served
async def test_show_tells_all_but_the_grant(bus, everbus, bury):
    session = bus.a_session_id(0)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    letter_id = await bury(
        "session.update", session, {"patch": {"tags": ["sea"]}}, trace=trace
    )

    ended = await everbus("dead", "show", letter_id, "-o", "json")
    table = await everbus("dead", "show", letter_id)

    shown = ended.json
    assert shown["cause"] == "not_found"
    assert shown["payload"] == {"patch": {"tags": ["sea"]}}
    assert (shown["mad"], shown["principal"], shown["role"]) == (
        *("fiedler", "fiedler", "mad"),
    )
    assert (shown["trace"], shown["stream"]) == (trace, keys.ingress(0, "fiedler"))
    assert shown["redrivable"]
    assert "grant" not in ended.said + table.said
    assert '{"patch":{"tags":["sea"]}}' in table.said


@served
async def test_what_is_no_command_is_shown_and_left(bus, everbus):
    await bus.register("fiedler")
    await bus.publish("fiedler", 0, b"\xff\xfe" + a_token("fiedler").encode())

    async def there():
        return await bus.client.xlen(key_names.dead(0)) == 1

    await until(there, "a letter")
    [(entry, _)] = await bus.client.xrange(key_names.dead(0))
    letter_id = f"0-{entry.decode()}"

    shown = (await everbus("dead", "show", letter_id, "-o", "json")).json
    tried = await everbus("dead", "redrive", "--all", "-o", "json")

    assert shown["cause"] == "undecodable"
    assert (shown["payload"], shown["payload_hex"][:8]) == (None, "fffe2a2a")
    assert tried.code == 1
    assert tried.json["left_letters"] == {
        letter_id: "there is no command in it; drop it"
    }
    assert await bus.client.xlen(key_names.dead(0)) == 1


@served
async def test_a_redriven_command_is_applied_as_its_senders(bus, everbus, bury):
    """
    With the author, principal and rights that it had, whoever redrives it.
    """
    session, [letter_id] = await an_orphan(bus, bury)
    await create(bus, session)

    dry = await everbus("dead", "redrive", letter_id, "--dry-run", "-o", "json")
    before = await said(bus, session)
    ended = await everbus("dead", "redrive", letter_id, "-o", "json")
    await bus.until_settled(keys.GATEWAY)
    again = await everbus("dead", "redrive", letter_id)

    assert (dry.code, dry.json["would_be_redriven"], before) == (0, 1, [])
    assert (ended.code, ended.json["redriven"]) == (0, 1)
    assert (again.code, "there is no dead letter" in again.talk) == (1, True)
    [entry] = await bus.entries(session)
    assert (entry.author, entry.entry) == ("fiedler", {"n": 1})
    [event] = [
        event
        for record in await bus.records(session)
        for event in record.events
        if event.kind == "timeline.appended"
    ]
    assert (event.mad, event.principal) == ("fiedler", "fiedler")
    assert event.command_id == f"redriven-{letter_id}"


@served
async def test_redriving_gives_nobody_rights_that_it_had_not(bus, everbus, bury):
    """
    A command that claims to be an admin's is judged as what its grant said.
    """
    session = bus.a_session_id(0)
    await create(bus, session, mad="owner")
    claim = {"mad": "owner", "principal": "root", "role": "admin"}
    letter_id = await bury(
        "timeline.append", session, {"entry": {"n": 1}}, on_behalf=claim
    )

    ended = await everbus("dead", "redrive", letter_id)
    await bus.until_settled(keys.GATEWAY)
    listed = (await everbus("dead", "list", "--each", "-o", "json")).json["letters"]

    assert ended.code == 0
    assert [(one["cause"], one["mad"]) for one in listed] == [("forbidden", "fiedler")]
    assert listed[0]["id"] != letter_id
    assert await said(bus, session) == []


@served
async def test_an_edited_letter_carries_the_new_payload(bus, everbus, bury, tmp_path):
    session, [first, second] = await an_orphan(bus, bury, 2)
    third = await bury("timeline.apend", session, {"entry": {"n": 3}})
    await create(bus, session)
    edit = tmp_path / "body.json"
    edit.write_text(json.dumps({"entry": {"n": 20}}))

    wrong = await everbus(
        "dead", "redrive", second, "--edit", "-", typed='{"entri": 1}'
    )
    missing = await everbus("dead", "redrive", second, "--edit", "-", typed="{}")
    unread = await everbus("dead", "redrive", second, "--edit", "-", typed="[1]")
    many = await everbus("dead", "redrive", "--all", "--edit", str(edit))
    still = await bus.client.xlen(key_names.dead(0))
    ended = await everbus("dead", "redrive", second, "--edit", str(edit))
    typo = await everbus("dead", "redrive", third)
    mended = await everbus("dead", "redrive", third, "--as-kind", "timeline.append")
    kept = await everbus("dead", "redrive", first)
    await bus.until_settled(keys.GATEWAY)

    assert (wrong.code, "no field 'entri'; it has: entry" in wrong.talk) == (2, True)
    assert (missing.code, "entry" in missing.talk) == (2, True)
    assert (unread.code, "wanted a JSON object" in unread.talk) == (2, True)
    assert (many.code, still) == (2, 3)
    assert (typo.code, "know no kind 'timeline.apend'" in typo.talk) == (1, True)
    assert (ended.code, mended.code, kept.code) == (0, 0, 0)
    assert await said(bus, session) == [20, 3, 1]


@served
async def test_what_dies_again_is_a_new_letter_and_no_loop(bus, everbus, bury):
    _, ids = await an_orphan(bus, bury, 3)

    ended = await everbus("dead", "redrive", "--all", "-o", "json")
    await bus.until_settled(keys.GATEWAY)
    listed = (await everbus("dead", "list", "--each", "-o", "json")).json["letters"]

    assert ended.json["redriven"] == 3
    assert [letter["command"] for letter in listed] == [f"redriven-{i}" for i in ids]
    assert {letter["mad"] for letter in listed} == {"fiedler"}


@served
async def test_drop_asks_and_then_removes_only_what_was_chosen(bus, everbus, bury):
    session, [kept] = await an_orphan(bus, bury)
    await bury("session.rename", session)
    await bury("session.rename", session)
    chosen = ("dead", "drop", "--cause", "unknown_kind")

    dry = await everbus(*chosen, "--dry-run", "-o", "json")
    declined = await everbus(*chosen, typed="n\n")
    before = await bus.client.xlen(key_names.dead(0))
    agreed = await everbus(*chosen, "-o", "json", typed="y\n")
    left = (await everbus("dead", "list", "--each", "-o", "json")).json["letters"]
    last = await everbus("dead", "drop", kept, "--yes")
    gone = await everbus("dead", "drop", kept, "--yes")

    assert (dry.json["would_be_dropped"], before) == (2, 3)
    assert (declined.code, "drop 2 for good?" in declined.talk) == (1, True)
    assert (agreed.code, agreed.json["dropped"]) == (0, 2)
    assert [letter["id"] for letter in left] == [kept]
    assert (last.code, gone.code) == (0, 1)
    assert await bus.client.xlen(key_names.dead(0)) == 0


@served
async def test_two_who_redrive_the_same_letter_send_it_once(bus, everbus, bury):
    """
    Both have read it before either sends: the slower one is told that it is gone.
    """
    session, [letter_id] = await an_orphan(bus, bury)
    await create(bus, session)
    partition, _, entry = letter_id.partition("-")
    identifier = LetterId(int(partition), entry)
    wires = [Wire(bus.url), Wire(bus.url)]
    read = [await one(wire, identifier) for wire in wires]

    replies = []
    for wire, buried in zip(wires, read, strict=True):
        await load_scripts(wire)
        packed = pack_envelope(redriven(buried, PARTITIONS))
        replies.append(await wire.call(*redrive(identifier, packed)))
        await wire.close()
    await bus.until_settled(keys.GATEWAY)

    assert replies == [1, 0]
    assert await said(bus, session) == [1]


@served
async def test_a_redrive_that_was_sent_twice_over_the_ledger_is_applied_once(
    bus, everbus, bury
):
    """
    A server that lost the step that removed the letter, as a promoted replica may,
    has the letter once more; the ledger knows its command.
    """
    session, [letter_id] = await an_orphan(bus, bury)
    await create(bus, session)
    stream = key_names.dead(0)
    [(entry, _)] = await bus.client.xrange(stream)
    lost_step = await bus.client.dump(stream)

    await everbus("dead", "redrive", letter_id)
    await bus.client.restore(stream, 0, lost_step, replace=True)
    again = await everbus("dead", "redrive", letter_id, "-o", "json")
    await bus.until_settled(keys.GATEWAY)

    assert (again.json["redriven"], letter_id) == (1, f"0-{entry.decode()}")
    assert await said(bus, session) == [1]


@served
async def test_two_processes_redrive_all_and_none_twice(bus, everbus, bury):
    session, ids = await an_orphan(bus, bury, 30)
    await create(bus, session)
    chosen = ("dead", "redrive", "--all", "--rate", "100", "-o", "json")

    both = [await everbus.start(*chosen), await everbus.start(*chosen)]
    told = [json.loads((await process.communicate())[0]) for process in both]
    await bus.until_settled(keys.GATEWAY)

    assert sum(one["redriven"] for one in told) == len(ids)
    assert sorted(await said(bus, session)) == list(range(1, 31))


@served
async def test_a_killed_redrive_has_lost_and_doubled_nothing(bus, everbus, bury):
    """
    What it had not come to lies there still, and redriving goes on with it.
    """
    session, _ = await an_orphan(bus, bury, 12)
    await create(bus, session)
    process = await everbus.start("dead", "redrive", "--all", "--rate", "20")

    async def under_way():
        return await bus.client.xlen(key_names.dead(0)) < 10

    await until(under_way, "some letters redriven")
    process.send_signal(signal.SIGKILL)
    await process.wait()
    await bus.until_settled(keys.GATEWAY)
    left = await bus.client.xlen(key_names.dead(0))
    applied = await said(bus, session)
    rest = await everbus("dead", "redrive", "--all", "-o", "json")
    await bus.until_settled(keys.GATEWAY)

    assert 0 < left < 10
    assert applied == list(range(1, 13 - left))
    assert rest.json["redriven"] == left
    assert await said(bus, session) == list(range(1, 13))


@served
async def test_ctrl_c_tells_how_far_it_came(bus, everbus, bury):
    session, _ = await an_orphan(bus, bury, 6)
    await create(bus, session)
    process = await everbus.start("dead", "redrive", "--all", "--rate", "2")

    async def under_way():
        return await bus.client.xlen(key_names.dead(0)) < 6

    await until(under_way, "some letters redriven")
    process.send_signal(signal.SIGINT)
    _, talk = await process.communicate()

    assert process.returncode == 130
    assert b"interrupted: " in talk
    assert b"Traceback" not in talk


@served
async def test_a_full_partition_is_told_of(bus, everbus, bury, monkeypatch):
    monkeypatch.setattr("everbus.compose.dead_letters.NEAR_CAP", 2)
    _, ids = await an_orphan(bus, bury, 2)

    listed = await everbus("dead", "list", "-o", "json")
    shown = await everbus("dead", "show", ids[0])

    assert listed.json["full"] == [0]
    assert "partition 0 has 2 dead letters; from about 10,000 on" in listed.talk
    assert "partition 0 has 2 dead letters" in shown.talk

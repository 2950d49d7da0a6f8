"""
The commands that write, on a running manager: session create, update and delete,
append, join; and those that look closer: lanes, request show.
"""

import json
import os

import pytest

from everbus.bus import connect, keys
from tests.commandline import CommandLine, own_logs
from tests.integration.conftest import PARTITIONS, a_token

__all__ = ["own_logs"]
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.usefixtures("own_logs", "manager"),
]


@pytest.fixture
def everbus(bus):
    command = CommandLine(bus.url)
    command._env |= {
        "EVERBUS_TOKEN": a_token("ann", role="admin"),
        "EVERBUS_MAD": "ann",
    }
    return command


async def test_a_session_is_created_changed_and_deleted(everbus, tmp_path):
    made = await everbus("session", "create", "ada", "-o", "json")
    session = made.json["id"]
    patch = tmp_path / "patch.json"
    patch.write_text('{"tags": ["sea"]}')

    changed = await everbus("session", "update", session, f"@{patch}", "-o", "json")
    stale = await everbus("session", "update", session, "{}", "--expected-version", "1")
    kept = await everbus("session", "delete", session, typed="n\n")
    gone = await everbus("session", "delete", session, "--yes")

    assert (changed.json["version"], changed.json["tags"]) == (2, ["sea"])
    assert stale.code == 5
    assert kept.code == 1
    assert gone.code == 0
    assert (await everbus("session", "show", session)).code == 1


async def test_an_entry_is_appended_from_stdin_as_well(everbus):
    session = (await everbus("session", "create", "ada", "-o", "json")).json["id"]

    first = await everbus("append", session, json.dumps({"text": "hi"}))
    second = await everbus("append", session, "-", "-o", "json", typed='"two"')
    joined = await everbus("join", session, "--role", "reader", "-o", "json")
    late = await everbus("append", session, '"three"', "--expected-last-seq", "1")
    refused = await everbus("append", session, "no json")

    assert first.said.strip() == "1"
    assert second.json == {"session": session, "seq": 2}
    assert late.code == 5
    assert "ann" in joined.json["participants"]
    assert refused.code == 2
    assert "needs quotes inside" in " ".join(refused.talk.replace("│", "").split())


async def test_a_turn_is_taken_from_options_or_a_file(everbus, tmp_path):
    session = (await everbus("session", "create", "ada", "-o", "json")).json["id"]
    whole = tmp_path / "turn.json"
    whole.write_text('{"entries": ["c"], "patch": {"tags": ["sea"]}}')
    two = ("--entry", '"a"', "--entry", '{"n": 1}')

    taken = await everbus("turn", session, *two, "--turn-id", "run-7")
    filed = await everbus("turn", session, "--file", str(whole), "-o", "json")
    piped = await everbus("turn", session, "--file", "-", typed='["d", "e"]')
    stale = await everbus("turn", session, *two, "--expected-version", "1")
    late = await everbus("turn", session, *two, "--expected-last-seq", "1")
    both = await everbus("turn", session, *two, "--file", str(whole))
    whole.write_text('{"entrys": []}')
    wrong = await everbus("turn", session, "--file", str(whole))
    once = ("--patch", '{"tags": []}', "--command-id", f"once-{session}")
    twice = [await everbus("turn", session, *once) for _ in "12"]
    shown = await everbus("timeline", session)
    read = await everbus("timeline", session, "-o", "json")

    assert taken.said.strip() == "version 2, seqs 1 to 2"
    assert (filed.json["version"], filed.json["seqs"]) == (3, [3])
    assert piped.said.strip() == "version 4, seqs 4 to 5"
    assert [one.said.strip() for one in twice] == ["version 5, seqs none"] * 2
    assert (stale.code, late.code, both.code, wrong.code) == (5, 5, 2, 2)
    assert "run-7" in shown.said
    assert [one["entry"] for one in read.json["entries"]] == [
        *("a", {"n": 1}),
        *("c", "d", "e"),
    ]
    assert read.json["entries"][1]["turn"] == "run-7"


async def test_a_context_leads_to_its_bus_as_its_mad(bus, tmp_path, monkeypatch):
    """
    With nothing in the environment: the bus, the MAD and the token are the context's.
    """
    everbus = CommandLine(bus.url)
    everbus._env = {"COLUMNS": "200"}
    outside = {n: v for n, v in os.environ.items() if not n.startswith("EVERBUS_")}
    monkeypatch.setattr(os, "environ", {**outside, "XDG_CONFIG_HOME": str(tmp_path)})
    token = tmp_path / "token"
    token.write_text(a_token("ann", role="admin"))
    added = ("context", "add", "here", "--url", bus.url, "--mad", "ann")
    await everbus(*added, "--token-command", f"cat {token}")
    await everbus("context", "add", "away", "--url", "redis://127.0.0.1:1")
    await everbus("context", "use", "away")

    made = await everbus("--context", "here", "session", "create", "a", "-o", "json")
    joined = await everbus("--context", "here", "join", made.json["id"], "-o", "json")

    assert "ann" in joined.json["participants"]


async def test_lanes_name_their_owner(everbus):
    lanes = (await everbus("lanes", "-o", "json")).json

    assert {str(p) for p in range(PARTITIONS)} <= {lane["name"] for lane in lanes}
    assert all(lane["owner"] for lane in lanes)


async def test_the_life_of_a_command_is_shown(everbus, bus):
    async with connect(bus.url, mad="ann", token=a_token("ann")) as ann:
        session = await ann.create_session("ada")
        command_id = ann.append(session.id, {"n": 1})
        await ann.flush()
        await ann.timeline(session.id)

    shown = (await everbus("request", "show", command_id, "-o", "json")).json

    assert {"settled", "committed"} <= {step["step"] for step in shown}
    nobodys = f"nobody.{keys.partition_of(session.id, PARTITIONS)}.1"
    assert (await everbus("request", "show", nobodys)).code == 1
    assert (await everbus("request", "show", "rubbish")).code == 2


async def test_a_command_of_any_kind_is_called(everbus, tmp_path):
    """
    With a session, without one, and about a command: each takes its own way.
    """
    session = "called-by-hand"
    entry = tmp_path / "entry.json"
    entry.write_text('{"entry": {"text": "hi"}}')

    made = await everbus("call", "session.create", session, "--body", '{"user_id":"a"}')
    said = await everbus("call", "timeline.append", session, "--body", f"@{entry}")
    read = await everbus("call", "timeline.read", session, "--body", "-", typed="{}")
    stats = await everbus("call", "session.stats")
    asked = '{"command_id": "nobody.0.1"}'
    outcome = await everbus("call", "request.outcome", "--body", asked)

    assert (made.json["id"], made.json["owner_id"]) == (session, "a")
    assert said.json == {"seq": 1}
    assert [one["entry"] for one in read.json["entries"]] == [{"text": "hi"}]
    assert (stats.code, "EVERBUS_MONGO_URL" in stats.talk) == (3, True)
    assert outcome.json["state"] == "unknown"


async def test_a_wrong_call_says_what_is_there(everbus):
    unknown = await everbus("call", "session.gte", "s")
    missing = await everbus("call", "session.get")
    nobody = await everbus("call", "session.get", "not-there")
    stale = ("call", "session.update", "stale", "--body", '{"patch": {"tags": ["a"]}}')
    await everbus("call", "session.create", "stale", "--body", '{"user_id": "a"}')

    assert unknown.code == missing.code == 2
    assert "did you mean session.get?" in unknown.talk
    assert "timeline.append" in unknown.talk
    assert "everbus call session.get SESSION" in missing.talk
    assert nobody.code == 1
    assert (await everbus(*stale, "--expected-version", "7")).code == 5

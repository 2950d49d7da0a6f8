"""
Files of recorded conversations: each mistake is named with its line and remedy.
"""

import json

import pytest

from everbus.compose.exit_codes import USAGE, Failed
from everbus.compose.recordings import MAX_ROLES, Recording, read_recordings

LINE = {"conversation_id": "c1", "user_id": "ada", "messages": [{"role": "user"}]}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"{", "truncated"),
        (b"\xff", "malformed"),
        (b"[1]", "got `array`"),
        (json.dumps(LINE | {"conversation_id": "a b"}).encode(), "'a b-x'"),
        (json.dumps(LINE | {"user_id": ""}).encode(), "user_id is ''"),
        (json.dumps(LINE | {"messages": []}).encode(), "messages is empty"),
        (json.dumps(LINE | {"messages": ["hi"]}).encode(), "messages[0]"),
        (json.dumps(LINE | {"messages": [{"a": 1}]}).encode(), "messages[0].role"),
        (
            json.dumps(LINE | {"messages": [{"role": "user", "$a": 1}]}).encode(),
            "messages[0] has the key '$a'",
        ),
        (
            json.dumps(LINE | {"messages": [{"role": "u", "t": "x" * 2**18}]}).encode(),
            "more than 262144 bytes",
        ),
        (b"[" * 100_000, "line 2"),
    ],
)
def test_a_bad_line_is_named_with_its_remedy(tmp_path, line, told):
    path = tmp_path / "conversations.jsonl"
    path.write_bytes(json.dumps(LINE | {"conversation_id": "c0"}).encode() + b"\n")
    path.write_bytes(path.read_bytes() + line + b"\n")

    with pytest.raises(Failed) as failed:
        read_recordings(path, "x")

    assert failed.value.exit_code == USAGE
    assert f"{path}, line 2: " in str(failed.value)
    assert told in str(failed.value)
    assert "Correct or delete the line" in str(failed.value)


def test_a_conversation_that_comes_twice_is_refused(tmp_path):
    path = tmp_path / "conversations.jsonl"
    path.write_text(f"{json.dumps(LINE)}\n\n{json.dumps(LINE)}\n")

    with pytest.raises(Failed, match="line 3: conversation_id 'c1' stands twice"):
        read_recordings(path, "x")


def test_a_file_without_conversations_is_refused(tmp_path):
    path = tmp_path / "conversations.jsonl"
    path.write_text("\n")

    with pytest.raises(Failed, match="no conversation"):
        read_recordings(path, "x")


def test_too_many_roles_are_refused(tmp_path):
    path = tmp_path / "conversations.jsonl"
    messages = [{"role": f"r{n}"} for n in range(MAX_ROLES + 1)]
    path.write_text(json.dumps(LINE | {"messages": messages}))

    with pytest.raises(Failed, match=f"{MAX_ROLES + 1} roles"):
        read_recordings(path, "x")


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_an_unreadable_file_is_a_mistake_of_the_user(tmp_path, name):
    with pytest.raises(Failed, match="readable file") as failed:
        read_recordings(tmp_path / name, "x")

    assert failed.value.exit_code == USAGE


def test_the_limit_stops_reading(tmp_path):
    path = tmp_path / "conversations.jsonl"
    path.write_text(f"{json.dumps(LINE)}\nrubbish\n")

    [recording] = read_recordings(path, "x", limit=1)

    assert recording.session_id == "c1-x"


def test_a_recording_is_cut_where_the_role_changes():
    roles = ("user", "assistant", "tool", "tool", "user")
    recording = Recording("c1", "ada", "c1-x", tuple({"role": r} for r in roles))

    runs = [(run.role, len(run.messages)) for run in recording.runs()]

    assert runs == [("user", 1), ("assistant", 1), ("tool", 2), ("user", 1)]
    assert recording.roles == ["user", "assistant", "tool"]

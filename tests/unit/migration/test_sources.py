"""
The old stores: each row once, in order, from any position, and none of them written to.
"""

import json
import sqlite3

import pytest

from everbus.compose.exit_codes import Failed
from everbus.compose.migration import tables
from everbus.compose.migration.mapping import load_mapping
from everbus.compose.migration.opening import open_store
from everbus.compose.migration.rules import MappingError
from tests.unit.migration.old_store import MAPPING, a_mapping_file

LINES = """
    [source]
    kind = "jsonl"
    path = "old.jsonl"
    [session]
    owner = "user"
    [entry]
    whole = true
    """
OPENAI = """
    [source]
    kind = "openai"
    path = "sdk.db"
    [session]
    owner = {value = "ada"}
    """


def opened(folder, text=MAPPING):
    return open_store(load_mapping(a_mapping_file(folder, text)))


def keys(found):
    return [one.key for one in found]


def test_tables_are_read_from_any_position_across_pages(old, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "PAGE_ROWS", 2)
    for key in "abcde":
        old.add(key)
    store = opened(tmp_path)

    everything = list(store.conversations())

    assert keys(everything) == list("abcde")
    assert keys(store.conversations(everything[1].position)) == list("cde")
    assert store.count() == 5
    store.close()


def test_messages_come_in_order_and_in_pages(old, tmp_path):
    old.add("a", messages=3)
    old.add("b", messages=1)
    store = opened(tmp_path)
    conversation = store.conversation("a")

    bodies = [m.fields["body"] for m in store.messages(conversation, 1, 5)]

    assert bodies == ["a/1", "a/2"]
    assert store.conversation("nobody") is None
    store.close()


def test_the_old_store_is_opened_read_only(old, tmp_path):
    store = opened(tmp_path)

    with pytest.raises(Failed, match="readonly"):
        store._rows("DELETE FROM messages")
    store.close()


@pytest.mark.parametrize(
    ("old_text", "new_text", "told"),
    [
        ('path = "old.db"', 'path = "none.db"', "none.db"),
        ('path = "old.db"', 'path = "old.db"\nmessages = "m"', "no table 'm'"),
        ('path = "old.db"', 'path = "old.db"\norder = "n"', "no column 'n'; it has"),
        ('path = "old.db"', 'path = "old.db"\nid = "title"', "a different text"),
        ('tags = "labels"', 'tags = "lables"', "no column 'lables'; it has"),
        ('content = "body"', 'content = "bdoy.text"', "no column 'bdoy.text'"),
    ],
)
def test_a_store_that_does_not_fit_is_refused(old, tmp_path, old_text, new_text, told):
    old.add("a")
    old.add("b")

    with pytest.raises(MappingError, match=told):
        opened(tmp_path, MAPPING.replace(old_text, new_text, 1))


def test_lines_are_read_from_any_position_and_bad_ones_are_named(tmp_path):
    lines = [
        '{"id": "a", "user": "u", "messages": [{"n": 1}, 2]}',
        "",
        "{",
        '{"id": "b", "user": "u"}',
        '{"id": "c", "user": "u", "messages": []}',
    ]
    (tmp_path / "old.jsonl").write_text("\n".join(lines))
    store = opened(tmp_path, LINES)

    first, bad, bare, last = store.conversations()

    assert [first.where, bad.where, last.where] == ["line 1", "line 3", "line 5"]
    assert "unreadable" in bad.problem
    assert "messages is no list" in bare.problem
    assert keys(store.conversations(bare.position)) == ["c"]
    assert [m.problem for m in store.messages(first, 0, 9)] == ["", "wanted an object"]
    assert store.count() == 4


def test_sessions_of_the_openai_sdk_need_only_an_owner(tmp_path):
    """
    The schema of `SQLiteSession` in openai-agents 0.24.
    """
    with sqlite3.connect(tmp_path / "sdk.db") as db:
        db.executescript(
            """
            CREATE TABLE agent_sessions (session_id TEXT PRIMARY KEY,
                created_at TIMESTAMP, updated_at TIMESTAMP);
            CREATE TABLE agent_messages (id INTEGER PRIMARY KEY AUTOINCREMENT,
                session_id TEXT NOT NULL, message_data TEXT NOT NULL,
                created_at TIMESTAMP);
            INSERT INTO agent_sessions VALUES ('s1', '2026-01-01', '2026-01-01');
            """
        )
        item = json.dumps({"role": "user", "content": "hi"})
        insert = "INSERT INTO agent_messages (session_id, message_data) VALUES (?, ?)"
        db.execute(insert, ("s1", item))
    db.close()
    mapping = load_mapping(a_mapping_file(tmp_path, OPENAI))
    store = open_store(mapping)
    (conversation,) = store.conversations()
    (message,) = store.messages(conversation, 0, 9)

    assert mapping.session(conversation.fields)[:2] == ("s1", "ada")
    assert mapping.entry(message.fields) == {"role": "user", "content": "hi"}
    store.close()

"""
Old stores for tests: a small SQLite file, and its mapping.
"""

import sqlite3
import textwrap

MAPPING = """
[source]
kind = "sqlite"
path = "old.db"

[session]
owner = "user_name"
tags = "labels"
title = "title"
mads = ["fiedler"]

[session.full_context]
notes = {field = "notes", type = "json"}

[entry.fields]
role = {field = "role", type = "text", required = true}
content = "body"
at = {field = "created", type = "time_s"}

[entry]
rest = "extra"
leave_out = ["id", "conversation_id"]
"""


class OldSqlite:
    """
    A MAD's own store of conversations and messages.
    """

    def __init__(self, folder):
        self.path = folder / "old.db"
        self.db = sqlite3.connect(self.path, isolation_level=None, timeout=30)
        self.db.executescript(
            """
            PRAGMA journal_mode = WAL;
            CREATE TABLE conversations (
                id TEXT PRIMARY KEY, user_name, title, labels, notes);
            CREATE TABLE messages (
                id INTEGER PRIMARY KEY, conversation_id, role, body, created, model);
            CREATE INDEX by_conversation ON messages (conversation_id, id);
            """
        )

    def add(self, key, user="ada", messages=0, *, title="t", labels="a, b"):
        self.db.execute(
            "INSERT INTO conversations VALUES (?, ?, ?, ?, ?)",
            (key, user, title, labels, '{"n": 1, "none": null}'),
        )
        for n in range(messages):
            self.say(key, f"{key}/{n}")

    def say(self, key, body, role="user", created=1_700_000_000, model=None):
        self.db.execute(
            "INSERT INTO messages (conversation_id, role, body, created, model)"
            " VALUES (?, ?, ?, ?, ?)",
            (key, role, body, created, model),
        )

    def bodies(self, key):
        rows = self.db.execute(
            "SELECT body FROM messages WHERE conversation_id = ? ORDER BY id", (key,)
        )
        return [body for (body,) in rows]

    def close(self):
        self.db.close()


def a_mapping_file(folder, text=MAPPING):
    path = folder / "migrate.toml"
    path.write_text(textwrap.dedent(text))

    return path

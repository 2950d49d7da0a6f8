"""
A MAD with a store of its own, on its way into everbus: docs/migrate.md, step by step.

It shows how to
- keep the old store as it is, with one function that writes to it;
- put `DualStore` around it, so that everbus follows each write;
- read from the store that leads.

Run it: start `everbus dev`. Then, in another terminal:

    set -a; . .everbus/env; set +a
    python chat.py ada tides "How high is the water?"
"""

import asyncio
import sqlite3
import sys
import time
from collections.abc import Mapping
from typing import Any

import everbus
from everbus.migration import DualStore

SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS chats (id TEXT PRIMARY KEY, user_name, title, labels);
CREATE TABLE IF NOT EXISTS lines (
    id INTEGER PRIMARY KEY, chat TEXT, role TEXT, body TEXT, created REAL);
"""


class OldChats:
    """
    What the MAD had before: two tables.
    """

    def __init__(self, path: str = "chat.db") -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript(SCHEMA)

    def open(self, chat: str, user: str) -> None:
        """
        Make the chat, if there is none.
        """
        self._db.execute(
            "INSERT OR IGNORE INTO chats VALUES (?, ?, ?, ?)", (chat, user, chat, "")
        )

    async def write(self, chat: str, line: Mapping[str, Any]) -> None:
        """
        Add one line; this is what DualStore calls.
        """
        self._db.execute(
            "INSERT INTO lines (chat, role, body, created) VALUES (?, ?, ?, ?)",
            (chat, line["role"], line["body"], line["created"]),
        )

    def read(self, chat: str) -> list[tuple[str, str]]:
        """
        Role and text of each line.
        """
        query = "SELECT role, body FROM lines WHERE chat = ? ORDER BY id"

        return self._db.execute(query, (chat,)).fetchall()

    def close(self) -> None:
        """
        Close the file.
        """
        self._db.close()


class Chats:
    """
    The same chats, in both stores.
    """

    def __init__(self, old: OldChats, mad: everbus.Mad, store: DualStore) -> None:
        self._old, self._mad, self._store = old, mad, store

    async def say(self, chat: str, user: str, text: str, role: str = "user") -> None:
        """
        Add a line; every column that the mapping names is given.
        """
        line = {"role": role, "body": text, "created": time.time()}
        await self._store.append(chat, line, user=user)

    async def read(self, chat: str, user: str) -> list[tuple[str, str]]:
        """
        The lines, from the store that leads for the user.
        """
        if self._store.lead(user) == "old":
            return self._old.read(chat)
        page = await self._mad.timeline(await self._store.session_id(chat), limit=1000)

        return [(found.entry["role"], found.entry["text"]) for found in page.entries]


async def main(user: str, chat: str, text: str) -> None:
    """
    Say *text*, and print the chat.
    """
    old = OldChats()
    old.open(chat, user)
    async with (
        everbus.connect(mad="fiedler") as mad,
        DualStore("migrate.toml", mad, old.write, cutover="cutover.json") as store,
    ):
        chats = Chats(old, mad, store)
        await chats.say(chat, user, text)
        for role, said in await chats.read(chat, user):
            print(f"{role}: {said}")
    old.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))

"""
How long a backup and its restore take, and how much memory: 100,000 timeline entries.

    python -m tests.bench.backup [--entries 100000] [--sessions 1000] [--passes 3]

In many sessions, or in one. Each command is a process of its own; its peak of memory
is what the system says of it. Each restore is compared with the source by counts.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, NamedTuple

from pymongo import AsyncMongoClient

from everbus.bus.messages import Session
from everbus.gateway.store.claims import Branch
from everbus.gateway.store.mongo.documents import new_document
from everbus.gateway.store.mongo.driver import Mongo
from everbus.gateway.store.mongo.indexes import make_indexes
from tests.servers import inherited, secantus

AT = datetime(2026, 11, 1, tzinfo=UTC)
WORDS = ("tide", "comes", "in", "goes", "out", "while", "nobody", "asked", "it")


class Ran(NamedTuple):
    """
    What one command took.
    """

    seconds: float
    rss_mib: float


def rows_of(session_id: str, entries: int) -> Iterator[dict[str, Any]]:
    """
    The entries of one session, of some 300 bytes each.
    """
    random = Random(session_id)
    for seq in range(1, entries + 1):
        text = " ".join(random.choices(WORDS, k=60))
        yield {
            "session": session_id,
            "life": AT,
            "seq": seq,
            "at": AT + timedelta(seconds=seq),
            "author": "fiedler",
            "entry": {"role": "assistant", "n": seq, "text": text},
            "command": f"01a22825{seq:024x}",
            "principal": "fiedler",
        }


def event_of(session_id: str) -> dict[str, Any]:
    """
    The event of a session's creation.
    """
    return {
        "_id": f"{session_id}/1",
        "session": session_id,
        "life": AT,
        "version": 1,
        "version_from": 0,
        "seq": 0,
        "notices": 0,
        "kind": "session.created",
        "mad": "fiedler",
        "principal": "fiedler",
        "command": session_id,
        "at": AT,
        "patch": {"owner_id": "ada"},
    }


async def fill(database: Any, sessions: int, entries: int) -> None:
    """
    So many sessions with so many entries each.
    """
    ids = [f"s{n:06}" for n in range(sessions)]
    rows = (row for session_id in ids for row in rows_of(session_id, entries))
    while some := list(islice(rows, 5_000)):
        await database["timeline"].insert_many(some)
    await database["events"].insert_many([event_of(one) for one in ids])
    made = [
        Session(
            id=session_id,
            owner_id="ada",
            created_at=AT,
            last_active=AT,
            version=1,
            last_seq=entries,
        )
        for session_id in ids
    ]
    documents = [new_document(session, {}, Branch()) for session in made]
    await database["sessions"].insert_many(documents)


def ran(environment: dict[str, str], *arguments: str) -> Ran:
    """
    One command, from its start to its end.
    """
    program = "from everbus.compose.cli import main; main()"
    began = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env={**inherited(), **environment},
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{arguments} ended with {child.returncode}")

    return Ran(time.monotonic() - began, usage.ru_maxrss / 1024)


def shown(what: str, all_of_them: list[Ran]) -> str:
    """
    A row of a table: median [min-max].
    """
    seconds = [one.seconds for one in all_of_them]
    rss = [one.rss_mib for one in all_of_them]
    spread = f"{median(seconds):.1f} [{min(seconds):.1f}-{max(seconds):.1f}]"

    return f"| {what} | {spread} | {max(rss):.0f} | {len(all_of_them)} |"


async def measure(url: str, folder: Path, shape: tuple[int, int], passes: int) -> None:
    """
    Fill one database, back it up and restore it, *passes* times.
    """
    name = f"s{shape[0]}"
    mongo = Mongo(url, name, "motor", 60_000)
    await make_indexes(mongo)
    mongo.close()
    client: AsyncMongoClient[Any] = AsyncMongoClient(url, tz_aware=True)
    await fill(client[name], *shape)
    taken, restored = [], []
    for n in range(passes):
        path = folder / f"{name}-{n}"
        environment = {"EVERBUS_MONGO_URL": url}
        taken.append(ran(environment, "backup", str(path), "--database", name))
        size = sum(file.stat().st_size for file in path.iterdir())
        target = f"{name}r{n}"
        restored.append(ran(environment, "restore", str(path), "--database", target))
        count = await client[target]["timeline"].count_documents({})
        if count != shape[0] * shape[1]:
            raise RuntimeError(f"{count} entries were restored")
    what = f"{shape[0]:,} sessions of {shape[1]:,} entries"
    print(shown(f"backup, {what} ({size / 2**20:.1f} MiB)", taken), flush=True)
    print(shown(f"restore, {what}", restored), flush=True)
    await client.close()


async def main() -> None:
    """
    One shape on a SecantusDB of its own.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--sessions", type=int, default=1_000)
    parser.add_argument("--passes", type=int, default=3)
    chosen = parser.parse_args()
    shape = (chosen.sessions, chosen.entries // chosen.sessions)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        async with secantus(folder) as server:
            await measure(server.url, folder, shape, chosen.passes)


if __name__ == "__main__":
    asyncio.run(main())

"""
A MAD moves out of its own SQLite store while it is in use, on real servers.

The 200 recorded conversations lie beside the checkout; where they do not, the same runs
over conversations made here.
"""

import asyncio
import json
import signal
import sqlite3
import time
from functools import partial
from itertools import count
from pathlib import Path

import msgspec
import pytest
from pymongo import MongoClient

from everbus.compose.migration import cutover as cutover_module
from everbus.compose.migration.cutover import CutoverFile, CutoverPlan, Leads
from everbus.compose.migration.mapping import session_id_of
from everbus.migration import DualStore
from tests.processes import PIPE, start_python
from tests.replicas import until
from tests.stack import PARTITIONS

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

REAL = Path(__file__).parents[3] / "shared" / "data" / "airline-conversations.jsonl"
LIVE = 12
PER_LIVE = 15
PATIENCE_S = 60.0
MAPPING = """
[source]
kind = "sqlite"
path = "old.db"

[session]
owner = "user_id"
mads = ["fiedler"]

[entry.fields]
role = {field = "role", type = "text", required = true}
content = "content"
extra = {field = "extra", type = "json"}
at = {field = "created", type = "time_s"}
"""
MONGO_MAPPING = """
[source]
kind = "mongodb"
url_env = "OLD_MONGO_URL"
database = "old"
id = "_id"
conversation = "talk"
order = "_id"

[session]
id = "_id"
owner = "user"

[entry.fields]
role = "role"
text = "text"
at = {field = "at", type = "time"}
"""


def made(content):
    return {"role": "user", "content": content}


def recordings():
    """
    Conversation's id, user and messages, of each recorded conversation.
    """
    if not REAL.is_file():
        return [
            (
                f"c{c}",
                f"u{c % 7}",
                [{"role": "user", "content": f"{c}/{n}"} for n in range(25)],
            )
            for c in range(200)
        ]
    lines = map(json.loads, REAL.read_text().splitlines())
    return [(one["conversation_id"], one["user_id"], one["messages"]) for one in lines]


class OldStore:
    """
    What the MAD had of its own.
    """

    def __init__(self, folder):
        self.db = sqlite3.connect(folder / "old.db", isolation_level=None, timeout=30)
        self.db.executescript(
            """
            PRAGMA journal_mode = WAL;
            PRAGMA synchronous = OFF;
            CREATE TABLE conversations (id TEXT PRIMARY KEY, user_id TEXT);
            CREATE TABLE messages (id INTEGER PRIMARY KEY, conversation_id TEXT,
                role TEXT, content TEXT, extra TEXT, created REAL);
            CREATE INDEX in_order ON messages (conversation_id, id);
            """
        )

    def fill(self):
        found = recordings()
        self.db.execute("BEGIN")
        for key, user, messages in found:
            self.db.execute("INSERT INTO conversations VALUES (?, ?)", (key, user))
            for message in messages:
                self.say(key, self.row(dict(message)))
        self.db.execute("COMMIT")
        return found

    def row(self, message):
        role, content = message.pop("role"), message.pop("content", None)
        extra = json.dumps(message) if message else None
        return {"role": role, "content": content, "extra": extra, "created": 1.7e9}

    def say(self, key, row):
        self.db.execute(
            "INSERT INTO messages (conversation_id, role, content, extra, created)"
            " VALUES (?, :role, :content, :extra, :created)".replace("?", ":key"),
            {"key": key, **row},
        )

    async def write(self, key, row):
        self.say(key, row)

    def contents(self, key):
        rows = self.db.execute(
            "SELECT role, content FROM messages WHERE conversation_id = ? ORDER BY id",
            (key,),
        )
        return rows.fetchall()

    def total(self):
        return self.db.execute("SELECT COUNT(*) FROM messages").fetchone()[0]


class Everbus:
    """
    The command as a process of its own.
    """

    def __init__(self, stack, **settings):
        self._env = stack.environment() | settings

    async def start(self, *arguments):
        return await start_python(
            *("-m", "everbus", "migrate", *map(str, arguments), "-o", "json"),
            env=self._env,
            stdout=PIPE,
            stderr=PIPE,
        )

    async def __call__(self, *arguments):
        process = await self.start(*arguments)
        try:
            async with asyncio.timeout(PATIENCE_S):
                out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode, (json.loads(out) if out else {}), err.decode()


async def killed_in_the_middle(everbus, mapping):
    """
    A backfill that dies by SIGKILL behind its first batch.
    """
    position = mapping.with_name("migrate.toml.position.json")
    process = await everbus.start("backfill", mapping, "--rate", 2000)
    try:
        await until(position.exists, PATIENCE_S)
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()
    assert msgspec.json.decode(position.read_bytes())["after"] is not None


class Talk:
    """
    People who go on talking, each conversation through one of two wrappers.

    A refusal would end the test.
    """

    def __init__(self, old, stores, owners):
        self.old, self.stores, self.owners = old, stores, owners
        self.before, self.over, self.begun = old.total(), False, asyncio.Event()

    async def about(self, key):
        store = self.stores[hash(key) % 2]
        for n in count():
            row = self.old.row({"role": "user", "content": f"live {key} {n}"})
            await store.append(key, row, user=self.owners[key])
            self.begun.set()
            if n >= PER_LIVE and self.over:
                return
            await asyncio.sleep(0.02)


async def hand_over(cutover, store, leads, lead):
    """
    A cut-over that is announced as the command does it.
    """
    before, at_s = cutover.load().next, time.time() + 1.0
    cutover.save(CutoverPlan(now=before, next=leads, at_s=at_s))
    held = partial(is_led_by, store, lead, at_s + cutover_module.HOLD_S)
    await until(held, PATIENCE_S)


def is_led_by(store, lead, since_s):
    return time.time() > since_s and store.lead("anybody") == lead


def is_at_rest(store):
    return store.status.behind == store.status.owed == 0


async def dead_letters(stack):
    return sum([await stack.client.xlen(f"eb:{{{p}}}:dead") for p in range(PARTITIONS)])


async def test_a_mad_moves_out_of_its_store_under_load_and_a_kill(
    stack, tmp_path, monkeypatch
):
    """
    Nothing is lost, doubled or refused: not by the kill, not by the writes beside it,
    not by the cut-over and the way back.
    """
    old = OldStore(tmp_path)
    keys = [key for key, _, _ in old.fill()]
    owners = dict(old.db.execute("SELECT id, user_id FROM conversations"))
    mapping = tmp_path / "migrate.toml"
    mapping.write_text(MAPPING)
    cutover = CutoverFile(tmp_path / "cutover.json")
    everbus, live = Everbus(stack), keys[-LIVE // 2 :] + keys[: LIVE // 2]
    monkeypatch.setattr(cutover_module, "HOLD_S", 0.3)
    monkeypatch.setattr(cutover_module, "LOOK_EVERY_S", 0.1)

    async with (
        stack.manager(),
        stack.archiver(),
        stack.mad() as mad,
        DualStore(mapping, mad, old.write, cutover=cutover.path) as one,
        DualStore(mapping, mad, old.write, cutover=cutover.path) as two,
    ):
        talk = Talk(old, (one, two), owners)
        async with asyncio.TaskGroup() as talking:
            for key in live:
                talking.create_task(talk.about(key))
            await talk.begun.wait()
            await killed_in_the_middle(everbus, mapping)
            code, tally, err = await everbus("backfill", mapping)
            assert (code, tally["conversations"]) == (0, len(keys)), err
            await hand_over(cutover, one, Leads(100), "everbus")
            before = old.total()
            await until(lambda: old.total() > before + LIVE, PATIENCE_S)
            await hand_over(cutover, one, Leads(0), "old")
            talk.over = True
        for store in (one, two):
            rest = partial(is_at_rest, store)
            await until(rest, PATIENCE_S)
            status = store.status
            assert (status.failures, status.diverged, status.refused) == (0, 0, 0)

        code, compared, err = await everbus("compare", mapping)
        assert (code, compared["counts"]) == (0, {}), (compared, err)
        assert compared["entries"] == old.total() > talk.before
        again = (await everbus("backfill", mapping))[1]
        assert (again["created"], again["appended"], again["patched"]) == (0, 0, 0)
        for key in live:
            page = await mad.timeline(session_id_of(key), limit=1000)
            there = [(e.entry["role"], e.entry.get("content")) for e in page.entries]
            assert there == old.contents(key)

    assert await dead_letters(stack) == 0


async def test_conversations_come_from_mongodb(stack, tmp_path):
    """
    Ids of BSON, times of BSON, and a position across batches.
    """
    with MongoClient(stack.mongo.url, tz_aware=True) as client:
        client.drop_database("old")
        for n in range(70):
            talks = client["old"]["conversations"]
            talk = talks.insert_one({"user": "ada", "n": n}).inserted_id
            client["old"]["messages"].insert_many(
                [{"talk": talk, "role": "user", "text": f"{n}/{m}"} for m in range(3)]
            )
        ids = [str(one["_id"]) for one in client["old"]["conversations"].find()]
    mapping = tmp_path / "migrate.toml"
    mapping.write_text(MONGO_MAPPING)
    everbus = Everbus(stack, OLD_MONGO_URL=stack.mongo.url)

    async with stack.manager(), stack.archiver(), stack.mad() as mad:
        code, tally, err = await everbus("backfill", mapping, "--mad", "fiedler")
        compared = (await everbus("compare", mapping))[1]
        page = await mad.timeline(ids[-1])

    assert (code, tally["created"], tally["appended"]) == (0, 70, 210), err
    assert compared["counts"] == {}
    assert [one.entry["text"] for one in page.entries] == ["69/0", "69/1", "69/2"]


async def test_ctrl_c_ends_with_130_and_the_way_to_go_on(stack, tmp_path):
    old = OldStore(tmp_path)
    for n in range(150):
        old.db.execute("INSERT INTO conversations VALUES (?, 'ada')", (f"c{n}",))
        old.say(f"c{n}", old.row({"role": "user"}))
    mapping = tmp_path / "migrate.toml"
    mapping.write_text(MAPPING)
    everbus = Everbus(stack)

    async with stack.manager():
        process = await everbus.start("backfill", mapping, "--rate", 100)
        position = mapping.with_name("migrate.toml.position.json")
        await until(position.exists, PATIENCE_S)
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()

    assert process.returncode == 130, err
    assert f"stopped; {position} has the place" in err.decode()

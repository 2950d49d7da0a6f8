"""
The sessions that the benchmarks of the tiers work on: made, and put where wanted.
"""

import os
import random
import string
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import InsertOne
from pymongo.write_concern import WriteConcern

from everbus.bus import keys
from everbus.bus.messages import Session, TimelineEntry, pack
from everbus.gateway.store import key_names
from everbus.gateway.store.claims import Branch
from everbus.gateway.store.hot_copy import Record
from everbus.gateway.store.mongo.documents import (
    EVENTS,
    SESSIONS,
    TIMELINE,
    new_document,
)
from everbus.gateway.store.mongo.warm import MongoWarm
from everbus.gateway.store.tiers import WarmSession
from everbus.handlers.history import state_of
from everbus.handlers.outcomes import Archived, Event
from tests.bench.tier_rig import DATABASE, PARTITIONS, Stack, timed

LONG_AGO = datetime(2024, 1, 1, tzinfo=UTC)
ENTRY_CHARS = 200
BULK = 500
Documents = list[dict[str, Any]]


def _corpus() -> str:
    """
    A MiB of words, so that what is compressed is neither noise nor repetition.
    """
    chance = random.Random(1)
    words = [
        "".join(chance.choices(string.ascii_lowercase, k=chance.randint(2, 10)))
        for _ in range(2000)
    ]
    return " ".join(chance.choices(words, k=2**20 // 7))


CORPUS = _corpus()


def text_of(number: int) -> str:
    """
    200 characters; the same for the same number.
    """
    first = number * 211 % (len(CORPUS) - ENTRY_CHARS)

    return CORPUS[first : first + ENTRY_CHARS]


def packed_entry(seq: int) -> bytes:
    """
    Entry *seq* of any generated timeline, as the warm tier gives it.
    """
    at = LONG_AGO + timedelta(milliseconds=seq)
    entry = {"role": "assistant", "text": text_of(seq)}

    return pack(TimelineEntry(seq, at, "bench", entry))


async def generated(first: int, last: int) -> list[bytes]:
    """
    The entries *first* to *last* of any generated timeline.
    """
    return [packed_entry(seq) for seq in range(first, last + 1)]


def a_session(session_id: str, **fields: Any) -> Session:
    """
    A session of long ago at version 1.
    """
    known: dict[str, Any] = {
        "id": session_id,
        "version": 1,
        "owner_id": "ada",
        "created_at": LONG_AGO,
        "last_active": LONG_AGO,
        "context_summary": {"topic": text_of(7)},
        "work_in_progress": {"draft": text_of(8)},
    }
    return Session(**known | fields)


def record_of(session: Session, **fields: Any) -> Record:
    """
    What a commit tells of *session* beside *fields*.
    """
    return Record(
        session=session.id,
        created_at=session.created_at,
        version=session.version,
        last_seq=session.last_seq,
        last_active=session.last_active,
        **fields,
    )


def created(session: Session, entries: Sequence[bytes] = ()) -> Record:
    """
    The record of a session that begins with these entries.
    """
    event = Event(
        kind="session.created",
        command_id=f"seed.{session.id}",
        mad="bench",
        principal="ada",
        version=session.version,
        seq=session.last_seq,
        at=session.created_at,
        patch=state_of(session),
    )
    packed = tuple(map(msgspec.Raw, entries))

    return record_of(session, state=session, events=(event,), entries=packed)


class GeneratedWarm(MongoWarm):
    """
    MongoDB, but for timeline entries, which are made as they are asked for: for an
    archiver whose session is longer than this machine can insert.
    """

    def __init__(self) -> None:
        super().__init__(os.environ["EVERBUS_MONGO_URL"], DATABASE)

    async def entries(
        self, session_id: str, life: datetime, first: int, last: int
    ) -> Sequence[bytes]:
        """
        All that is asked for.
        """
        return await generated(first, last)


def bare_database(url: str) -> Any:
    """
    The driver's own database, as durable as ours.
    """
    durable = WriteConcern(w="majority", j=True)
    client: Any = AsyncIOMotorClient(url, tz_aware=True)

    return client.get_database(DATABASE, write_concern=durable)


async def documents_in(stack: Stack) -> dict[str, Documents]:
    """
    What the drain made, by collection.
    """
    bare = bare_database(stack.mongo.url)
    found = {
        name: await bare[name].find({}).to_list(None)
        for name in (TIMELINE, EVENTS, SESSIONS)
    }
    bare.client.close()

    return found


async def insert_bare(stack: Stack, documents: dict[str, Documents]) -> float:
    """
    Seconds that bare bulks take for *documents*, under the same indexes.
    """
    other = MongoWarm(stack.mongo.url, "bare")
    await other.prepare()
    other.close()
    bare = bare_database(stack.mongo.url).client
    durable = WriteConcern(w="majority", j=True)
    took: list[float] = []
    with timed(took):
        for name, found in documents.items():
            held = bare.get_database("bare", write_concern=durable)[name]
            for first in range(0, len(found), BULK):
                bulk = [InsertOne(d) for d in found[first : first + BULK]]
                await held.bulk_write(bulk, ordered=False)
    bare.close()

    return took[0]


async def seed(stack: Stack, ids: Sequence[str], *, entries: int) -> None:
    """
    Sessions that are in MongoDB only.
    """
    packed = await generated(1, entries)
    records = [created(a_session(i, last_seq=entries), packed) for i in ids]
    for first in range(0, len(records), 100):
        await stack.warm.write(records[first : first + 100])


async def fill(stack: Stack, session: Any) -> None:
    """
    A session with its whole timeline in MongoDB.
    """
    await stack.warm.write([created(session)])
    for first in range(1, session.last_seq + 1, 1000):
        entries = await generated(first, min(first + 999, session.last_seq))
        await stack.warm.put_entries(session.id, session.created_at, entries)


async def long_sessions(stack: Stack, lengths: Sequence[int]) -> dict[int, str]:
    """
    Hot sessions of which last_seq was set by hand, while no replica knew them.
    """
    async with stack.manager("before"), stack.mad() as mad:
        ids = {n: (await mad.create_session("ada")).id for n in lengths}
        for session_id in ids.values():
            for i in range(20):
                await mad.append_and_wait(session_id, {"text": text_of(i)})
    for length, session_id in ids.items():
        p = keys.partition_of(session_id, PARTITIONS)
        hot = key_names.session(p, session_id)
        await stack.wire.call("HSET", hot, "last_seq", length)
    return ids


async def redis_bytes(stack: Stack, session_id: str) -> float:
    """
    What Redis's keys of a session take.
    """
    p = keys.partition_of(session_id, PARTITIONS)
    hot = [key_names.session(p, session_id), key_names.recent(p, session_id)]
    told = await stack.wire.exchange(
        [("MEMORY", "USAGE", k, "SAMPLES", 0) for k in hot]
    )

    return float(sum(size or 0 for size in told))


async def seed_many(stack: Stack, count: int) -> None:
    """
    Each twentieth of them has a name of its own in owner, tag, participant and words.
    """
    names_of = count // 20
    bare = bare_database(stack.mongo.url)
    for first in range(0, count, 1000):
        documents = []
        for i in range(first, min(first + 1000, count)):
            n = i % names_of
            session = a_session(
                f"s{i}",
                owner_id=f"o{n}",
                last_active=LONG_AGO + timedelta(seconds=i),
                tags=(f"t{n}", "all"),
                participants={f"m{n}": {"role": "", "joined_at": "2024"}},
                acl=(f"m{n}",),
                context_summary={"topic": f"word{n} common"},
            )
            documents.append(InsertOne(new_document(session, {}, Branch())))
        await bare[SESSIONS].bulk_write(documents, ordered=False)
    bare.client.close()


async def archive_generated(stack: Stack, session: Session) -> None:
    """
    Put a session with a generated timeline into the cold tier; a stub remains.
    """
    await stack.warm.write([created(session)])
    held = (await stack.warm.sessions([session.id], context=True))[session.id]
    archive = await stack.vault.archive(held, generated, lambda _: None)
    archived = Archived(
        pointer=archive.pointer,
        through=archive.through,
        bytes=archive.bytes,
        moves=held.moves,
    )
    await _make_stub(stack, held, archived)


async def archive_again(stack: Stack, session_id: str) -> None:
    """
    Make a stub again of a session that returned and was not changed; not hot.
    """
    await stack.cool(session_id)
    held = (await stack.warm.sessions([session_id]))[session_id]
    archived = Archived(
        pointer=held.pointer,
        through=held.through,
        bytes=held.bytes,
        moves=held.moves,
    )
    await _make_stub(stack, held, archived)


async def _make_stub(stack: Stack, held: WarmSession, archived: Archived) -> None:
    await stack.warm.write([record_of(held.session, archived=archived)])
    after = (await stack.warm.sessions([held.session.id]))[held.session.id]
    if after.archival_status != "S3":
        raise AssertionError(f"{held.session.id} is no stub: {after}")

"""
What writing through the tiers takes: draining, archiving, appending, durability.
"""

import asyncio
import time
from functools import partial
from typing import Any

import msgspec
import redis.asyncio

from everbus.bus import Mad
from everbus.bus.errors import Overloaded
from everbus.compose.processes import start as start_server
from everbus.compose.servers import valkey_server
from everbus.compose.stack_folder import free_port
from everbus.gateway.store import key_names
from everbus.gateway.store.mongo.documents import TIMELINE
from tests.bench import rig
from tests.bench.patches import another_of
from tests.bench.tier_rig import (
    PARTITIONS,
    TIMEOUT_S,
    Run,
    Stack,
    in_flight,
    peak_mb,
    quantile,
    timed,
)
from tests.bench.tier_sessions import (
    a_session,
    created,
    documents_in,
    fill,
    generated,
    insert_bare,
    long_sessions,
    record_of,
    redis_bytes,
    text_of,
)
from tests.replicas import until

PATCH = {"work_in_progress": {"a": "x" * 100, "b": "y" * 100, "c": "z" * 60}}
# What the largest hot sessions may consist of: characters of state and of an entry.
LARGE = ((50_000, 100), (30_000, 900), (25_000, 20_000), (100, 1100))


async def drain(run: Run) -> None:
    """
    A backlog, drained by an archiver that has nothing else to do, and the same
    documents in bare bulks.
    """
    await _make_backlog(run)
    total = await run.stack.backlog()
    outboxes = [("XLEN", key_names.outbox(p)) for p in range(PARTITIONS)]
    commits = sum(await run.stack.wire.exchange(outboxes))
    async with run.stack.archiver() as archiver:
        took = await _drained(run.stack)
        run.figures.note("archiver's peak MB while it drains", peak_mb(archiver))
    documents = await documents_in(run.stack)
    held = sum(map(len, documents.values()))
    entries = len(documents[TIMELINE])
    run.figures.note("drain, records/s", total / took, total)
    run.figures.note("drain, entries/s", entries / took, entries)
    run.figures.note("drain, commits/s", commits / took, commits)
    run.figures.note("drain, documents/s", held / took, held)
    bare = held / await insert_bare(run.stack, documents)
    run.figures.note("bare bulks of the same, documents/s", bare, held)
    run.figures.note("drain : bare bulks", held / took / bare)


async def archive(run: Run) -> None:
    """
    An archiver process that archives one long session: from MongoDB, and with
    generated entries where MongoDB would be too slow to fill.
    """
    short, long = run.count(100_000), run.count(1_000_000)
    own = "tests.bench.tier_sessions:GeneratedWarm"
    session = a_session("short", last_seq=short)
    await fill(run.stack, session)
    await _archive(run, "short", f"{short:,} entries from MongoDB")
    session = a_session("long", last_seq=long)
    await run.stack.warm.write([created(session)])
    # Its lane reads the newest when it is asked to let go of it.
    tail = await generated(long - 19, long)
    await run.stack.warm.put_entries("long", session.created_at, tail)
    await _archive(run, "long", f"{long:,} entries generated", warm_store=own)


async def _archive(run: Run, session_id: str, name: str, **settings: Any) -> None:
    terms = {"archive_after_days": 30, "archive_every_s": 1}
    folder = run.stack.folder / "nanio"
    before = set(folder.rglob("*"))

    async def is_stub() -> bool:
        held = (await run.stack.warm.sessions([session_id]))[session_id]
        return held.archival_status == "S3"

    async with (
        run.stack.manager(),
        run.stack.mad(),
        run.stack.archiver(**terms, **settings) as archiver,
    ):
        await until(is_stub, 300)
        run.figures.note(f"archiver's peak MB, {name}", peak_mb(archiver))
    held = (await run.stack.warm.sessions([session_id]))[session_id]
    session = held.session
    manifest = await run.stack.vault.open(held.pointer, session.id, session.created_at)
    # From the first chunk's file to the last one's: its reading is not in it,
    # and neither is its size.
    chunks = manifest.chunks
    files = [f for f in set(folder.rglob("*")) - before if f.is_file()]
    at = {f.name: f.stat().st_mtime for f in files}
    made = [next(t for n, t in at.items() if c.sha256 in n) for c in chunks]
    raw = sum(chunk.raw_bytes for chunk in chunks[1:]) / 1e6
    run.figures.note(
        f"archive, raw MB/s, {name}", raw / (max(made) - min(made)), len(chunks)
    )
    entries = chunks[-1].last - chunks[0].last
    run.figures.note(
        f"archive, entries/s, {name}", entries / (max(made) - min(made)), entries
    )
    whole = sum(chunk.raw_bytes for chunk in chunks)
    packed = sum(chunk.bytes for chunk in chunks)
    run.figures.note(f"archive, raw : compressed, {name}", whole / packed)


async def append(run: Run) -> None:
    """
    Appending to sessions of any length, as far as the replica has to do with it.
    """
    lengths = [10**power for power in range(2, 7)]
    ids = await long_sessions(run.stack, lengths)
    count, waits = run.count(20_000), run.count(1000)
    each: dict[int, list[float]] = {length: [] for length in lengths}
    waited: dict[int, list[float]] = {length: [] for length in lengths}
    async with run.stack.manager(), run.stack.mad() as mad:
        for _ in range(5):
            for length in lengths:
                took = await _appended(run.stack, mad, ids[length], count // 5)
                each[length].append(took / (count // 5))
        for i in range(waits):
            for length in lengths:
                with timed(waited[length]):
                    await mad.append_and_wait(ids[length], {"text": text_of(i)})
        sizes = [await redis_bytes(run.stack, ids[length]) for length in lengths]
        large = [await _large_session(run.stack, mad, *x) for x in LARGE]
    for length in lengths:
        rate = 1 / rig.median(each[length])
        run.figures.note(f"appends/s, last_seq {length:,}", rate, count)
        p50 = quantile(waited[length], 0.5) * 1e6
        name = f"append_and_wait p50 us, last_seq {length:,}"
        run.figures.note(name, p50, waits)
    for name, arms in (("append, us each", each), ("append_and_wait p50", waited)):
        ratio = rig.median(arms[lengths[-1]]) / rig.median(arms[lengths[0]])
        run.figures.note(f"{name}: last_seq 1,000,000 : 100", ratio)
    for length, size in zip(lengths, sizes, strict=True):
        run.figures.note(f"Redis bytes a session, last_seq {length:,}", size)
    run.figures.note("Redis bytes a session, largest", max(*large, *sizes))


async def append_warm(run: Run) -> None:
    """
    Writing entries as the drain does, to a session with few and one with many.
    """
    many, step = run.count(100_000), 100
    lengths = {"few": 100, "many": many}
    for name, length in lengths.items():
        await fill(run.stack, a_session(name, last_seq=length))
    took: dict[str, list[float]] = {"few": [], "many": []}
    for _ in range(run.count(50)):
        for name in lengths:
            first, last = lengths[name] + 1, lengths[name] + step
            entries = tuple(map(msgspec.Raw, await generated(first, last)))
            session = a_session(name, last_seq=last)
            with timed(took[name]):
                await run.stack.warm.write([record_of(session, entries=entries)])
            lengths[name] = last
    for name, held in (("few", 100), ("many", many)):
        rate = step / rig.median(took[name])
        samples = len(took[name]) * step
        run.figures.note(f"warm write, entries/s, {held:,} held", rate, samples)
    ratio = rig.median(took["many"]) / rig.median(took["few"])
    run.figures.note(f"warm write, us an entry: {many:,} held : 100", ratio)


async def checkpoint(run: Run) -> None:
    """
    Creating checkpoints, one in flight, in turns by durability.
    """
    count = run.count(500)
    took: dict[Any, list[float]] = {"warm": [], "hot": []}
    async with run.stack.archiver(), run.stack.manager(), run.stack.mad() as mad:
        made = [await mad.create_session("ada") for _ in range(10)]
        for i in range(count):
            session_id = made[i % 10].id
            for durability in took:
                patch = {"work_in_progress": {"step": i, "by": durability}}
                await mad.update_session(session_id, patch, timeout=TIMEOUT_S)
                with timed(took[durability]):
                    await mad.create_checkpoint(
                        session_id,
                        name=f"c{i}",
                        kind="incremental" if i % 2 else "full",
                        durability=durability,
                        timeout=TIMEOUT_S,
                    )
    for durability, seconds in took.items():
        run.figures.times(f"checkpoint, {durability}", seconds)


async def durability(run: Run) -> None:
    """
    An update at each level, one in flight, in turns, with one Valkey replica.
    """
    count = run.count(500)
    took: dict[Any, list[float]] = {"hot": [], "replicated": [], "warm": []}
    port = free_port()
    server = valkey_server(run.stack.folder, port, aof=False, name="replica")
    replica = await start_server(server)
    try:
        async with redis.asyncio.from_url(f"redis://127.0.0.1:{port}") as client:
            await client.replicaof("127.0.0.1", run.stack.bus.port)
            await until(lambda: _follows(client), 30)
        async with run.stack.archiver(), run.stack.manager(), run.stack.mad() as mad:
            made = [await mad.create_session("ada") for _ in range(10)]
            for i in range(count):
                for level in took:
                    with timed(took[level]):
                        await mad.update_session(
                            made[i % 10].id,
                            PATCH | {"context_summary": {"n": i, "at": level}},
                            durability=level,
                            timeout=TIMEOUT_S,
                        )
    finally:
        await replica.stop()
    for level, seconds in took.items():
        run.figures.times(f"update, {level}", seconds)


async def _make_backlog(run: Run) -> None:
    sessions, appends = run.count(1000), run.count(20_000)
    async with run.stack.manager(), run.stack.mad() as mad:
        made = [mad.create_session(f"u{i}", timeout=60) for i in range(sessions)]
        ids = [session.id for session in await asyncio.gather(*made)]
        for i in range(appends):
            mad.append(ids[i % sessions], {"role": "user", "text": text_of(i)})
            if i % 1000 == 999:
                await mad.flush(timeout=TIMEOUT_S)
        await in_flight(
            16,
            [
                partial(
                    mad.update_session, ids[i % sessions], another_of(PATCH), timeout=60
                )
                for i in range(appends // 10)
            ],
        )
        await run.stack.until_settled(sessions + appends + appends // 10)


async def _drained(stack: Stack) -> float:
    """
    Seconds from the first read of the outboxes to the last confirmation: starting a
    process is no part of draining.
    """
    asked = [
        ("XPENDING", key_names.outbox(p), key_names.ARCHIVER_GROUP)
        for p in range(PARTITIONS)
    ]

    async def has_begun() -> bool:
        told = await stack.wire.exchange(asked)
        # An error: the group is not there yet.
        return any(isinstance(reply, list) and reply[0] for reply in told)

    async def is_done() -> bool:
        return not await stack.backlog()

    await until(has_begun, TIMEOUT_S)
    started = time.perf_counter()
    await until(is_done, 300)

    return time.perf_counter() - started


async def _appended(stack: Stack, mad: Mad, session_id: str, count: int) -> float:
    """
    Seconds from the first append to the last commit.
    """
    before = await stack.settled()
    started = time.perf_counter()
    for i in range(count):
        while True:
            try:
                mad.append(session_id, {"text": text_of(i)})
                break
            except Overloaded:
                await mad.flush(timeout=TIMEOUT_S)
    await stack.until_settled(before + count)

    return time.perf_counter() - started


async def _follows(client: redis.asyncio.Redis) -> bool:
    told = await client.info("replication")

    return bool(told.get("master_link_status") == "up")


async def _large_session(
    stack: Stack, mad: Mad, state_chars: int, entry_chars: int
) -> float:
    """
    Redis's bytes of a session whose state and entries are so large.
    """
    session = await mad.create_session("ada")
    patch = {"context_summary": {"text": "x" * state_chars}}
    await mad.update_session(session.id, patch)
    for _ in range(40):
        await mad.append_and_wait(session.id, {"text": "y" * entry_chars})
    return await redis_bytes(stack, session.id)

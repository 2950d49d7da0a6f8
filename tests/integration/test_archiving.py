"""
To S3 and back on real servers, by real processes, through the lane.
"""

import json

import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient

from tests.processes import PIPE, start_python
from tests.replicas import (
    a_client,
    a_mad,
    archiver,
    manager,
    settings_of,
    until,
)
from tests.servers import S3_KEYS, inherited, nanio, secantus, valkey

COMMAND = "from everbus.compose.cli import main; main()"
SECONDS = 1 / 86_400
NEVER_DAYS = 1_000
ENTRIES = 60


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bus(tmp_path_factory):
    async with valkey(tmp_path_factory.mktemp("valkey")) as real:
        yield real


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mongo(tmp_path_factory):
    async with secantus(tmp_path_factory.mktemp("secantus")) as real:
        yield real


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def s3(tmp_path_factory):
    async with nanio(tmp_path_factory.mktemp("nanio")) as real:
        yield real


@pytest_asyncio.fixture
async def client(bus):
    async with a_client(bus.url) as client:
        await client.flushall()
        yield client


@pytest.fixture
def database(request):
    return f"t{abs(hash(request.node.name))}"


@pytest_asyncio.fixture
async def held(mongo, database):
    async with AsyncMongoClient(mongo.url, tz_aware=True) as connection:
        yield connection[database]


@pytest.fixture
def parts(client, bus, mongo, s3, database, tmp_path):
    """
    Starts managers and archivers; what is not hot for a second goes to S3.
    """
    known = {
        "mongo_url": mongo.url,
        "mongo_database": database,
        "s3_endpoint": s3.url,
        "s3_access_key": S3_KEYS[0],
        "s3_secret_key": S3_KEYS[1],
        "hot_ttl_s": 0.5,
        "archive_after_days": SECONDS,
        "archive_every_s": 0.3,
    }

    class Parts:
        def manager(self, name="m1", **more):
            return manager(tmp_path, bus.url, name, **known | more)

        def archiver(self, name="a1", **more):
            return archiver(tmp_path, bus.url, name, **known | more)

        def settings(self, **more):
            return settings_of(bus.url, **known | more)

    return Parts()


async def fill(mad, count=ENTRIES):
    session = await mad.create_session("ada")
    for n in range(1, count + 1):
        mad.append(session.id, {"n": n, "text": f"ünï {n}", "deep": [{"a": None}, 1.5]})
    await mad.flush()
    patch = {"context_summary": {"topic": "tides"}, "full_context": {"all": ["of it"]}}
    return await mad.update_session(session.id, patch)


async def document(held, session_id):
    return await held["sessions"].find_one({"_id": session_id}) or {}


async def rests(held, session_id, within_s=40):
    """
    Wait until the session is in S3, and all of its entries have left MongoDB.
    """

    async def claim():
        there = await document(held, session_id)
        if there.get("archival_status") != "S3" or there.get("unpurged"):
            return False
        return await held["timeline"].count_documents({"session": session_id}) == 0

    await until(claim, within_s, f"{session_id} in S3")


async def is_back(held, session_id, entries):
    async def claim():
        there = await document(held, session_id)
        if there.get("archival_status") != "ACTIVE" or there.get("unrestored"):
            return False
        count = await held["timeline"].count_documents({"session": session_id})
        return count == entries

    await until(claim, 40, f"{session_id} whole in MongoDB")


async def told(mad, session_id):
    """
    All that a caller can read of a session.
    """
    session = await mad.get_session(session_id, full=True, timeout=30)
    page = await mad.timeline(session_id, after=0, limit=1000, timeout=30)
    return session, page


async def in_mongodb(parts, mad, session_id):
    """
    What can be read of a session that MongoDB holds, and that stays there.
    """
    async with parts.archiver("a0", archive_after_days=NEVER_DAYS) as staying:
        found = await told(mad, session_id)
        await staying.end()
    return found


async def test_a_session_goes_to_s3_and_comes_back_the_same(client, bus, held, parts):
    """
    As often as it rests; what is appended in between is there, too.
    """
    async with parts.manager() as one, a_mad(bus.url) as mad:
        made = await fill(mad)
        before = await in_mongodb(parts, mad, made.id)
        async with parts.archiver() as moving:
            await rests(held, made.id)
            await moving.end()
        first = await told(mad, made.id)
        await mad.append_and_wait(made.id, {"n": ENTRIES + 1})
        async with parts.archiver(archive_after_days=NEVER_DAYS) as staying:
            await is_back(held, made.id, ENTRIES + 1)
            again = await told(mad, made.id)
            await staying.end()
        async with parts.archiver():
            await rests(held, made.id)
        second = await told(mad, made.id)
        assert one.alive

    assert first == before
    assert second == again
    assert [e.entry["n"] for e in second[1].entries] == list(range(1, ENTRIES + 2))


async def archive(parts, *options):
    """
    Run `everbus archive` with *options*; its exit code and what it says.
    """
    process = await start_python(
        *("-c", COMMAND, "archive", *options),
        env={**inherited(), **parts.settings(archive_every_s=3600)},
        stdout=PIPE,
        stderr=PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_the_command_archives_now_and_tells_what_it_did(client, bus, held, parts):
    settled = {"archive_every_s": 3600, "archive_after_days": NEVER_DAYS}
    async with (
        parts.manager(),
        parts.archiver(**settled),
        a_mad(bus.url) as mad,
    ):
        made = await fill(mad)

        async def cold():
            hot = [key async for key in client.scan_iter("eb:{*}:session:*")]
            there = await document(held, made.id)
            return not hot and there.get("last_seq") == ENTRIES

        await until(cold, 20, "no hot copy")
        dry = await archive(parts, "--idle-days", "0", "--dry-run", "-o", "json")
        real = await archive(parts, "--idle-days", "0", "-o", "json")
        await rests(held, made.id)

    assert dry[0] == 0, dry[2]
    assert real[0] == 0, real[2]
    assert json.loads(dry[1])["archived"] == 1
    report = json.loads(real[1])
    assert (report["archived"], report["entries"]) == (1, ENTRIES)
    assert report["bytes"] > 0


async def test_the_command_says_what_is_not_set():
    env = settings_of("redis://127.0.0.1:1")
    process = await start_python(
        *("-c", COMMAND, "archive"),
        env={**inherited(), **env},
        stdout=PIPE,
        stderr=PIPE,
    )
    _, err = await process.communicate()

    assert process.returncode == 2
    assert b"EVERBUS_MONGO_URL" in err

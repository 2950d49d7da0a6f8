"""
The vault on a real S3 server: kills at each step, refusals, and a slow or dead server.
"""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from everbus.bus.errors import TooLarge, Unavailable
from everbus.gateway.failpoints import VAULT
from everbus.gateway.store.cold.archives import Archives
from everbus.gateway.store.cold.local import MemoryCold
from everbus.gateway.store.cold.manifest import key_of
from everbus.gateway.store.cold.s3 import S3Cold
from everbus.gateway.store.tiers import Corrupted
from tests.processes import start_python
from tests.servers import S3_KEYS, RealServer, inherited, nanio
from tests.unit.archives import Timeline, archived, everything, held, some_entries

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENTRIES = 10_000
AT_EACH_STEP = pytest.mark.parametrize(
    "point",
    ["archive_chunk:1", "archive_chunk:2", *(f"{name}:1" for name in VAULT[1:])],
)
KEY = key_of("s1", "0" * 64)
# An archiver in the hands of a test: dies where the fail point says.
ARCHIVE_AND_DIE = """
import asyncio, sys
from everbus.gateway.failpoints import armed
from everbus.gateway.store.cold.s3 import S3Cold
from everbus.gateway.store.cold.archives import Archives
from tests.integration import test_archives_on_nanio as us

url, point = sys.argv[1:]
vault = Archives(S3Cold(url, "everbus", *us.S3_KEYS), fail=armed(point))
asyncio.run(us.archived(vault, us.held(us.ENTRIES), us.some_entries(1, us.ENTRIES)))
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory) -> AsyncIterator[RealServer]:
    async with nanio(tmp_path_factory.mktemp("s3")) as real:
        yield real


@pytest_asyncio.fixture(loop_scope="module")
async def own_server(tmp_path) -> AsyncIterator[RealServer]:
    """
    A server to be killed, with nothing in it.
    """
    async with nanio(tmp_path) as real:
        yield real


@pytest_asyncio.fixture(loop_scope="module")
async def cold(server) -> AsyncIterator[S3Cold]:
    tier = S3Cold(server.url, "everbus", *S3_KEYS)
    yield tier
    tier.close()


async def wanted_pointer() -> str:
    """
    Where the archive is if nothing happens to it.
    """
    there = Archives(MemoryCold())

    return (await archived(there, held(ENTRIES), some_entries(1, ENTRIES))).pointer


@AT_EACH_STEP
async def test_an_archiver_that_is_killed_leaves_what_its_successor_ends(
    point, own_server
):
    program = await start_python(
        *("-c", ARCHIVE_AND_DIE, own_server.url, point),
        env=inherited(),
    )
    assert await program.wait() == -signal.SIGKILL
    cold = S3Cold(own_server.url, "everbus", *S3_KEYS)
    entries = some_entries(1, ENTRIES)

    archive = await archived(Archives(cold), held(ENTRIES), entries)

    assert archive.pointer == await wanted_pointer()
    document, timeline = await everything(Archives(cold), archive)
    assert document == (held(ENTRIES).session, held(ENTRIES).full_context)
    assert timeline == entries
    cold.close()


@AT_EACH_STEP
async def test_a_server_that_is_killed_makes_it_unavailable_and_no_more(
    point, own_server
):
    """
    Once it is back, the same archiver ends up at the same pointer.
    """
    name, _, nth = point.partition(":")
    left = int(nth)

    def fail(passed: str) -> None:
        nonlocal left
        left -= passed == name
        if left == 0 and passed == name:
            os.kill(own_server.pid, signal.SIGKILL)

    cold = S3Cold(own_server.url, "everbus", *S3_KEYS)
    vault = Archives(cold, fail=fail)
    there, entries = held(ENTRIES), some_entries(1, ENTRIES)
    # After the last step there is nothing more to fail.
    if name == "archive_verified":
        await archived(vault, there, entries)
    else:
        with pytest.raises(Unavailable) as refused:
            await archived(vault, there, entries)
        assert not isinstance(refused.value, Corrupted)
    await own_server.restart()

    archive = await archived(vault, there, entries)

    assert archive.pointer == await wanted_pointer()
    assert (await everything(Archives(cold), archive))[1] == entries
    cold.close()


async def test_an_archive_grows_and_is_removed_on_s3(own_server, tmp_path):
    cold = S3Cold(own_server.url, "everbus", *S3_KEYS)
    vault = Archives(cold)
    entries = some_entries(1, ENTRIES)
    first = await archived(vault, held(6000), entries[:6000])
    grown = held(ENTRIES, version=4, pointer=first.pointer, through=6000)
    behind = Timeline(entries[6000:], first=6001)
    second = await vault.archive(grown, behind.read, lambda seq: None)
    assert (await everything(Archives(cold), second))[1] == entries

    await vault.remove(second.pointer)

    left = [p for p in (tmp_path / "nanio" / "everbus").rglob("*") if p.is_file()]
    assert left == []
    cold.close()


async def test_a_byte_flipped_on_the_servers_disk_is_never_served(own_server, tmp_path):
    cold = S3Cold(own_server.url, "everbus", *S3_KEYS)
    archive = await archived(Archives(cold), held(50), some_entries(1, 50))
    folder = tmp_path / "nanio" / "everbus" / "sessions"
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert len(files) == 3

    for path in files:
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(Corrupted):
            await everything(Archives(cold), archive)
        path.write_bytes(data)
    assert await everything(Archives(cold), archive)
    cold.close()


async def test_the_bucket_is_made_if_it_is_missing(server):
    cold = S3Cold(server.url, "made-at-first-use", *S3_KEYS)

    assert await cold.get(KEY, 10) is None
    await cold.put(KEY, b"there")

    assert await cold.get(KEY, 10) == b"there"
    cold.close()


async def test_wrong_keys_are_told_with_the_remedy_and_without_the_secret(server):
    cold = S3Cold(server.url, "everbus", "of-tests-only", "not-the-secret-key")

    for call in (cold.put(KEY, b"x"), cold.get(KEY, 10), cold.delete(KEY)):
        with pytest.raises(Unavailable, match="check the keys") as refused:
            await call
        assert "not-the-secret-key" not in str(refused.value)
    cold.close()


async def test_an_object_above_the_limit_leaves_the_connection_usable(cold):
    data = os.urandom(2**20)
    await cold.put(KEY, data)

    for _ in range(10):
        with pytest.raises(TooLarge):
            await cold.get(KEY, 1000)
        assert await cold.get(KEY, 2**20) == data
    await cold.delete(KEY)


async def test_calls_after_a_refused_put_are_not_refused_with_it(cold):
    """
    nanio 0.1.7 reads the rest of a refused request as the next one and answers 400
    (PITFALLS.md section 3), so such a connection is not used again.
    """
    spoilt = 0

    def spoil(params: dict, **_: object) -> None:
        nonlocal spoilt
        if spoilt:
            spoilt -= 1
            params["headers"]["Content-MD5"] = "AAAAAAAAAAAAAAAAAAAAAA=="

    await cold.size(KEY)
    events = cold._client.meta.events
    events.register("before-call.s3.PutObject", spoil)
    data = os.urandom(2**20)

    spoilt = 1
    await cold.put(KEY, data)
    assert await cold.get(KEY, 2**20) == data
    for _ in range(5):
        spoilt = 2
        with pytest.raises(Unavailable, match="BadDigest"):
            await cold.put(KEY, data)
        assert spoilt == 0
        assert await cold.size(KEY) == 2**20
        await cold.put(KEY, data)
    await cold.delete(KEY)


async def test_a_put_that_was_refused_unread_spoils_no_later_call(own_server, tmp_path):
    """
    nanio 0.1.7 then takes the next request on that connection for the rest of the
    refused one, and answers 400.
    """
    cold = S3Cold(own_server.url, "everbus", *S3_KEYS)
    data = os.urandom(2**20)
    await cold.put(KEY, data)
    bucket = tmp_path / "nanio" / "everbus"
    for _ in range(5):
        bucket.rename(tmp_path / "away")
        with pytest.raises(Unavailable, match="put the bucket back"):
            await cold.put(KEY, data)
        (tmp_path / "away").rename(bucket)
        assert await cold.get(KEY, 2**20) == data
        await cold.put(KEY, data)
    cold.close()


async def test_a_put_that_left_half_of_its_traces_can_be_done_again(
    own_server, tmp_path
):
    """
    nanio 0.1.7, killed between an object and its metadata, answers 500 to every
    later put of that key: its temporary file is in the way for ever.
    """
    cold = S3Cold(own_server.url, "everbus", *S3_KEYS)
    traces = tmp_path / "nanio" / "everbus" / ".nanio-meta" / f"{KEY}.json.tmp"
    traces.parent.mkdir(parents=True)
    traces.write_text("")

    await cold.put(KEY, b"there")
    await cold.put(KEY, b"there")

    assert await cold.get(KEY, 5) == b"there"
    cold.close()


async def test_a_server_that_says_nothing_is_unavailable_in_time(own_server):
    """
    Paused, it accepts connections and answers nothing; awake, it is used again.
    """
    cold = S3Cold(own_server.url, "everbus", *S3_KEYS, timeout_s=0.5)
    await cold.put(KEY, b"there")
    own_server.pause()

    for call in (cold.get(KEY, 10), cold.put(KEY, b"there"), cold.size(KEY)):
        with pytest.raises(Unavailable, match="try again"):
            await call
    own_server.resume()

    assert await cold.get(KEY, 10) == b"there"
    cold.close()


async def test_a_server_that_is_not_there_is_unavailable():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        cold = S3Cold(f"http://127.0.0.1:{taken.getsockname()[1]}", "everbus", *S3_KEYS)
        for call in (cold.get(KEY, 10), cold.put(KEY, b"x"), cold.delete(KEY)):
            with pytest.raises(Unavailable, match="S3 at http"):
                await call
    cold.close()


async def test_a_restarted_server_is_found_again(own_server):
    cold = S3Cold(own_server.url, "everbus", *S3_KEYS)
    await asyncio.gather(*(cold.put(KEY, b"there") for _ in range(8)))
    await own_server.kill()
    await own_server.restart()

    found = await asyncio.gather(*(cold.get(KEY, 10) for _ in range(8)))

    assert found == [b"there"] * 8
    cold.close()


@asynccontextmanager
async def answering(*answers: bytes) -> AsyncIterator[S3Cold]:
    """
    A tier on a server that gives these answers in turn, the last one for ever, and
    closes the connection after each; an empty one is none at all.
    """
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        # It says so, or the next request might be sent on what is about to close.
        there = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        if not head.startswith(b"HEAD"):
            there = left.pop(0) if len(left) > 1 else left[0]
        writer.write(there)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    cold = S3Cold(f"http://127.0.0.1:{port}", "everbus", *S3_KEYS)
    try:
        yield cold
    finally:
        cold.close()
        server.close()
        await server.wait_closed()


def ok(body: bytes, length: int | None = None) -> bytes:
    announced = len(body) if length is None else length

    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % announced + body


async def test_an_answer_cut_short_is_unavailable_and_no_object():
    """
    Fewer bytes than announced are no object, whatever the connection says.
    """
    async with answering(ok(b"only this", length=1000)) as cold:
        with pytest.raises(Unavailable):
            await cold.get(KEY, 2000)


async def test_a_connection_that_is_closed_unanswered_is_tried_once_more():
    """
    A server closes idle connections whenever it likes, also as one is used again.
    """
    async with answering(b"", ok(b"there")) as cold:
        assert await cold.get(KEY, 10) == b"there"
    async with answering(b"", b"", ok(b"there")) as cold:
        with pytest.raises(Unavailable):
            await cold.get(KEY, 10)


async def test_of_an_object_that_is_announced_as_too_large_nothing_is_read():
    async with answering(ok(b"the first of many", length=2**40)) as cold:
        with pytest.raises(TooLarge):
            await cold.get(KEY, 100)


async def test_closing_may_be_repeated_and_needs_no_use_before(server):
    cold = S3Cold(server.url, "everbus", *S3_KEYS)

    cold.close()
    cold.close()

"""
Encryption at rest, read from the files that lie on disk: AOF, RDB, SecantusDB's and
nanio's folders, the logs of our processes. A run without encryption proves that the
same look finds each canary.

What is plain by design is listed in PLAIN_KEYS and docs/secure.md: commands on an
ingress and replies that wait, until Redis has dropped them and rewritten its AOF, and
the spool of a MAD, until its commands are settled.
"""

import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uuid_utils

from everbus.bus import connect, keys
from everbus.bus.errors import NotFound
from everbus.bus.messages import pack_envelope
from everbus.compose.archive_command import archive_once
from everbus.gateway.store import key_names
from tests.builders import an_envelope
from tests.integration.test_sealed_at_rest import SEALED, drained, in_redis, in_s3
from tests.replicas import a_grant, a_token, settled, until
from tests.stack import PARTITIONS

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

PLAIN_KEYS = re.compile(r"eb:\{\d+\}:(in|reply):.+")
# Each with a canary of its own, so that a leak names its place.
FIELDS = ("context_summary", "full_context", "work_in_progress")
PLACES = (*FIELDS, "entry", "broadcast", "letter", "reply")
# Where the control run has to find each: a proof that the look is no blind one.
SEEN_IN = {
    # What waits for MongoDB has left it, and the full context is not kept there.
    "valkey": set(PLACES) - {"full_context", "broadcast"},
    "secantus": set(PLACES) - {"letter"},
    "nanio": {*FIELDS, "entry"},
}


def canaries() -> dict[str, bytes]:
    """
    Place → a word that is nowhere else, of chance, so that no compression cuts it.
    """
    return {place: uuid.uuid4().hex.encode() for place in PLACES}


def places_in(data: bytes, words: dict[str, bytes]) -> set[str]:
    return {place for place, word in words.items() if word in data}


async def leave_everywhere(stack: Any, mad: Any, words: dict[str, bytes]) -> str:
    """
    A session with a canary in each sensitive place; a dead letter; an unread reply.
    """
    said = {place: {"said": word.decode()} for place, word in words.items()}
    session = await mad.create_session(user_id="ada")
    await mad.update_session(session.id, {name: said[name] for name in FIELDS})
    await mad.append_and_wait(session.id, said["entry"])
    await mad.broadcast(session.id, said["broadcast"])
    await mad.create_checkpoint(session.id, name="before", durability="hot")

    mad.append(str(uuid_utils.uuid7()), said["letter"])
    with pytest.raises(NotFound):
        await mad.flush(settled=True)

    other = await mad.create_session(user_id="ada")
    await mad.append_and_wait(other.id, said["reply"])
    asked = an_envelope(
        "timeline.read",
        session=other.id,
        id=f"unread-{uuid.uuid4().hex}",
        body={"after": 0, "limit": 10},
        reply=True,
        grant=a_grant(),
    )
    partition = keys.partition_of(other.id, PARTITIONS)
    stream = keys.ingress(partition, "fiedler")
    await stack.client.xadd(stream, {"c": pack_envelope(asked)})
    await settled(stack.client)
    return session.id


def commands_in(aof: bytes) -> Iterator[list[bytes]]:
    """
    The commands of an AOF's increment: arrays of bulk strings (RESP).
    """
    at = 0
    while at < len(aof):
        parts: list[bytes] = []
        end = aof.index(b"\r\n", at)
        left, at = int(aof[at + 1 : end]), end + 2
        while left:
            end = aof.index(b"\r\n", at)
            size = int(aof[at + 1 : end])
            parts.append(aof[end + 2 : end + 2 + size])
            at, left = end + 2 + size + 2, left - 1
        yield parts


def in_aof(folder: Path, words: dict[str, bytes]) -> dict[str, set[str]]:
    """
    The canaries in the commands of the AOF, by key.
    """
    found: dict[str, set[str]] = {}
    for path in folder.rglob("*.incr.aof"):
        for parts in commands_in(path.read_bytes()):
            if places := places_in(b" ".join(parts), words):
                found.setdefault(parts[1].decode(), set()).update(places)
    return found


async def rewritten(client: Any) -> None:
    """
    Have Redis write what it holds into a new AOF, and into an RDB.
    """
    await client.config_set("rdbcompression", "no")
    await client.execute_command("BGREWRITEAOF")

    async def idle() -> bool:
        state = await client.info("persistence")
        return not (state["aof_rewrite_in_progress"] or state["aof_rewrite_scheduled"])

    await until(idle, 20, "the AOF is rewritten")
    await client.execute_command("SAVE")


def in_each(held: dict[str, bytes], words: dict[str, bytes]) -> dict[str, set[str]]:
    """
    Name → the canaries in it, where there are any.
    """
    found = {name: places_in(data, words) for name, data in held.items()}

    return {name: places for name, places in found.items() if places}


def in_files(folder: Path, words: dict[str, bytes]) -> dict[str, set[str]]:
    """
    File → the canaries in it, decompressed where our archives are compressed.
    """
    held = in_s3(folder).items()

    return in_each({str(Path(p).relative_to(folder)): d for p, d in held}, words)


async def forgotten(stack: Any, words: dict[str, bytes]) -> None:
    """
    Wait until Redis has dropped the commands and the replies.
    """

    async def gone() -> bool:
        held = in_each(await in_redis(stack.client), words)
        return not any(map(PLAIN_KEYS.fullmatch, held))

    await until(gone, 30, "no command and no reply is left")


@pytest.mark.parametrize("settings", [SEALED, {}], ids=["sealed", "control"])
async def test_no_file_contains_a_canary(stack, settings):
    words = canaries()
    chosen = {**settings, "reply_ttl_s": 1, "log_level": "debug"}
    async with stack.manager(**chosen), stack.mad() as mad:
        async with stack.archiver(**chosen):
            session_id = await leave_everywhere(stack, mad, words)
            hot = in_each(await in_redis(stack.client), words)
            logged = in_aof(stack.folder / "valkey", words)
            await drained(stack)
            archived = await leave_everywhere(stack, mad, words)
            await drained(stack)
            await mad.suspend_session(archived)
            await stack.until_cold(archived)
            report = await archive_once(stack.settings(**chosen), -1)
        await forgotten(stack, words)
        assert await stack.is_hot(session_id)
        letters = [await stack.client.xlen(key_names.dead(p)) for p in range(2)]
        await rewritten(stack.client)
    for server in (stack.bus, stack.mongo, stack.s3):
        # Its end writes all that it holds in memory.
        await server.restart()
    found = in_files(stack.folder, words)

    assert (report.archived, sum(letters)) == (1, 2)
    # Plain by design, until Redis forgets them; and they are really seen there.
    assert {key.split(":")[2] for key in logged if PLAIN_KEYS.fullmatch(key)} == {
        *("in", "reply")
    }
    leaks = {
        key: places
        for key, places in (hot | logged).items()
        if not PLAIN_KEYS.fullmatch(key)
    }
    if settings:
        assert leaks == {}
        assert found == {}
    else:
        assert set().union(*leaks.values()) == set(PLACES)
        for part, places in SEEN_IN.items():
            names = [name for name in found if name.startswith(part)]
            assert set().union(*map(found.__getitem__, names)) >= places, part


async def test_a_spool_is_plain_and_forgets_what_is_settled(stack, tmp_path):
    """
    A MAD has no key. What is settled leaves the file.
    """
    words = canaries()
    path = tmp_path / "spool.db"
    async with stack.manager(**SEALED):
        async with connect(
            stack.bus.url, mad="fiedler", token=a_token(), spool=path
        ) as mad:
            session = await mad.create_session(user_id="ada")
            mad.append(session.id, words["entry"].decode())
            waiting = in_files(tmp_path, words)
            await mad.flush(settled=True)
        left = in_files(tmp_path, words)

    assert waiting
    assert left == {}

"""
What is damaged in S3 is refused, and never served.

On Valkey, SecantusDB and nanio, through the SDK; the archiver is in the test's hands,
so that what a test says happens first has happened.
"""

import string
from pathlib import Path
from typing import Any

import msgspec
import pytest

from everbus.bus import Mad, Unavailable
from everbus.gateway.store.cold.format import open_chunk, seal_chunk
from everbus.gateway.store.cold.manifest import Chunk, Manifest
from tests.conversations import Conversation
from tests.stack import Stack

pytestmark = pytest.mark.asyncio(loop_scope="module")


class TestDamaged:
    @pytest.mark.parametrize("spoiled", [0, 1, 2, 3, 4, 5])
    async def test_with_a_flipped_byte_it_is_refused_until_that_is_put_back(
        self, stack, spoiled
    ):
        """
        Whichever of its objects: manifest, document, or one of four chunks.
        """
        async with stack.served() as (mad, hands), hands.draining():
            other = await Conversation.begin(mad)
            await other.say(5)
            one = await stack.archived(mad, hands)
            stub = await stack.document(one.id)
            path = stack.objects(one.id)[spoiled]
            good = path.read_bytes()
            needed = is_needed_to_return(manifest_of(stack, one, stub), path)
            path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))

            if needed:
                with pytest.raises(Unavailable) as refused:
                    await mad.get_session(one.id)
                assert refused.value.details.get("cause") == "corrupted"
                assert await stack.document(one.id) == stub
            with pytest.raises(Unavailable):
                await one_reading(mad, one)
            await other.check()

            path.write_bytes(good)
            await one.check()

    async def test_another_chunk_in_its_place_is_refused_by_its_hash_alone(self, stack):
        """
        As long as the one that was put there, whole, and with the entries of the same
        numbers; but one word in it is another.
        """
        async with stack.served() as (mad, hands), hands.draining():
            one = await stack.archived(mad, hands)
            newest = manifest_of(stack, one, await stack.document(one.id)).chunks[-1]
            [path] = [p for p in stack.objects(one.id) if p.name == newest.sha256]
            good = path.read_bytes()
            path.write_bytes(forged("k", newest, good))

            with pytest.raises(Unavailable) as refused:
                await mad.get_session(one.id)
            assert refused.value.details.get("cause") == "corrupted"

            path.write_bytes(good)
            await one.check()

    async def test_with_an_object_missing_it_is_refused(self, stack):
        async with stack.served() as (mad, hands), hands.draining():
            one = await stack.archived(mad, hands)
            stub = await stack.document(one.id)
            manifest = next(
                p for p in stack.objects(one.id) if p.name in stub["s3_pointer"]
            )
            kept = manifest.read_bytes()
            manifest.unlink()

            with pytest.raises(Unavailable):
                await mad.get_session(one.id)
            assert await stack.document(one.id) == stub

            manifest.write_bytes(kept)
            await one.check()


def manifest_of(stack: Stack, one: Conversation, stub: dict[str, Any]) -> Manifest:
    """
    What its archive consists of.
    """
    name = Path(stub["s3_pointer"]).name
    [path] = [path for path in stack.objects(one.id) if path.name == name]

    return msgspec.msgpack.decode(path.read_bytes(), type=Manifest)


def is_needed_to_return(manifest: Manifest, path: Path) -> bool:
    """
    Whether returning reads that object: all but the chunks of older entries.
    """
    older = {c.sha256 for c in manifest.chunks if c.last <= manifest.last_seq - 20}

    return path.name not in older


def forged(key: str, chunk: Chunk, good: bytes) -> bytes:
    """
    Another chunk of the same length, with the same entries but for a few letters.
    """
    entries = open_chunk(key, chunk, good)
    for letter in string.ascii_letters:
        others = [e.replace(b"text", b"tex" + letter.encode()) for e in entries]
        other, data = seal_chunk(others)
        same = (other.bytes, other.raw_bytes) == (chunk.bytes, chunk.raw_bytes)
        if same and data != good:
            return data
    raise AssertionError("no other chunk has that length")


async def one_reading(mad: Mad, one: Conversation) -> None:
    """
    Read all of it, without patience.
    """
    await mad.get_session(one.id, full=True)
    after: int | None = 0
    while after is not None:
        after = (await mad.timeline(one.id, after=after)).next

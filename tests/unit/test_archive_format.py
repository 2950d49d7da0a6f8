"""
The form of archives: what goes in comes out byte for byte, and nothing else does.
"""

import hashlib
from datetime import UTC, timedelta
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everbus.bus.errors import TooLarge, Unavailable
from everbus.bus.messages import TimelineEntry, pack
from everbus.gateway.store.cold import format
from everbus.gateway.store.cold.format import (
    CHUNK_BYTES,
    CHUNK_ENTRIES,
    MAX_CHUNK_BYTES,
    MAX_DOCUMENT_BYTES,
    fits,
    open_chunk,
    open_document,
    open_manifest,
    seal_chunk,
    seal_document,
    seal_manifest,
)
from everbus.gateway.store.cold.manifest import (
    ArchivePart,
    Chunk,
    Manifest,
    check_generation,
    key_of,
    session_of,
)
from everbus.gateway.store.tiers import Corrupted, WarmSession
from tests.builders import NOW, a_session

zstd = format.zstd
OLD_CHUNK = (
    "87a6736861323536d940376434353662633764326166613130336432386333316361353835643638"
    "38353137333333346630646535336163633734376161393762313333333737643133a56279746573"
    "42a97261775f627974657355a5666972737401a46c61737402a866697273745f6174d7ff1d6f2800"
    "69a42a41a76c6173745f6174d7ff1d6f280069a42a42"
)
OLD_DATA = (
    "28b52ffd2055cd0100e4029284a373657101a26174d7ff1d6f280069a42a41a6617574686f72a766"
    "6965646c6572a5656e747279a16102426203004011c077ad5565"
)
OLD_MANIFEST = (
    "88a6736368656d6101a773657373696f6ea27331a46c696665d7ff1d6f280069a42a40a776657273"
    "696f6e07a86c6173745f73657102a8646f63756d656e7483a6736861323536d94064646464646464"
    "64646464646464646464646464646464646464646464646464646464646464646464646464646464"
    "6464646464646464646464646464646464a562797465730aa97261775f627974657314a66368756e"
    "6b739187a6736861323536d940376434353662633764326166613130336432386333316361353835"
    "64363838353137333333346630646535336163633734376161393762313333333737643133a56279"
    "74657342a97261775f627974657355a5666972737401a46c61737402a866697273745f6174d7ff1d"
    "6f280069a42a41a76c6173745f6174d7ff1d6f280069a42a42a870726576696f7573a0"
)
OLD_POINTER = (
    "sessions/e8/s1/731449fed98a44f7db358e65e35ba1a165c5809b157dafcd8ad295fb2af87afc"
)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
times = st.datetimes(timezones=st.just(UTC)).filter(lambda at: at.year > 1)


def sealed_entries(values: list[Any], first: int = 1) -> list[bytes]:
    return [
        pack(TimelineEntry(seq, NOW + timedelta(seconds=seq), "fiedler", value))
        for seq, value in enumerate(values, first)
    ]


def a_manifest(**changes: Any) -> Manifest:
    chunk, _ = seal_chunk(sealed_entries(["a", "b"]))
    behind, _ = seal_chunk(sealed_entries(["c"], first=3))
    known: dict[str, Any] = {
        "session": "s1",
        "generation": NOW,
        "version": 7,
        "last_seq": 3,
        "document": ArchivePart(sha256="d" * 64, bytes=10, raw_bytes=20),
        "chunks": (chunk, behind),
    }
    return Manifest(**known | changes)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def a_false_chunk(data: bytes, raw_bytes: int) -> tuple[str, Chunk]:
    """
    A chunk of one entry as a manifest would name it that was made by somebody else.
    """
    chunk = Chunk(
        sha256=sha256(data),
        bytes=len(data),
        raw_bytes=raw_bytes,
        first=1,
        last=1,
        first_at=NOW,
        last_at=NOW,
    )
    return key_of("s1", chunk.sha256), chunk


@settings(max_examples=50, deadline=None)
@given(st.lists(json_values, min_size=1, max_size=20), st.integers(1, 2**32))
def test_a_chunk_comes_back_byte_for_byte(values, first):
    entries = sealed_entries(values, first)

    chunk, data = seal_chunk(entries)

    assert open_chunk("k", chunk, data) == entries
    assert (chunk.first, chunk.last) == (first, first + len(values) - 1)
    assert (chunk.bytes, chunk.sha256) == (len(data), sha256(data))
    assert seal_chunk(entries) == (chunk, data)


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(st.text(), json_values),
    st.dictionaries(st.text(), json_values),
    times,
)
def test_a_document_comes_back_whole(context, summary, at):
    session = a_session(
        context_summary=summary, last_active=at, state="dormant", context_bytes=9
    )
    document, data = seal_document(WarmSession(session=session, full_context=context))
    manifest = a_manifest(version=1, last_seq=0, chunks=(), document=document)

    assert open_document(manifest, data) == (session, context)


def test_a_document_has_neither_recent_timeline_nor_place():
    """
    The tail is in the chunks; where the session lies is no part of what it is.
    """
    session = a_session()
    lying = msgspec.structs.replace(
        session, recent_timeline=(b"tail",), archival_status="S3"
    )

    sealed = seal_document(WarmSession(session=lying, full_context={"a": 1}))

    assert sealed == seal_document(WarmSession(session=session, full_context={"a": 1}))


@settings(max_examples=50, deadline=None)
@given(times, st.integers(1, 2**53), st.sampled_from(["", key_of("s1", "e" * 64)]))
def test_a_manifest_comes_back_whole_under_its_own_hash(life, version, previous):
    manifest = a_manifest(generation=life, version=version, previous=previous)

    pointer, data = seal_manifest(manifest)

    assert pointer == key_of("s1", sha256(data))
    assert open_manifest(pointer, data) == manifest
    check_generation(pointer, manifest, "s1", life)
    # The stored name of a field never changes with its name in Python.
    assert "life" in msgspec.msgpack.decode(data)


def test_keys_have_one_form_that_tells_the_session():
    key = key_of("A.b-c_9", "0" * 64)

    assert key.count("/") == 3
    assert session_of(key) == "A.b-c_9"


@pytest.mark.parametrize(
    "key",
    [
        "",
        "sessions",
        f"sessions/00/s1/{'0' * 64}",
        key_of("s1", "0" * 64) + "\n",
        key_of("s1", "0" * 63),
        key_of("s1", "G" * 64),
        key_of("../s1", "0" * 64),
        key_of("..", "0" * 64),
        key_of("s1/x", "0" * 64),
        "/" + key_of("s1", "0" * 64),
        key_of("s1", "0" * 64).replace("s1", "s2"),
    ],
)
def test_any_other_key_is_refused(key):
    with pytest.raises(Corrupted) as refused:
        session_of(key)

    assert refused.value.details == {"key": key, "cause": "corrupted"}


def test_chunks_are_filled_up_to_their_bounds():
    assert fits(0, 0, b"x" * (CHUNK_BYTES + 1))
    assert fits(1, CHUNK_BYTES - 5, b"12345")
    assert not fits(1, CHUNK_BYTES - 5, b"123456")
    assert fits(CHUNK_ENTRIES - 1, 9, b"x")
    assert not fits(CHUNK_ENTRIES, 9, b"x")


def spoilt(data: bytes) -> dict[str, bytes]:
    """
    *data* with each kind of damage, by its name.
    """
    flipped = {}
    for place in (0, len(data) // 2, len(data) - 1):
        changed = bytearray(data)
        changed[place] ^= 1
        flipped[f"flipped at {place} of {len(data)}"] = bytes(changed)
    return flipped | {
        "truncated": data[:-1],
        "empty": b"",
        "longer": data + b"\0",
        "another frame behind": data + zstd.compress(b"more"),
        "other of the same length": b"x" * len(data),
    }


@pytest.mark.parametrize("damage", range(8))
def test_damaged_objects_are_refused(damage):
    entries = sealed_entries(["hi", {"text": "there"}])
    chunk, chunk_data = seal_chunk(entries)
    document, document_data = seal_document(WarmSession(session=a_session()))
    manifest = a_manifest(version=1, last_seq=0, chunks=(), document=document)
    pointer, manifest_data = seal_manifest(manifest)

    with pytest.raises(Corrupted):
        open_chunk("k", chunk, [*spoilt(chunk_data).values()][damage])
    with pytest.raises(Corrupted):
        open_document(manifest, [*spoilt(document_data).values()][damage])
    with pytest.raises(Corrupted):
        open_manifest(pointer, [*spoilt(manifest_data).values()][damage])


def test_every_single_flipped_bit_of_a_chunk_is_noticed():
    chunk, data = seal_chunk(sealed_entries(["hi"]))

    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corrupted):
            open_chunk("k", chunk, bytes(flipped))


def test_swapped_objects_are_refused():
    one, one_data = seal_chunk(sealed_entries(["a"]))
    two, two_data = seal_chunk(sealed_entries(["b"]))

    assert one.bytes == two.bytes
    with pytest.raises(Corrupted, match="SHA-256"):
        open_chunk("k", one, two_data)
    with pytest.raises(Corrupted, match="SHA-256"):
        open_chunk("k", two, one_data)


def test_an_older_manifest_under_the_key_is_refused():
    _, older = seal_manifest(a_manifest(version=6))
    pointer, _ = seal_manifest(a_manifest(version=7))

    with pytest.raises(Corrupted, match="SHA-256"):
        open_manifest(pointer, older)


def test_a_manifest_of_another_session_is_refused():
    """
    Copied under a key of ours, hash and all, it still tells whose it is.
    """
    _, data = seal_manifest(a_manifest(session="s2"))

    with pytest.raises(Corrupted, match="another session"):
        open_manifest(key_of("s1", sha256(data)), data)


@pytest.mark.parametrize(
    ("session_id", "life"), [("s2", NOW), ("s1", NOW + timedelta(microseconds=1))]
)
def test_a_manifest_of_another_life_is_refused(session_id, life):
    with pytest.raises(Corrupted, match="is not of session"):
        check_generation("k", a_manifest(), session_id, life)


@pytest.mark.parametrize("field", ["version", "last_seq", "generation", "session"])
def test_a_document_of_another_version_is_refused(field):
    """
    The manifest's own hash guards against others; this one against us.
    """
    document, data = seal_document(WarmSession(session=a_session()))
    true = a_manifest(version=1, last_seq=0, chunks=(), document=document)
    changed = {
        "version": 2,
        "last_seq": 1,
        "generation": NOW + timedelta(seconds=1),
        "session": "s2",
    }

    false = msgspec.structs.replace(true, **{field: changed[field]})

    assert open_document(true, data)
    with pytest.raises(Corrupted, match="another session or version"):
        open_document(false, data)


def gapped(first: int, last: int, last_seq: int) -> Manifest:
    """
    A manifest whose second chunk is said to hold *first* to *last*.
    """
    one, two = a_manifest().chunks
    two = msgspec.structs.replace(two, first=first, last=last)

    return a_manifest(chunks=(one, two), last_seq=last_seq)


@pytest.mark.parametrize(
    "manifest",
    [
        gapped(4, 4, 4),
        gapped(2, 3, 3),
        gapped(3, 2, 2),
        gapped(3, 4, 3),
        a_manifest(last_seq=4),
        a_manifest(chunks=()),
        a_manifest(chunks=a_manifest().chunks[1:]),
        a_manifest(chunks=a_manifest().chunks[::-1]),
    ],
)
def test_a_manifest_with_a_hole_is_refused(manifest):
    with pytest.raises(Corrupted, match="one after the other"):
        open_manifest(*seal_manifest(manifest))


def test_a_manifest_that_is_none_is_refused():
    for data in (b"", b"\xc1", pack([1, 2]), pack({"schema": 1}), b"\x91" * 5000):
        with pytest.raises(Corrupted, match="cannot be decoded"):
            open_manifest(key_of("s1", sha256(data)), data)


def test_a_manifest_cannot_name_a_key_outside_its_session():
    fields = msgspec.msgpack.decode(seal_manifest(a_manifest())[1])
    fields["document"]["sha256"] = "../../../s2/" + "0" * 52
    data = pack(fields)

    with pytest.raises(Corrupted, match="cannot be decoded"):
        open_manifest(key_of("s1", sha256(data)), data)


def test_a_manifest_of_a_newer_schema_is_not_called_damaged():
    """
    It is read by the next release; an alarm would send somebody for backups.
    """
    fields = msgspec.msgpack.decode(seal_manifest(a_manifest())[1])
    data = pack(fields | {"schema": 2, "chunks": "otherwise"})

    with pytest.raises(Unavailable, match="upgrade") as refused:
        open_manifest(key_of("s1", sha256(data)), data)

    assert not isinstance(refused.value, Corrupted)


@pytest.mark.parametrize(
    ("data", "raw_bytes"),
    [
        pytest.param(zstd.compress(bytes(2**26)), 100, id="bomb of a false size"),
        pytest.param(zstd.compress(bytes(2**26)), 2**26, id="bomb of a true size"),
        pytest.param(zstd.compress(zstd.compress(b"x")), 100, id="nested"),
        pytest.param(zstd.compress(b"") * 1000, 100, id="many frames"),
        pytest.param(b"\x50\x2a\x4d\x18\x04\0\0\0junk", 100, id="skippable frame"),
        pytest.param(zstd.compress(b"\x90")[:-1], 1, id="cut frame"),
        pytest.param(zstd.compress(b"\x90" * 2), 1, id="one byte more than said"),
        pytest.param(zstd.compress(b"\x90"), 2, id="one byte less than said"),
        pytest.param(zstd.compress(b"\x90") + b"\0", 1, id="trailing garbage"),
        pytest.param(zstd.compress(b"\x90"), 0, id="said to be empty"),
        pytest.param(zstd.compress(b"\x90"), -1, id="said to be negative"),
        pytest.param(zstd.compress(b"\x90"), 1, id="no entries"),
        pytest.param(zstd.compress(b"\x91" * 5000), 5000, id="deep"),
        pytest.param(zstd.compress(b"\x91\xc0"), 2, id="no timeline entry"),
        pytest.param(zstd.compress(b"\xdd\xff\xff\xff\xff"), 5, id="4G entries"),
        pytest.param(b"no frame", 8, id="no frame"),
        pytest.param(
            zstd.compress(
                bytes(2**24), options={zstd.CompressionParameter.window_log: 27}
            ),
            100,
            id="window of 128 MiB",
        ),
    ],
)
def test_bombs_and_lies_are_refused(data, raw_bytes, monkeypatch):
    """
    Although their hash is right: whoever writes the manifest may be mistaken, too.
    And none of them gets more memory than an object of ours may have.
    """
    largest = 0

    class Watched:
        def __init__(self, **options):
            self._own = zstd.ZstdDecompressor(**options)

        def __getattr__(self, name):
            return getattr(self._own, name)

        def decompress(self, data, max_length=-1):
            nonlocal largest
            raw = self._own.decompress(data, max_length)
            largest = max(largest, len(raw))
            return raw

    watched = SimpleNamespace(ZstdDecompressor=Watched, ZstdError=zstd.ZstdError)
    monkeypatch.setattr(format, "zstd", watched)

    with pytest.raises(Corrupted):
        open_chunk(*a_false_chunk(data, raw_bytes), data)

    assert largest <= MAX_CHUNK_BYTES + 1


def disguised(kind: str) -> tuple[Chunk, bytes]:
    """
    A chunk with a true entry in it, and true hash and sizes but for *kind*.
    """
    entries = sealed_entries(["hi"])
    chunk, data = seal_chunk(entries)
    raw = pack([msgspec.Raw(entry) for entry in entries])
    if kind == "garbage behind":
        data += b"\0"
    elif kind == "frame behind":
        data += zstd.compress(b"")
    elif kind == "unfinished":
        checked = {zstd.CompressionParameter.checksum_flag: 1}
        data = zstd.compress(raw, options=checked)[:-4]
    elif kind == "large window":
        wide = {zstd.CompressionParameter.window_log: 27}
        compressor = zstd.ZstdCompressor(options=wide)
        data = compressor.compress(raw) + compressor.flush()
    size = len(data) + (kind == "false length")

    return msgspec.structs.replace(chunk, sha256=sha256(data), bytes=size), data


def test_a_disguise_is_told_from_the_true_one_by_its_one_flaw():
    assert open_chunk("k", *disguised("none")) == sealed_entries(["hi"])


@pytest.mark.parametrize(
    "kind",
    ["garbage behind", "frame behind", "unfinished", "large window", "false length"],
)
def test_a_frame_is_refused_though_the_entries_in_it_are_right(kind):
    with pytest.raises(Corrupted):
        open_chunk("k", *disguised(kind))


def test_a_chunk_with_a_hole_is_refused():
    one, _, three = sealed_entries([1, 2, 3])
    chunk, data = seal_chunk([one, three])

    with pytest.raises(Corrupted, match="has not the entries 1 to 3"):
        open_chunk("k", chunk, data)


def test_what_could_not_be_opened_is_not_sealed():
    context = {"text": "x" * MAX_DOCUMENT_BYTES}

    with pytest.raises(TooLarge):
        seal_chunk(sealed_entries(["x" * MAX_CHUNK_BYTES]))
    with pytest.raises(TooLarge):
        seal_document(WarmSession(session=a_session(), full_context=context))


def test_the_largest_document_fits():
    """
    8 MiB of full context, which is the limit, and 50 KiB of state.
    """
    context = {"text": "x" * 2**23}
    session = a_session(context_summary={"text": "y" * 50_000})
    document, data = seal_document(WarmSession(session=session, full_context=context))
    manifest = a_manifest(version=1, last_seq=0, chunks=(), document=document)

    assert open_document(manifest, data) == (session, context)


def test_what_was_sealed_by_an_older_release_is_opened():
    """
    Archives outlive releases: these bytes of the first one are to be read for ever.
    """
    chunk = msgspec.msgpack.decode(bytes.fromhex(OLD_CHUNK), type=Chunk)
    opened = open_chunk("k", chunk, bytes.fromhex(OLD_DATA))

    assert opened == sealed_entries(["a", "b"])
    manifest = open_manifest(OLD_POINTER, bytes.fromhex(OLD_MANIFEST))
    assert manifest == a_manifest(chunks=(chunk,), last_seq=2)

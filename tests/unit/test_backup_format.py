"""
The form of a backup: whatever is cut off or changed in it is found, with its place.
"""

import os
import stat
import struct

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everbus.bus.errors import AlreadyExists, Invalid
from everbus.compose.backup import format
from everbus.compose.backup.folder import (
    MANIFEST,
    PROGRESS,
    BackupFolder,
    BackupManifest,
    BackupPart,
)
from everbus.compose.backup.format import (
    HEAD,
    MAGIC,
    CopyRecord,
    DamagedBackup,
    PartWriter,
    check_part,
    read_part,
)

RECORDS = st.lists(
    st.builds(
        CopyRecord,
        kind=st.sampled_from(["sessions", "timeline"]),
        name=st.text(max_size=5),
        data=st.binary(max_size=60),
    ),
    max_size=12,
)


def written_to(path, records):
    writer = PartWriter(path)
    for record in records:
        writer.add(record)
    return writer.finish()


def some(count=9):
    return [CopyRecord("sessions", f"s{n}", bytes([n]) * 40) for n in range(count)]


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(format, "CHUNK_BYTES", 100)


@pytest.fixture
def part(tmp_path, small_chunks):
    """
    A part of several chunks.
    """
    path = tmp_path / "sessions-00002.part"
    return path, written_to(path, some())


@settings(max_examples=50, deadline=None)
@given(records=RECORDS)
def test_what_is_written_is_read(records, tmp_path_factory):
    path = tmp_path_factory.mktemp("part") / "a.part"
    written = written_to(path, records)

    wanted = [one.name for one in records if one.kind == "sessions"]
    assert check_part(path, written, "sessions") == wanted
    assert list(read_part(path)) == records


@settings(max_examples=50, deadline=None)
@given(before=RECORDS, undone=RECORDS, after=RECORDS)
def test_what_is_rolled_back_was_never_written(before, undone, after, tmp_path_factory):
    folder = tmp_path_factory.mktemp("part")
    writer = PartWriter(folder / "a.part")
    for record in before:
        writer.add(record)
    mark = writer.mark()
    for record in undone:
        writer.add(record)
    writer.roll_back(mark)
    for record in after:
        writer.add(record)
    written = writer.finish()

    check_part(folder / "a.part", written, "")
    assert list(read_part(folder / "a.part")) == [*before, *after]


def test_a_part_cut_off_anywhere_is_damaged(part):
    """
    Each length, so each boundary of magic, chunks and trailer.
    """
    path, written = part
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedBackup, match="sessions-00002"):
            check_part(path, written, "sessions")


def test_a_changed_byte_anywhere_is_damaged(part):
    path, written = part
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DamagedBackup):
            check_part(path, written, "sessions")


def test_the_error_names_part_and_offset(part):
    """
    The offset of the chunk that is damaged, not of the first one.
    """
    path, written = part
    whole = bytearray(path.read_bytes())
    first = len(MAGIC) + 1
    stored, *_ = HEAD.unpack(whole[first : first + HEAD.size])
    second = first + HEAD.size + stored
    whole[second + HEAD.size + 3] ^= 0xFF
    path.write_bytes(whole)

    with pytest.raises(DamagedBackup) as damaged:
        check_part(path, written, "sessions")

    assert damaged.value.details == {"part": path.name, "offset": second}
    assert f"damaged at byte {second}" in damaged.value.message


def test_bytes_behind_the_trailer_are_damage(part):
    path, written = part
    path.write_bytes(path.read_bytes() + b"x")

    with pytest.raises(DamagedBackup, match="trailer"):
        check_part(path, written, "sessions")


def test_a_chunk_that_is_left_out_is_damage(part):
    path, written = part
    whole = path.read_bytes()
    first = len(MAGIC) + 1
    stored, *_ = HEAD.unpack(whole[first : first + HEAD.size])
    path.write_bytes(whole[:first] + whole[first + HEAD.size + stored :])

    with pytest.raises(DamagedBackup, match="trailer"):
        check_part(path, written, "sessions")


def test_another_part_in_its_place_is_damage(part, tmp_path):
    path, written = part
    written_to(path, some(3))

    with pytest.raises(DamagedBackup, match="another part"):
        check_part(path, written, "sessions")


def test_a_part_that_is_gone_is_damage(part):
    path, written = part
    path.unlink()

    with pytest.raises(DamagedBackup, match="cannot be read"):
        check_part(path, written, "sessions")


def test_a_newer_format_is_refused(part):
    path, _ = part
    path.write_bytes(MAGIC + bytes([2]) + path.read_bytes()[len(MAGIC) + 1 :])

    with pytest.raises(DamagedBackup, match="format 2, and this everbus reads 1"):
        list(read_part(path))


@pytest.mark.parametrize("size", [2**32 - 1, 2**27])
def test_a_size_in_a_header_is_no_reason_to_take_memory(part, size):
    path, _ = part
    head = struct.pack(">II32s", 10, size, bytes(32))
    path.write_bytes(MAGIC + bytes([1]) + head + bytes(10))

    with pytest.raises(DamagedBackup, match="bytes of"):
        list(read_part(path))


def test_only_its_owner_may_read_a_part(part):
    path, _ = part

    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def a_manifest(**fields):
    known = {"id": "b1", "everbus": "1", "database": "d", "begun": "2026-11-29"}
    return BackupManifest(**known | fields)


def a_finished_folder(tmp_path):
    folder = BackupFolder(tmp_path / "b")
    folder.open_for_writing()
    folder.finish(a_manifest(finished="2026-11-29"))
    folder.close()
    return folder


def test_a_finished_backup_has_a_manifest_and_no_progress(tmp_path):
    folder = a_finished_folder(tmp_path)

    assert folder.manifest() == a_manifest(finished="2026-11-29")
    assert not (folder.path / PROGRESS).exists()
    for file in folder.path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


def test_a_manifest_changed_anywhere_is_damage(tmp_path):
    folder = a_finished_folder(tmp_path)
    path = folder.path / MANIFEST
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DamagedBackup):
            folder.manifest()


def test_a_manifest_cut_off_anywhere_is_damage(tmp_path):
    folder = a_finished_folder(tmp_path)
    path = folder.path / MANIFEST
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedBackup):
            folder.manifest()


def test_a_field_of_a_later_everbus_is_no_damage(tmp_path):
    folder = a_finished_folder(tmp_path)
    path = folder.path / MANIFEST
    sealed = msgspec.json.decode(path.read_bytes())
    body = msgspec.json.encode({**sealed["backup"], "new": 1})
    digest = format.hashlib.sha256(body).hexdigest()
    sealed |= {"sha256": digest, "backup": msgspec.Raw(body)}
    path.write_bytes(msgspec.json.encode(sealed))

    assert folder.manifest().id == "b1"


def test_a_finished_backup_is_never_written_over(tmp_path):
    folder = a_finished_folder(tmp_path)

    with pytest.raises(AlreadyExists, match="finished backup"):
        folder.open_for_writing()


def test_a_folder_of_somebody_else_stays_as_it_is(tmp_path):
    (tmp_path / "mine.part").write_text("mine")

    with pytest.raises(AlreadyExists, match="not empty"):
        BackupFolder(tmp_path).open_for_writing()

    assert (tmp_path / "mine.part").read_text() == "mine"


def test_an_unfinished_backup_cannot_be_restored_and_goes_on(tmp_path):
    """
    What is not noted is removed, what is noted stays.
    """
    folder = BackupFolder(tmp_path / "b")
    assert folder.open_for_writing() is None
    for name in ("keys.part", "sessions-00002.part", ".sessions-00003.part.draft"):
        (folder.path / name).write_text("x")
    noted = a_manifest(parts=(BackupPart(name="keys.part", bytes=1, sha256="x"),))
    folder.note(noted)
    folder.close()

    with pytest.raises(Invalid, match="not finished"):
        folder.manifest()
    assert folder.open_for_writing() == noted
    there = {file.name for file in folder.path.iterdir()}
    assert there == {".lock", PROGRESS, "keys.part"}


def test_two_backups_never_write_into_one_folder(tmp_path):
    one, other = (BackupFolder(tmp_path / "b") for _ in range(2))
    one.open_for_writing()

    with pytest.raises(Exception, match="another `everbus backup`"):
        other.open_for_writing()

    one.close()
    assert other.open_for_writing() is None
    other.close()


def test_what_is_no_backup_says_so(tmp_path):
    with pytest.raises(Invalid, match="holds no backup"):
        BackupFolder(tmp_path).manifest()


def test_a_backup_goes_into_no_file(tmp_path):
    (tmp_path / "b").write_text("mine")

    with pytest.raises(AlreadyExists, match="is a file"):
        BackupFolder(tmp_path / "b").open_for_writing()

"""
The spool's file: whose it is, what survives in it, and what happens when it is full.
"""

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import time

import pytest

from everbus.bus.errors import Invalid, Overloaded, Unavailable
from everbus.bus.messages import pack
from everbus.bus.spool import ROW_BYTES, Spool
from tests.builders import an_envelope

HELD = """
import sys
from everbus.bus.spool import Spool

spool = Spool.open(sys.argv[1], "m")
spool.add(0, b"of the other", attempted=False)
print("held", flush=True)
sys.stdin.read()
"""
# Its files cannot grow beyond what the second argument says, as on a full disk.
FULL = """
import resource, sys
from everbus.bus.errors import Overloaded
from everbus.bus.spool import Spool

spool = Spool.open(sys.argv[1], "m")
spool.add(0, b"x" * 500, attempted=False)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
size = __import__("os").stat(sys.argv[1] + "-wal").st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20_000, hard))
kept = 1
try:
    while True:
        spool.add(0, b"x" * 500, attempted=False)
        kept += 1
except Overloaded as error:
    print(error.message)
before = spool.count, spool.bytes, spool.last
try:
    spool.mark([1], 1.0)
except Overloaded:
    print("not marked")
spool.remove([(1, 500)])
assert (spool.count, spool.bytes, spool.last) == before
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
spool.add(0, b"behind", attempted=False)
spool.remove([(2, 500)])
print(kept, spool.count)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.spool"


def copied(path, to):
    """
    What SIGKILL at this moment would leave of the file.
    """
    for end in ("", "-wal", "-journal"):
        if os.path.exists(f"{path}{end}"):
            shutil.copy(f"{path}{end}", f"{to}{end}")
    return to


def held_by_another(path):
    return subprocess.Popen(
        [sys.executable, "-c", HELD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def commands_in(spool):
    return [row.command for row in spool.read(0, 100, 10**9)]


class TestKeeping:
    def test_what_was_added_is_there_again_in_its_order(self, path, tmp_path):
        """
        Without any close, as after SIGKILL.
        """
        spool = Spool.open(path, "m")
        for n in range(5):
            spool.add(n % 2, b"%d" % n, attempted=n == 3)
        spool.remove([(2, 1)])
        after = Spool.open(copied(path, tmp_path / "after"), "m")

        rows = after.read(0, 100, 10**9)
        assert [(row.partition, row.command) for row in rows] == [
            *((0, b"0"), (0, b"2"), (1, b"3"), (0, b"4"))
        ]
        assert [row.attempted_s is not None for row in rows] == [0, 0, 1, 0]
        assert (after.count, after.last) == (4, 5)
        assert after.bytes == spool.bytes == 4 * (1 + ROW_BYTES)
        assert after.counts() == {0: 3, 1: 1}
        for one in (spool, after):
            one.close()

    def test_rows_are_never_numbered_anew(self, path):
        """
        Else one that was set aside would hide another, or a reader would miss one.
        """
        spool = Spool.open(path, "m")
        spool.add(0, b"first", attempted=True)
        spool.set_aside([1], "for a test")
        spool.close()

        spool = Spool.open(path, "m")
        assert spool.add(0, b"second", attempted=True) == 2
        spool.close()

    def test_what_was_marked_stays_so_and_keeps_its_first_time(self, path):
        spool = Spool.open(path, "m")
        for _ in range(2):
            spool.add(0, b"x", attempted=False)
        spool.mark([1], 1000.7)
        spool.mark([1, 2], 2000.0)

        assert [row.attempted_s for row in spool.read(0, 9, 999)] == [1000, 2000]
        spool.close()

    def test_reading_stops_at_the_bytes_but_gives_one(self, path):
        spool = Spool.open(path, "m")
        for _ in range(4):
            spool.add(0, b"x" * 100, attempted=False)

        assert [row.row for row in spool.read(1, 9, 150)] == [2, 3]
        assert [row.row for row in spool.read(0, 9, 1)] == [1]
        assert [row.row for row in spool.read(0, 3, 9999)] == [1, 2, 3]
        spool.close()

    def test_what_is_set_aside_can_be_read_by_people(self, path):
        spool = Spool.open(path, "m")
        envelope = an_envelope("timeline.append", body={"entry": {"text": "hé"}})
        spool.add(0, pack(envelope), attempted=True)
        spool.add(0, b"\xc1", attempted=False)
        spool.set_aside([1, 2], "too old")
        assert (spool.count, commands_in(spool)) == (0, [])
        # They still take room, so that the file stays bounded.
        assert spool.bytes > 2 * ROW_BYTES
        spool.close()

        with sqlite3.connect(path) as db:
            found = db.execute(
                "SELECT cause, id, kind, session, body FROM doubtful"
            ).fetchall()
            [(attempted,)] = db.execute("SELECT attempted FROM doubtful WHERE row = 1")
        db.close()
        assert found == [
            ("too old", "i1.0.1", "timeline.append", "s1", '{"entry":{"text":"hé"}}'),
            ("too old", "", "", "", b"\xc1"),
        ]
        assert attempted.startswith(time.strftime("%Y-", time.gmtime()))

    def test_a_step_that_fails_half_way_leaves_nothing_behind(self, path):
        spool = Spool.open(path, "m")
        spool.add(0, b"x", attempted=False)
        with pytest.raises(ValueError, match="unpack"):
            spool.set_aside([1, 99], "there is no 99")

        assert commands_in(spool) == [b"x"]
        spool.mark([1], 1000.0)
        assert spool.bytes == 1 + ROW_BYTES
        spool.close()

    def test_it_remembers_the_bus(self, path):
        spool = Spool.open(path, "m")
        assert (spool.partitions, spool.lease_ms) == (None, None)
        spool.remember(16, 30_000)
        spool.remember(16, 20_000)
        spool.close()

        spool = Spool.open(path, "m")
        assert (spool.partitions, spool.lease_ms) == (16, 20_000)
        spool.close()

    def test_what_waits_does_not_go_to_a_bus_of_other_partitions(self, path):
        spool = Spool.open(path, "m")
        spool.remember(16, 30_000)
        spool.add(3, b"x", attempted=False)

        with pytest.raises(Invalid, match="16 partitions, and this bus has 8") as told:
            spool.remember(8, 30_000)
        assert str(path) in told.value.message
        assert spool.partitions == 16
        spool.remove([(1, 1)])
        spool.remember(8, 30_000)
        spool.close()


class TestWhoseItIs:
    def test_only_its_owner_reads_it(self, path):
        path.touch(0o644)
        spool = Spool.open(path, "m")
        spool.add(0, b"x", attempted=False)

        for file in (path, path.with_name("m.spool-wal")):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
        spool.close()

    def test_one_process_at_a_time_uses_it_and_sigkill_frees_it(self, path):
        with held_by_another(path) as other:
            assert other.stdout.readline() == b"held\n"

            with pytest.raises(Unavailable, match="in use by another process") as told:
                Spool.open(path, "m")
            assert str(path) in told.value.message
            other.kill()

        spool = Spool.open(path, "m")
        assert commands_in(spool) == [b"of the other"]
        spool.close()

    def test_nor_does_a_second_connection_of_the_same_process(self, path):
        spool = Spool.open(path, "m")
        for _ in range(2):
            with pytest.raises(Unavailable, match="another connection"):
                Spool.open(path, "m")

        # The failed ones took no lock away from the first (fcntl's trap).
        with held_by_another(path) as other:
            assert other.stdout.readline() == b""
        assert other.returncode == 1
        spool.close()

    def test_the_file_of_another_mad_is_refused(self, path):
        Spool.open(path, "m").close()

        with pytest.raises(Invalid, match="of the MAD m, not of eve"):
            Spool.open(path, "eve")
        Spool.open(path, "m").close()

    def test_a_newer_schema_is_refused(self, path):
        Spool.open(path, "m").close()
        with sqlite3.connect(path) as db:
            db.execute("UPDATE about SET value = '2' WHERE name = 'schema'")
        db.close()

        with pytest.raises(Invalid, match="has schema 2, this SDK knows 1"):
            Spool.open(path, "m")

    @pytest.mark.parametrize("journal", ["delete", "wal"])
    def test_another_database_is_refused_and_stays_as_it_is(self, path, journal):
        with sqlite3.connect(path) as db:
            db.execute(f"PRAGMA journal_mode = {journal}")
            db.execute("CREATE TABLE theirs (x)")
        db.close()
        before, mode = path.read_bytes(), path.stat().st_mode

        with pytest.raises(Invalid, match="a database of something else") as told:
            Spool.open(path, "m")

        assert told.value.details == {"field": "spool"}
        assert (path.read_bytes(), path.stat().st_mode) == (before, mode)

    @pytest.mark.parametrize(
        "content", [b"# my notes\n" * 1000, b"x", b"SQLite format 3\0" + b"\xff" * 4080]
    )
    def test_another_file_is_refused_and_stays_as_it_is(self, path, content):
        path.write_bytes(content)

        with pytest.raises(Invalid, match=r"no spool|no database"):
            Spool.open(path, "m")

        assert path.read_bytes() == content

    @pytest.mark.parametrize("at", [0, 100, 4096, "cut"])
    def test_a_damaged_one_is_refused_and_stays_as_it_is(self, path, at):
        spool = Spool.open(path, "m")
        for _ in range(100):
            spool.add(0, b"x" * 300, attempted=False)
        spool.close()
        content = bytearray(path.read_bytes())
        if at == "cut":
            del content[len(content) // 2 :]
        else:
            content[at : at + 64] = b"\xa5" * 64
        path.write_bytes(content)

        with pytest.raises(Invalid) as told:
            Spool.open(path, "m")

        assert str(path) in told.value.message
        assert path.read_bytes() == content

    def test_a_command_damaged_on_disk_is_known_by_its_checksum(self, path):
        spool = Spool.open(path, "m")
        for letter in (b"a", b"b"):
            spool.add(0, letter * 300, attempted=False)
        spool.close()
        content = path.read_bytes()
        path.write_bytes(content.replace(b"b" * 300, b"b" * 299 + b"c"))

        spool = Spool.open(path, "m")
        assert [row.sound for row in spool.read(0, 9, 9999)] == [True, False]
        spool.close()

    def test_where_no_file_can_be_the_error_says_so(self, tmp_path):
        for path in (tmp_path / "none" / "m.spool", tmp_path):
            with pytest.raises(Invalid, match="Name a file that can"):
                Spool.open(path, "m")

    def test_a_name_that_sqlite_takes_for_memory_is_a_file(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Spool.open(":memory:", "m").close()

        assert (tmp_path / ":memory:").stat().st_size > 0


class TestFull:
    def test_more_than_its_limit_is_refused_and_the_rest_stays(self, path):
        spool = Spool.open(path, "m", max_bytes=3 * (100 + ROW_BYTES))
        for _ in range(3):
            spool.add(0, b"x" * 100, attempted=False)

        with pytest.raises(Overloaded) as told:
            spool.add(0, b"y", attempted=False)
        for word in (str(path), "492 bytes", "flush()", "3 commands"):
            assert word in told.value.message
        assert told.value.details == {"waiting": 3, "limit": 492}
        spool.remove([(1, 100)])
        spool.add(0, b"y", attempted=False)
        assert commands_in(spool) == [b"x" * 100] * 2 + [b"y"]
        spool.close()

    def test_a_full_disk_refuses_and_leaves_nothing_half_written(self, path):
        ran = subprocess.run(
            [sys.executable, "-c", FULL, str(path)], capture_output=True, check=False
        )
        assert ran.returncode == 0, ran.stderr.decode()
        told, marked, warned, counts = ran.stdout.decode().splitlines()
        kept, count = map(int, counts.split())

        assert "is the disk full?" in told
        assert str(path) in told
        assert marked == "not marked"
        assert "spool.not_cleared" in warned
        # Those that could not be forgotten then are, now that there is room.
        assert count == kept + 1 - 2
        spool = Spool.open(path, "m")
        assert commands_in(spool) == [b"x" * 500] * (kept - 2) + [b"behind"]
        spool.close()

    def test_after_close_it_says_so(self, path):
        spool = Spool.open(path, "m")
        spool.close()

        with pytest.raises(Unavailable, match="closed"):
            spool.add(0, b"x", attempted=False)

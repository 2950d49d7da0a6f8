"""
The publisher with a spool: once, in order, through any death of its process.
"""

import asyncio
import shutil
import sqlite3
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from everbus.bus.errors import Overloaded, Unauthenticated
from everbus.bus.keys import partition_of
from everbus.bus.lease import Lease
from everbus.bus.outgoing_command import INHERITED_EPOCH
from everbus.bus.send_queue import HORIZON_S
from everbus.bus.spool import Spool
from tests.builders import an_unsent
from tests.unit.fake_bus import FakeBus, FakeCredential, Killed, a_publisher_on, running

SESSIONS = [f"s{n}" for n in range(3)]
GRANT = b"a grant of these tests"


class Life:
    """
    One process of a MAD after the other, on one file.

    Attributes:
        owed: session → what was appended to it, in order.
    """

    def __init__(self, folder, fake):
        self.folder, self.fake = folder, fake
        self.owed = {session: [] for session in SESSIONS}
        self.lives = 0
        self.path = folder / "0.spool"
        self.begin()

    def begin(self):
        self.lives += 1
        self.spool = Spool.open(self.path, "m")
        self.publisher = a_publisher_on(
            self.fake,
            f"i{self.lives}",
            spool=self.spool,
            credential=FakeCredential(GRANT),
        )

    def die(self):
        """
        Go on with what SIGKILL at this moment leaves of the file.
        """
        after = self.folder / f"{self.lives}.spool"
        for end in ("", "-wal"):
            if Path(f"{self.path}{end}").exists():
                shutil.copy(f"{self.path}{end}", f"{after}{end}")
        self.spool.close()
        self.path = after
        self.begin()

    def append(self, session):
        n = sum(map(len, self.owed.values()))
        envelope = an_unsent("timeline.append", session=session, body={"entry": n})
        self.publisher.publish(envelope, partition_of(session, 4))
        self.owed[session].append(n)

    def ask(self):
        envelope = an_unsent("session.get", session=SESSIONS[0], reply=True)
        with suppress(Overloaded):
            self.publisher.publish(envelope, partition_of(SESSIONS[0], 4))

    async def write(self, fault=None):
        """
        One write, and what becomes of it; the one before that asks who is there.
        """
        publisher = self.publisher
        self.fake.faults = [fault] if publisher._wire.connected else [None, fault]
        try:
            error = await publisher._write()
            if error is not None:
                publisher._breaker.failed(error)
        except Killed:
            self.die()
        self.fake.faults = []

    async def flush(self):
        async with running(self.publisher), asyncio.timeout(10):
            await self.publisher.flush()


@pytest.fixture
def fake():
    return FakeBus()


@pytest.fixture
def life(tmp_path, fake):
    life = Life(tmp_path, fake)
    yield life
    life.spool.close()


@pytest.fixture
def small(monkeypatch):
    """
    Four commands are in memory at most, and are loaded two by two.
    """
    monkeypatch.setattr("everbus.bus.send_queue.MAX_WAITING", 4)
    monkeypatch.setattr("everbus.bus.send_queue.CHUNK", 2)


FAULTS = (None, "lost", "unheard", "killed before", "killed behind")
STEPS = st.lists(
    st.one_of(
        st.sampled_from(SESSIONS).map(lambda session: ("append", session)),
        st.sampled_from(FAULTS).map(lambda fault: ("write", fault)),
        st.just(("die", None)),
        st.just(("ask", None)),
    ),
    max_size=40,
)


@settings(max_examples=150)
@given(steps=STEPS)
def test_whatever_happens_every_append_is_there_once_and_in_order(steps):
    """
    Appends, writes that get lost either way, and deaths, in any order.
    """

    async def lived(folder):
        fake = FakeBus()
        life = Life(folder, fake)
        for step, detail in steps:
            match step:
                case "append":
                    life.append(detail)
                case "write":
                    await life.write(detail)
                case "die":
                    life.die()
                case _:
                    life.ask()
        await life.flush()
        left = life.spool.count
        life.spool.close()

        assert fake.violations(life.owed).clean
        assert left == 0

    with (
        tempfile.TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patch,
        structlog.testing.capture_logs(),
    ):
        patch.setattr("everbus.bus.send_queue.MAX_WAITING", 4)
        patch.setattr("everbus.bus.send_queue.CHUNK", 2)
        patch.setattr("everbus.bus.send_queue.ENTRY_COMMANDS", 2)
        asyncio.run(lived(Path(folder)))


class TestDisk:
    async def test_a_command_is_on_disk_before_publish_returns(self, life):
        life.append("s0")

        assert life.spool.count == 1

    async def test_and_leaves_it_when_it_is_on_the_bus(self, life):
        life.append("s0")
        await life.write("unheard")
        assert life.spool.count == 1
        await life.write()
        assert life.spool.count == 0

    async def test_requests_are_not_kept(self, life):
        life.ask()

        assert life.spool.count == 0
        assert life.publisher.waiting == 1

    async def test_an_update_without_reply_is_kept(self, life):
        update = an_unsent("session.update", session="s0", body={"patch": {}})
        life.publisher.publish(update, partition_of("s0", 4))
        life.die()
        await life.flush()

        assert [one.kind for one in life.fake.arrived] == ["session.update"]

    async def test_no_grant_is_in_the_file(self, life, tmp_path):
        life.publisher._credential.grant = GRANT
        outgoing = life.publisher.publish(an_unsent("timeline.append"), 0)
        assert outgoing.envelope.grant == GRANT
        life.spool.close()

        for file in tmp_path.iterdir():
            assert GRANT not in file.read_bytes()
        life.spool = Spool.open(life.path, "m")
        assert life.spool.count == 1

    async def test_without_a_grant_nothing_is_sent_from_it(self, life):
        """
        Whoever is refused for good leaves on disk what a later process can send.
        """
        life.publisher._credential.error = Unauthenticated("for a test")
        life.append("s0")
        async with running(life.publisher):
            with pytest.raises(Unauthenticated):
                await life.publisher.flush()
        assert (life.fake.arrived, life.spool.count) == ([], 1)

        life.die()
        await life.flush()
        assert life.fake.applied["s0"] == life.owed["s0"]

    async def test_a_full_spool_refuses_appends_and_no_number_is_missing(
        self, fake, tmp_path
    ):
        spool = Spool.open(tmp_path / "m", "m", max_bytes=500)
        publisher = a_publisher_on(fake, spool=spool, credential=FakeCredential(GRANT))
        append = an_unsent("timeline.append", body={"entry": "x"})
        with pytest.raises(Overloaded, match=r"the spool .* is full"):  # noqa: PT012
            while True:
                publisher.publish(append, 0)
        # What is not kept on disk needs no room there.
        publisher.publish(an_unsent("session.get", reply=True), 0)
        kept = spool.count
        async with running(publisher):
            await publisher.flush()
            publisher.publish(append, 0)
            await publisher.flush()

        assert [one.id for one in fake.arrived] == [
            f"i.0.{n}" for n in range(1, kept + 3)
        ]
        spool.close()


class TestRest:
    async def test_beyond_memory_appends_rest_on_disk_and_keep_their_order(
        self, life, small
    ):
        for n in range(11):
            life.append(SESSIONS[n % 3])
        backlog = life.publisher._queue
        assert (backlog.count, backlog.on_disk) == (4, 7)
        assert life.publisher.waiting == 11

        await life.flush()
        assert life.fake.applied == life.owed
        assert life.publisher.waiting == life.spool.count == 0

    async def test_requests_do_not_overtake_them(self, life, small):
        for _ in range(5):
            life.append("s0")
        await life.write()
        # Now there is room in memory, and one that rests is not in it yet.
        assert (life.publisher._queue.count, life.publisher._queue.on_disk) == (
            0,
            1,
        )
        with pytest.raises(Overloaded, match="rest in the spool"):
            life.publisher.publish(an_unsent("session.get", reply=True), 0)

        await life.flush()
        life.publisher.publish(an_unsent("session.get", reply=True), 0)

    async def test_those_that_come_meanwhile_rest_behind_them(self, life, small):
        for _ in range(5):
            life.append("s0")
        await life.write()
        life.append("s0")
        assert life.publisher._queue.on_disk

        await life.flush()
        assert life.fake.applied["s0"] == life.owed["s0"]


class TestAfterlife:
    async def test_what_a_dead_process_left_is_sent_first_under_its_own_ids(self, life):
        life.append("s0")
        life.append("s0")
        life.die()
        life.append("s0")
        await life.flush()

        partition = partition_of("s0", 4)
        assert [(one.id, one.grant) for one in life.fake.arrived] == [
            (f"i1.{partition}.1", GRANT),
            (f"i1.{partition}.2", GRANT),
            (f"i2.{partition}.1", GRANT),
        ]

    async def test_its_loss_does_not_refuse_them(self, life):
        """
        They come under an epoch that no lease has, whatever became of the dead one's.
        """
        life.append("s0")
        life.die()
        lease = Lease("i3")
        assert lease.declare_lost(6)
        life.publisher = a_publisher_on(
            life.fake,
            "i3",
            spool=life.spool,
            credential=FakeCredential(GRANT),
            lease=lease,
        )
        life.append("s0")
        await life.flush()

        assert [one.epoch for one in life.fake.arrived] == [INHERITED_EPOCH, 7]

    async def test_what_rested_counts_under_the_epoch_of_its_own_process(
        self, life, small
    ):
        lease = Lease("i3")
        assert lease.declare_lost(6)
        life.publisher = a_publisher_on(
            life.fake,
            "i3",
            spool=life.spool,
            credential=FakeCredential(GRANT),
            lease=lease,
        )
        for _ in range(9):
            life.append("s0")
        await life.flush()

        assert {one.epoch for one in life.fake.arrived} == {7}


class TestDoubtful:
    @pytest.fixture
    def aged(self, life):
        """
        Lets what lies in the file be as old as that.
        """

        def aged(**columns):
            life.spool.close()
            with sqlite3.connect(life.path) as db:
                for name, value in columns.items():
                    db.execute(f"UPDATE waiting SET {name} = ?", (value,))  # noqa: S608
            db.close()
            life.begin()

        return aged

    async def test_what_may_have_arrived_too_long_ago_is_kept_but_not_sent(
        self, life, aged
    ):
        life.append("s0")
        aged(attempted_s=int(time.time()) - HORIZON_S - 10)
        life.append("s0")
        with structlog.testing.capture_logs() as logs:
            await life.flush()

        assert life.fake.applied["s0"] == [1]
        [told] = [one for one in logs if one["event"] == "commands.doubtful"]
        assert (told["log_level"], told["count"]) == ("error", 1)
        assert str(life.path) in told["look"]
        life.spool.close()
        with sqlite3.connect(life.path) as db:
            assert db.execute("SELECT body FROM doubtful").fetchall() == [
                ('{"entry":0}',)
            ]
        db.close()

    async def test_what_may_have_arrived_lately_is_sent_again(self, life, aged):
        life.append("s0")
        aged(attempted_s=int(time.time()) - HORIZON_S + 60)
        await life.flush()

        assert life.fake.applied["s0"] == [0]

    async def test_what_cannot_have_arrived_is_sent_however_old(self, life, aged):
        """
        It came while the bus was known to be away, and never was on its way.
        """
        await life.write("lost")
        life.publisher._breaker.failed(Overloaded("for a test"))
        life.append("s0")
        life.die()
        aged(at_s=1)
        await life.flush()

        assert life.fake.applied["s0"] == [0]

    @pytest.mark.parametrize("fault", ["killed before", "killed behind"])
    async def test_a_death_in_the_middle_of_a_write_is_remembered(
        self, life, aged, fault
    ):
        """
        Before it is written it is on disk that it may have been.
        """
        life.publisher._breaker.record(Overloaded("for a test"))
        life.append("s0")
        await life.write(fault)
        assert life.lives == 2
        [row] = life.spool.read(0, 9, 999)
        assert abs(row.attempted_s - time.time()) < 60

    async def test_a_damaged_command_is_set_aside_and_the_others_are_sent(
        self, life, aged
    ):
        life.append("s0")
        with structlog.testing.capture_logs() as logs:
            aged(command=b"\xc1 no command")
        life.append("s0")
        await life.flush()

        assert life.fake.applied["s0"] == [1]
        assert life.publisher.waiting == life.spool.count == 0
        [told] = [one for one in logs if one["event"] == "commands.doubtful"]
        assert told["cause"] == "damaged on disk"

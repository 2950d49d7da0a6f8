"""
Moving sessions between warm and cold tier: whole in one of them, whatever happens.

The tiers are in memory, the lane is small but judges by the real handlers.
"""

from datetime import timedelta

import msgspec
import pytest

from everbus.archiver.archiving import ArchiveReport, Archiving
from everbus.archiver.retirement import Retirement
from everbus.archiver.tier_jobs import TierJobs
from everbus.bus.errors import ReplyTimeout, Unavailable
from everbus.bus.messages import TimelineEntry, pack
from everbus.compose.testing.memory.warm import MemoryWarm
from everbus.gateway.failpoints import ARCHIVER, RETURN, VAULT, disarmed
from everbus.gateway.store.cold.archives import Archives
from everbus.gateway.store.cold.local import MemoryCold
from everbus.gateway.store.hot_copy import Record
from everbus.gateway.store.pricing import Prices
from everbus.gateway.store.reader import Reader
from everbus.gateway.store.tiers import WarmSession
from everbus.handlers.commands import ArchiveSession
from everbus.handlers.outcomes import Event
from everbus.handlers.routes import HANDLERS
from tests.builders import NOW as PRECISELY
from tests.builders import a_command, a_session
from tests.lineages import loaded

# The bus's clock, and MongoDB, know milliseconds.
NOW = PRECISELY.replace(microsecond=123_000)
YEAR = timedelta(days=365)
TODAY = NOW + 2 * YEAR
BEFORE = TODAY - YEAR
ENTRIES = 2_500


class Killed(BaseException):
    """
    What a process dies of at a fail point.
    """


class Doom:
    """
    A fail point that kills at the nth passing of *point*, then never again.
    """

    def __init__(self, point="", nth=1):
        self.point, self.left = point, nth
        self.passed = set()

    def __call__(self, point):
        self.passed.add(point)
        if point == self.point:
            self.left -= 1
            if self.left == 0:
                raise Killed(point)


class Lane:
    """
    Applies what the archiver asks for, and writes it to the warm tier at once.
    """

    def __init__(self, warm):
        self.warm = warm
        self.asked = []
        self.hot = set()

    async def hot_exists(self, session_id):
        return session_id in self.hot

    async def send(self, session_id, body):
        self.asked.append((session_id, body))
        held = (await self.warm.sessions([session_id])).get(session_id)
        kind = "session.delete"
        if isinstance(body, ArchiveSession):
            kind = "session.archive"
        session = held.session if held else None
        command = a_command(kind, body, session_id=session_id, mad="gateway")
        outcome = HANDLERS[kind].handler(session, command, TODAY)
        await self.warm.write([record_of(session, outcome)])


def record_of(session, outcome):
    last = outcome.session or session
    return Record(
        session=session.id,
        created_at=session.created_at,
        version=outcome.events[-1].version,
        last_seq=last.last_seq,
        last_active=last.last_active,
        events=outcome.events,
        deleted=outcome.session is None,
        archived=outcome.archived,
    )


class House:
    """
    The tiers, and those who work on them.
    """

    def __init__(self, fail=disarmed):
        self.warm, self.cold = MemoryWarm(), MemoryCold()
        self.lane = Lane(self.warm)
        self.open(fail)

    def open(self, fail=disarmed):
        """
        Begin anew, as a process does after a crash; the tiers stay.
        """
        self.vault = Archives(self.cold, fail=fail)
        self.archiving = Archiving(
            self.warm, self.vault, self.lane.send, self.lane.hot_exists, fail
        )
        self.upkeep = TierJobs(self.warm, self.vault, fail, rest_s=0)
        self.reader = Reader(self.warm, self.vault, Prices(), fail=fail)
        self.retirement = Retirement(self.warm, self.lane.send)

    async def keep_up(self):
        """
        Each piece of upkeep once.
        """
        await self.upkeep.purge()
        await self.upkeep.restore()
        await self.upkeep.remove()

    async def settle(self, passes=3):
        """
        What happens in the hours after.
        """
        for _ in range(passes):
            await self.archiving.run(BEFORE)
            await self.keep_up()

    async def put(self, *sessions, count=ENTRIES):
        for session in sessions:
            await self.warm.write([written(session, count)])

    async def held(self, session_id="s1"):
        return (await self.warm.sessions([session_id], context=True))[session_id]

    async def in_warm(self, session):
        """
        How many of its entries are in the warm tier.
        """
        found = 0
        for first in range(1, session.last_seq + 1, 1000):
            found += len(
                await self.warm.entries(
                    session.id, session.created_at, first, first + 999
                )
            )
        return found

    async def whole(self, session):
        """
        The session's document, context and timeline from whichever tier has them.
        """
        held = await self.held(session.id)
        if held.archival_status == "ACTIVE" and not held.pointer:
            warm = await self.warm.entries(
                session.id, session.created_at, 1, session.last_seq
            )
            return held.session, held.full_context, list(warm)
        vault = Archives(self.cold)
        manifest = await vault.open(held.pointer, session.id, session.created_at)
        document, context = await vault.document(manifest)
        entries = []
        for chunk in range(len(manifest.chunks)):
            entries += await vault.chunk(manifest, chunk)
        return document, context, entries


def an_old_session(count=ENTRIES, **fields):
    known = {
        "last_seq": count,
        "created_at": NOW,
        "last_active": NOW,
        "work_in_progress": {"n": 1},
    }
    return a_session(**known | fields)


def an_entry(seq):
    at = NOW + timedelta(seconds=seq)
    return pack(TimelineEntry(seq, at, "fiedler", {"n": seq, "text": "ünï"}))


def timeline(count=ENTRIES):
    return [an_entry(seq) for seq in range(1, count + 1)]


def written(session, count=ENTRIES):
    made = Event(
        kind="session.created",
        command_id="i.0.1",
        mad="m",
        principal="ada",
        version=1,
        at=NOW,
        patch={},
    )
    return Record(
        session=session.id,
        created_at=session.created_at,
        version=session.version,
        last_seq=session.last_seq,
        last_active=session.last_active,
        state=session,
        entries=tuple(msgspec.Raw(entry) for entry in timeline(count)),
        events=(made,),
    )


@pytest.fixture
def house():
    return House()


async def test_an_idle_session_leaves_a_stub_and_comes_back_as_it_was(house):
    session = an_old_session()
    await house.put(session)

    report = await house.archiving.run(BEFORE)
    stub = await house.held()
    there = await house.in_warm(session)
    await house.upkeep.purge()
    purged = await house.in_warm(session), (await house.held()).unpurged

    assert report == ArchiveReport(archived=1, entries=ENTRIES, bytes=stub.bytes)
    assert (stub.archival_status, stub.through) == ("S3", ENTRIES)
    assert there == ENTRIES
    assert purged == (0, False)
    assert await house.whole(session) == (session, {}, timeline())
    assert (await house.held()).bytes == sum(map(len, house.cold.objects.values()))


async def test_what_is_read_comes_back_whole_while_it_is_read(house):
    session = an_old_session()
    await house.put(session)
    await house.settle()

    [back] = (await loaded(house.reader, ["s1"])).values()
    before = await house.held()
    await house.upkeep.restore()

    assert back.last_seq == ENTRIES
    assert before.unrestored
    assert await house.in_warm(session) == ENTRIES
    assert not (await house.held()).unrestored
    assert (await house.held()).session == session


async def test_a_session_in_use_stays(house):
    """
    Hot, or active after the limit.
    """
    await house.put(
        an_old_session(id="hot", count=0),
        an_old_session(id="new", count=0, last_active=TODAY),
        count=0,
    )
    house.lane.hot.add("hot")

    report = await house.archiving.run(BEFORE)

    assert report == ArchiveReport(skipped=1)
    assert house.cold.objects == {}


async def test_a_write_in_the_middle_wins(house):
    """
    It comes while the archive is uploaded: the session stays as the write left it.
    """
    session = an_old_session(count=10)
    await house.put(session, count=10)
    newer = msgspec.structs.replace(session, version=2, last_active=BEFORE - YEAR / 2)

    class Late(Lane):
        async def send(self, session_id, body):
            await house.put(newer, count=10)
            await super().send(session_id, body)

    late = Late(house.warm)
    archiving = Archiving(house.warm, house.vault, late.send, late.hot_exists, disarmed)

    first = await archiving.run(BEFORE)
    held = await house.held()
    second = await house.archiving.run(BEFORE)

    assert (first.archived, first.skipped) == (0, 1)
    assert (held.archival_status, held.session) == ("ACTIVE", newer)
    assert second.archived == 1
    assert await house.whole(newer) == (newer, {}, timeline(10))


async def test_a_write_before_the_lane_is_asked_spares_the_question(house):
    session = an_old_session(count=10)
    await house.put(session, count=10)
    used = msgspec.structs.replace(session, version=2, last_active=TODAY)

    class Used(Archives):
        async def archive(self, held, read, progress):
            done = await super().archive(held, read, progress)
            await house.put(used, count=10)
            return done

    archiving = Archiving(
        house.warm, Used(house.cold), house.lane.send, house.lane.hot_exists, disarmed
    )

    assert await archiving.run(BEFORE) == ArchiveReport(skipped=1)
    assert house.lane.asked == []


async def test_two_archivers_at_once_archive_once(house):
    """
    The slower one has read the session before the other one moves it.
    """
    session = an_old_session(count=10)
    await house.put(session, count=10)
    other = Archiving(
        house.warm,
        Archives(house.cold),
        house.lane.send,
        house.lane.hot_exists,
        disarmed,
    )

    class Slow(Archives):
        async def archive(self, held, read, progress):
            done = await super().archive(held, read, progress)
            await other.run(BEFORE)
            return done

    slow = Archiving(
        house.warm, Slow(house.cold), house.lane.send, house.lane.hot_exists, disarmed
    )

    report = await slow.run(BEFORE)

    assert report == ArchiveReport(skipped=1)
    assert len(house.lane.asked) == 1
    assert (await house.held()).moves == 1
    assert await house.whole(session) == (session, {}, timeline(10))


async def test_a_dry_run_tells_and_does_nothing(house):
    await house.put(*(an_old_session(id=f"s{n}", count=7) for n in range(3)), count=7)

    report = await house.archiving.run(BEFORE, dry_run=True)

    assert report == ArchiveReport(archived=3, entries=21)
    assert house.cold.objects == {}
    assert house.lane.asked == []


async def test_a_limit_takes_those_that_were_idle_the_longest(house):
    ages = {f"s{n}": NOW + timedelta(days=n) for n in (3, 1, 2)}
    await house.put(
        *(an_old_session(id=i, count=0, last_active=at) for i, at in ages.items()),
        count=0,
    )

    report = await house.archiving.run(BEFORE, limit=2)

    assert report.archived == 2
    assert [session_id for session_id, _ in house.lane.asked] == ["s1", "s2"]


async def test_more_sessions_than_a_page_are_all_archived(house):
    await house.put(*(an_old_session(id=f"s{n}", count=0) for n in range(230)), count=0)

    assert (await house.archiving.run(BEFORE)).archived == 230


async def test_progress_tells_the_session_and_how_far_it_is(house):
    await house.put(an_old_session())
    told = []

    class Watch:
        def began(self, held):
            told.append(held.session.id)

        def reached(self, seq):
            told.append(seq)

    await house.archiving.run(BEFORE, progress=Watch())

    assert told[0] == "s1"
    assert told[1:] == sorted(told[1:])
    assert told[-1] == ENTRIES


class Broken(Archives):
    """
    A vault that cannot take some sessions.
    """

    def __init__(self, cold, error, *sessions):
        super().__init__(cold)
        self.error, self.sessions = error, sessions

    async def archive(self, held, read, progress):
        if not self.sessions or held.session.id in self.sessions:
            raise self.error
        return await super().archive(held, read, progress)


def broken(house, error, *sessions):
    vault = Broken(house.cold, error, *sessions)
    return Archiving(
        house.warm, vault, house.lane.send, house.lane.hot_exists, disarmed
    )


async def test_one_failure_does_not_end_the_pass(house):
    await house.put(*(an_old_session(id=f"s{n}", count=0) for n in range(3)), count=0)

    report = await broken(house, Unavailable("away"), "s1").run(BEFORE)

    assert (report.archived, report.failed, report.ended) == (2, 1, "")


async def test_a_tier_that_is_away_ends_the_pass(house):
    await house.put(*(an_old_session(id=f"s{n}", count=0) for n in range(9)), count=0)

    report = await broken(house, Unavailable("S3 is away")).run(BEFORE)

    assert report.failed == 3
    assert "S3 is away" in report.ended


async def test_a_missing_entry_keeps_its_session_and_no_other(house):
    """
    However many such there are: the tier is not away.
    """
    ill = [an_old_session(id=f"a{n}", count=3) for n in range(5)]
    await house.put(*ill, count=2)
    await house.put(an_old_session(id="b", count=3), count=3)

    report = await house.archiving.run(BEFORE)

    assert (report.archived, report.failed, report.ended) == (1, 5, "")
    assert (await house.held("a0")).archival_status == "ACTIVE"


async def test_nobody_knows_what_the_lane_did_and_the_next_pass_finds_out(house):
    session = an_old_session(count=10)
    await house.put(session, count=10)

    async def unanswered(session_id, body):
        await house.lane.send(session_id, body)
        raise ReplyTimeout("no reply", command_id="i.0.1")

    archiving = Archiving(
        house.warm, house.vault, unanswered, house.lane.hot_exists, disarmed
    )

    first = await archiving.run(BEFORE)
    second = await house.archiving.run(BEFORE)

    assert (first.failed, second.archived) == (1, 0)
    assert await house.whole(session) == (session, {}, timeline(10))


async def live(house, doom):
    """
    A whole life between the tiers, in which *doom* may strike: archived, read,
    written to, archived again, deleted by age.
    """
    house.open(doom)
    await house.settle(1)
    await loaded(house.reader, ["s1"])
    await house.keep_up()
    await house.archiving.run(BEFORE)
    await house.keep_up()


@pytest.mark.parametrize("point", [*VAULT, *ARCHIVER[:3], *RETURN])
@pytest.mark.parametrize("nth", [1, 2, 3])
async def test_a_crash_at_any_point_leaves_the_session_whole(point, nth):
    """
    In one tier at least; and those who come after finish what was begun.
    """
    house, doom = House(), Doom(point, nth)
    session = an_old_session()
    await house.put(session)

    try:
        await live(house, doom)
    except* Killed:
        pass
    struck = await house.whole(session)
    assert nth > 1 or doom.left == 0, f"{point} was never passed"
    house.open()
    await house.settle()
    rested = await house.held(), await house.in_warm(session)
    await loaded(house.reader, ["s1"])
    await house.keep_up()
    back = await house.held()

    assert struck == (session, {}, timeline())
    assert rested[0].archival_status == "S3"
    assert rested[1] == 0
    assert (back.session, back.unrestored) == (session, False)
    assert await house.in_warm(session) == ENTRIES
    assert await house.whole(session) == (session, {}, timeline())


async def test_purging_stops_when_the_session_returns(house):
    """
    What it had removed by then comes back like the rest.
    """
    session = an_old_session()
    await house.put(session)
    await house.archiving.run(BEFORE)

    class Returned:
        left = 1

        def __init__(self, warm):
            self.warm = warm

        def __getattr__(self, name):
            return getattr(self.warm, name)

        async def purge(self, *arguments):
            count = await self.warm.purge(*arguments)
            if self.left:
                self.left -= 1
                await loaded(house.reader, ["s1"])
            return count

    await TierJobs(Returned(house.warm), house.vault, disarmed, rest_s=0).purge()
    part = await house.in_warm(session)
    await house.upkeep.restore()

    assert 0 < part < ENTRIES
    assert await house.in_warm(session) == ENTRIES
    assert (await house.held()).archival_status == "ACTIVE"


async def test_nothing_is_purged_whose_archive_is_damaged(house):
    """
    Also if it was sound when the session was archived.
    """
    session = an_old_session()
    await house.put(session)
    await house.archiving.run(BEFORE)
    held = await house.held()
    manifest = await Archives(house.cold).open(held.pointer, "s1", session.created_at)
    last = manifest.key(manifest.chunks[-1])
    sound = house.cold.objects[last]
    house.cold.objects[last] = sound[:-1] + bytes([sound[-1] ^ 1])
    house.open()

    await house.upkeep.purge()
    kept = await house.in_warm(session)
    house.cold.objects[last] = sound
    house.open()
    await house.upkeep.purge()

    last_chunk = manifest.chunks[-1]
    assert kept == last_chunk.last - last_chunk.first + 1
    assert await house.in_warm(session) == 0


@pytest.mark.parametrize("damaged", ["manifest", "document", "first", "last"])
@pytest.mark.parametrize("grows", [0, 1])
async def test_a_cached_copy_never_stands_for_a_damaged_object(grows, damaged, house):
    """
    One archiver restores a session, archives it again with shared chunks, and purges:
    its cache has sound copies of what is damaged in the cold tier by then.
    """
    session = an_old_session()
    await house.put(session)
    await house.settle(1)
    await loaded(house.reader, ["s1"])
    await house.upkeep.restore()
    grown = an_old_session(count=ENTRIES + grows, version=session.version + grows)
    await house.put(grown, count=ENTRIES + grows)
    await house.archiving.run(BEFORE)
    held = await house.held()
    manifest = await house.vault.open(held.pointer, "s1", session.created_at)
    for chunk in range(len(manifest.chunks)):
        await house.vault.chunk(manifest, chunk)
    parts = {
        "document": manifest.document,
        "first": manifest.chunks[0],
        "last": manifest.chunks[-1],
    }
    key = held.pointer if damaged == "manifest" else manifest.key(parts[damaged])
    sound = house.cold.objects[key]
    house.cold.objects[key] = sound[:-1] + bytes([sound[-1] ^ 1])

    await house.upkeep.purge()
    there = await house.in_warm(grown)
    marked = (await house.held()).unpurged
    house.cold.objects[key] = sound
    await house.upkeep.purge()

    last = manifest.chunks[-1]
    kept = last.last - last.first + 1 if damaged == "last" else grown.last_seq
    assert (there, marked) == (kept, True)
    assert await house.in_warm(grown) == 0
    assert await house.whole(grown) == (grown, {}, timeline(grown.last_seq))


async def test_what_is_back_already_is_not_fetched_again(house):
    """
    After a crash only what is missing is.
    """
    session = an_old_session()
    await house.put(session)
    await house.settle()
    await loaded(house.reader, ["s1"])
    await house.upkeep.restore()
    held = await house.held()
    await house.warm.swap(held, msgspec.structs.replace(held, unrestored=True))
    await house.warm.purge("s1", session.created_at, 1, 1)
    fetched = []

    class Counting(Archives):
        async def chunk(self, manifest, index):
            fetched.append(index)
            return await super().chunk(manifest, index)

    await TierJobs(house.warm, Counting(house.cold), disarmed, rest_s=0).restore()

    assert fetched == [0]
    assert await house.in_warm(session) == ENTRIES


async def test_a_session_that_is_used_all_the_time_keeps_its_context(house):
    """
    A mark is cleared only on the document that was read.
    """
    session = an_old_session(count=3)
    await house.put(session, count=3)
    await house.settle()
    await loaded(house.reader, ["s1"])
    held = await house.held()
    changed = msgspec.structs.replace(held, full_context={"a": 1})
    await house.warm.swap(held, changed)

    await house.upkeep.restore()

    assert (await house.held()).full_context == {"a": 1}
    assert not (await house.held()).unrestored


async def test_the_archive_of_a_deleted_session_goes(house):
    """
    Also after a crash between the two tiers.
    """
    session = an_old_session(count=10)
    await house.put(session, count=10)
    await house.settle()
    before = len(house.cold.objects)
    await house.warm.write([deleted(session)])

    house.open(Doom("removal"))
    with pytest.raises(Killed):
        await house.upkeep.remove()
    noted = list(await house.warm.removals(10))
    house.open()
    await house.upkeep.remove()

    assert before > 0
    assert len(noted) == 1
    assert house.cold.objects == {}
    assert list(await house.warm.removals(10)) == []


def deleted(session):
    return Record(
        session=session.id,
        created_at=session.created_at,
        version=session.version + 1,
        last_seq=session.last_seq,
        last_active=TODAY,
        deleted=True,
    )


async def test_sessions_beyond_the_retention_time_are_deleted_wherever_they_lie(house):
    """
    Those that were used since are not.
    """
    old = [an_old_session(id=f"s{n}", count=0) for n in range(150)]
    await house.put(*old, an_old_session(id="new", count=0, last_active=TODAY), count=0)
    await house.archiving.run(BEFORE, limit=100)

    retired = await house.retirement.run(BEFORE)
    await house.upkeep.remove()

    ids = ["new", *(session.id for session in old)]
    assert retired == 150
    assert list(await house.warm.sessions(ids)) == ["new"]
    assert isinstance(await house.held("new"), WarmSession)


async def test_every_point_of_the_archiver_and_the_vault_is_passed():
    """
    A point that nobody passes would make its crash test prove nothing.
    """
    house, doom = House(), Doom()
    session = an_old_session()
    await house.put(session)

    await live(house, doom)
    await house.warm.write([deleted(session)])
    await house.upkeep.remove()

    assert doom.passed == {*VAULT, *ARCHIVER, *RETURN}

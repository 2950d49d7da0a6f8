"""
What happened in a session is told in its order and without gap, wherever it lies.
"""

import asyncio
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everbus.bus.errors import Unavailable, VersionConflict
from everbus.bus.events import TIER_MOVES, Position, generation_of, position_of
from everbus.bus.messages import Session, pack
from everbus.compose.testing.contracts.sample_histories import BEGIN, SampleHistory
from everbus.compose.testing.memory.warm import MemoryWarm
from everbus.gateway.store import outbox_reader
from everbus.gateway.store.hot_copy import (
    COUNT_FIELD,
    VALUE_FIELD,
    Record,
    pack_records,
)
from everbus.gateway.store.outbox_reader import OutboxReader
from everbus.gateway.store.pricing import Prices
from everbus.gateway.store.read_bound import PAGE_BYTES
from everbus.gateway.store.reader import NoTiers, Reader
from everbus.handlers.commands import ArchiveSession
from everbus.handlers.fetch_requests import EventsAfter
from everbus.handlers.live import session_event
from everbus.handlers.sessions import archive_session
from tests.builders import NOW, a_command, a_session

LIFE = generation_of(BEGIN)


@pytest.fixture(autouse=True, scope="module")
def small_rounds():
    """
    So that short outboxes are read in several round trips.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outbox_reader, "FIRST_ENTRIES", 1)
        patch.setattr(outbox_reader, "MOST_ENTRIES", 3)
        yield


class PaperOutbox:
    """
    Stands in for `bus.wire.Wire`: one outbox and one hot copy, on paper; and the
    archiver, who writes and confirms so much more before each question.

    Attributes:
        warm: what it writes into.
        drained: entries of which MongoDB holds the records.
        confirmed: of these, the first ones that have left the outbox.
        moves: what the archiver does next: entries to write, entries to confirm.
        asked: how many questions there were.
    """

    def __init__(self, session: Session, entries: list[list[Record]]) -> None:
        self.session = session
        self.entries = entries
        self.warm = MemoryWarm()
        self.drained = self.confirmed = 0
        self.moves: list[tuple[int, int]] = []
        self.hot = True
        self.asked = 0

    async def move(self, write: int, confirm: int) -> None:
        end = min(self.drained + write, len(self.entries))
        for records in self.entries[self.drained : end]:
            await self.warm.write(records)
        self.drained = end
        self.confirmed = min(self.confirmed + confirm, self.drained)

    async def exchange(self, commands: Any) -> list[Any]:
        self.asked += 1
        if self.moves:
            await self.move(*self.moves.pop(0))
        return [self._reply(*command) for command in commands]

    async def close(self) -> None:
        """Nothing is open."""

    def _reply(self, name: str, _: str, *arguments: Any) -> Any:
        if name == "HMGET":
            return self._durable()
        behind, count = arguments[0], arguments[3]
        last = len(self.entries) if behind == "+" else int(behind[1:].split("-")[0]) - 1
        found = range(last, self.confirmed, -1)[:count]
        return [
            [
                f"{n}-0".encode(),
                [
                    *(COUNT_FIELD, b"1"),
                    *(VALUE_FIELD, pack_records(self.entries[n - 1])),
                ],
            ]
            for n in found
        ]

    def _durable(self) -> list[bytes | None]:
        if not self.hot and self.confirmed == len(self.entries):
            return [None, None, None, None]
        own = [
            record
            for records in self.entries[: self.confirmed]
            for record in records
            if record.session == self.session.id
        ]
        counts = [None, None, None]
        if own:
            last = own[-1]
            counted = (last.version, last.last_seq, last.notices)
            counts = [str(count).encode() for count in counted]
        return [pack(self.session.created_at), *counts]


class Past:
    """
    What happened in a session, and beside it, as commits left it.
    """

    def __init__(self, operations: list[tuple[str, int]]) -> None:
        self.story, self.other = SampleHistory("s1"), SampleHistory("other")
        self.entries: list[list[Record]] = [[self.other.create(), self.story.create()]]
        for n, (operation, size) in enumerate(operations):
            self._do(n, operation, size)

    def _do(self, n: int, operation: str, size: int) -> None:
        story = self.story
        match operation:
            case "update":
                self.entries.append([story.update(steps=size, fields={"n": n})])
            case "append":
                self.entries.append([story.append(*(f"{n}.{i}" for i in range(size)))])
            case "broadcast":
                self.entries.append([story.broadcast(*range(size))])
            case "checkpoint":
                self.entries.append([story.checkpoint(str(n))])
            case "suspend" if story.session.state == "active":
                self.entries.append([story.suspend()])
            case "together":
                self.entries.append([self.other.append(n), *self._several(size)])
            case "other":
                self.entries.append([self.other.broadcast("s1")])

    def _several(self, size: int) -> list[Record]:
        """
        What one commit says of a session that it changes in several ways.
        """
        records = [self.story.append("a", "b"), self.story.broadcast(*range(size))]
        records += [self.story.update(fields={"x": size}), self.story.append("c")]
        last = records[-1]
        return [
            msgspec.structs.replace(
                last,
                state=self.story.session,
                events=tuple(e for r in records for e in r.events),
                entries=tuple(e for r in records for e in r.entries),
            )
        ]

    @property
    def happened(self) -> list[Any]:
        """
        The plain truth.
        """
        events = []
        for record in (r for records in self.entries for r in records):
            if record.session != "s1":
                continue
            entries = iter(record.entries)
            for event in record.events:
                if event.kind not in TIER_MOVES:
                    entry = next(entries) if event.at is None else None
                    events.append(session_event("s1", LIFE, event, entry))
        return events

    def outbox(self) -> PaperOutbox:
        return PaperOutbox(self.story.session, self.entries)


def reader_of(paper: PaperOutbox, **options: Any) -> Reader:
    outbox = OutboxReader(lambda: paper, 1)

    return Reader(paper.warm, None, Prices(), outbox=outbox, catch_up_s=0, **options)


def asked(session: Session, after: Position | None = None, limit: int = 100) -> Any:
    return EventsAfter(
        after=after or Position(LIFE), through=position_of(session), limit=limit
    )


async def all_pages(tiers: Any, session: Session, after: Position, limit: int) -> list:
    found: list[Any] = []
    while True:
        page = await tiers.answer(session, asked(session, after, limit))
        assert 0 < len(page.events) <= limit
        assert page.next == page.events[-1].id
        found += page.events
        after = page.events[-1].position
        if page.done:
            return found


def packed(events: Any) -> list[bytes]:
    return [pack(event) for event in events]


operations = st.lists(
    st.tuples(
        st.sampled_from(
            (
                *("update", "append", "append", "broadcast", "checkpoint"),
                *("suspend", "together", "other"),
            )
        ),
        st.integers(1, 4),
    ),
    max_size=14,
)
moves = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12)


@settings(max_examples=400, deadline=None)
@given(
    operations,
    st.tuples(st.integers(0, 20), st.integers(0, 20)),
    moves,
    st.integers(0, 60),
    st.integers(1, 9),
    st.tuples(st.booleans(), st.sampled_from((1, 300, PAGE_BYTES))),
)
def test_pages_are_what_happened_wherever_it_lies(
    operations, begun, moves, place, limit, options
):
    """
    Whatever has reached MongoDB, and whatever reaches it or leaves the outbox between
    one question and the next, from any event on.
    """

    async def check() -> None:
        past = Past(operations)
        happened = past.happened
        paper = past.outbox()
        await paper.move(*begun)
        paper.moves, (paper.hot, page_bytes) = list(moves), options
        first = place % len(happened)
        after = happened[first - 1].position if first else Position(LIFE)
        reader = reader_of(paper, page_bytes=page_bytes)

        found = await all_pages(reader, past.story.session, after, limit)

        assert packed(found) == packed(happened[first:])
        numbers = [event.position.number for event in found]
        assert numbers == list(range(first + 1, len(happened) + 1))

    asyncio.run(check())


@settings(max_examples=100, deadline=None)
@given(operations, st.integers(1, 9))
def test_without_mongodb_the_outbox_has_everything(operations, limit):
    async def check() -> None:
        past = Past(operations)
        tiers = NoTiers(OutboxReader(past.outbox, 1))

        found = await all_pages(tiers, past.story.session, Position(LIFE), limit)

        assert packed(found) == packed(past.happened)

    asyncio.run(check())


A_PAST = [("append", 3), ("broadcast", 2), ("update", 2), ("append", 4)] * 3


class Away(MemoryWarm):
    """
    A MongoDB that does not answer.
    """

    async def events(self, *_: Any) -> Any:
        raise Unavailable("MongoDB is away")

    async def entries(self, *_: Any) -> Any:
        raise Unavailable("MongoDB is away")


async def test_with_mongodb_away_the_outbox_answers_what_it_has():
    past = Past(A_PAST)
    paper = past.outbox()
    await paper.move(6, 6)
    paper.warm = Away()
    happened = past.happened
    # The first event that MongoDB does not hold for certain.
    first = sum(len(r.events) for records in paper.entries[:6] for r in records) - 1
    session = past.story.session
    reader = reader_of(paper)

    found = await all_pages(reader, session, happened[first - 1].position, 5)

    assert packed(found) == packed(happened[first:])
    with pytest.raises(Unavailable, match="MongoDB is away"):
        await reader.answer(session, asked(session, happened[first - 2].position))


async def test_what_mongodb_holds_is_not_looked_for_in_the_outbox():
    past = Past(A_PAST)
    paper = past.outbox()
    await paper.move(100, 100)

    await all_pages(reader_of(paper), past.story.session, Position(LIFE), 100)

    assert paper.asked == 1


async def test_what_was_just_missed_is_found_without_reading_the_whole_outbox():
    """
    Though the archiver has been away for long.
    """
    past = Past([*[("other", 1)] * 300, ("broadcast", 1), *[("other", 1)] * 3])
    paper = past.outbox()
    session = past.story.session

    found = await all_pages(reader_of(paper), session, Position(LIFE, 1), 9)

    assert packed(found) == packed(past.happened[1:])
    assert paper.asked < 8


async def test_what_is_nowhere_is_waited_for_and_then_refused():
    past = Past(A_PAST)
    paper = past.outbox()
    # As if the newest entries had been lost: neither in the outbox nor in MongoDB.
    lost = paper.entries[-2:]
    del paper.entries[-2:]
    session = past.story.session
    reader = reader_of(paper)

    with pytest.raises(Unavailable, match="archiver is behind"):
        await reader.answer(session, asked(session))
    await paper.warm.write([r for records in paper.entries + lost for r in records])

    reader = reader_of(paper)
    found = await all_pages(reader, session, Position(LIFE), 100)
    assert packed(found) == packed(past.happened + _events(lost))


async def test_a_notice_that_is_on_its_way_is_not_skipped():
    """
    MongoDB may have the change behind it already: its collections are written one by
    one.
    """
    past = Past([("broadcast", 1), ("update", 1), ("append", 1)])
    paper = past.outbox()
    await paper.move(9, 9)
    paper.hot = False
    session = past.story.session
    kept = paper.warm._kept.generation_to_write("s1", BEGIN)
    notice = kept.notices.pop(1)

    for limit in (2, 100):
        with pytest.raises(Unavailable, match="archiver is behind"):
            await reader_of(paper).answer(session, asked(session, limit=limit))
    kept.notices[1] = notice

    found = await all_pages(reader_of(paper), session, Position(LIFE), 100)
    assert packed(found) == packed(past.happened)


async def test_a_history_older_than_notices_is_told():
    """
    Its checkpoints moved nothing, so they are no events.
    """
    story = SampleHistory("s1")
    records = [story.create(), story.append("x"), story.update(steps=2)]
    old = story.checkpoint("old")
    story._set(notices=0)
    [event] = old.events
    event = msgspec.structs.replace(event, notices=0)
    old = msgspec.structs.replace(old, notices=0, events=(event,))
    records += [old, story.update(), story.broadcast("new")]
    warm = MemoryWarm()
    await warm.write(records)

    found = await all_pages(
        Reader(warm, None, Prices()), story.session, Position(LIFE), 9
    )

    kinds = [event.kind.partition(".")[2] for event in found]
    assert kinds == [
        *("created", "appended", "updated", "updated", "updated", "broadcast")
    ]


async def test_a_page_of_large_events_ends_early():
    past = Past(A_PAST)
    paper = past.outbox()
    session = past.story.session
    reader = reader_of(paper, page_bytes=300)

    page = await reader.answer(session, asked(session))
    found = await all_pages(reader, session, Position(LIFE), 100)

    assert 1 <= len(page.events) < len(past.happened)
    assert not page.done
    assert packed(found) == packed(past.happened)


async def test_entries_that_were_put_back_lack_who_sent_them():
    """
    The archive has them as they were said, without the commands that said them.
    """
    past = Past([("append", 3)])
    paper = past.outbox()
    await paper.move(9, 9)
    entries = list(await paper.warm.entries("s1", BEGIN, 1, 3))
    await paper.warm.purge("s1", BEGIN, 3, 9)
    await paper.warm.put_entries("s1", BEGIN, entries)
    session = past.story.session

    found = await all_pages(reader_of(paper), session, Position(LIFE, 1), 9)

    bare = [
        msgspec.structs.replace(event, command_id="", principal="")
        for event in past.happened[1:]
    ]
    assert packed(found) == packed(bare)


async def test_another_life_of_the_id_is_not_told():
    first, second = SampleHistory("s1"), SampleHistory("s1", BEGIN + timedelta(hours=1))
    ended = [first.create(), first.broadcast("a"), first.delete()]
    both = [*ended, second.create(), second.broadcast("b")]
    paper = PaperOutbox(second.session, [[record] for record in both])
    life = generation_of(second.generation)
    session = second.session

    found = await all_pages(reader_of(paper), session, Position(life), 9)

    assert [event.message for event in found] == [None, "b"]


def test_a_session_is_not_archived_by_who_has_not_heard_a_broadcast():
    """
    The archive would lack it: neither version nor seq tells.
    """
    there = a_session(version=3, last_seq=2, notices=1)
    known = {"version": 3, "last_seq": 2, "pointer": "p", "bytes": 1, "moves": 0}
    body = ArchiveSession(**known, idle_since=NOW + timedelta(hours=1))
    seen = msgspec.structs.replace(body, notices=1)

    with pytest.raises(VersionConflict):
        archive_session(there, a_command("session.archive", body), NOW)
    outcome = archive_session(there, a_command("session.archive", seen), NOW)

    assert outcome.archived is not None


def _events(entries: list[list[Record]]) -> list[Any]:
    past = Past([])
    past.entries = entries

    return past.happened

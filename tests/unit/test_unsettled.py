"""
Commands on the bus that may not be settled: kept, forgotten, sent again, refused.
"""

import asyncio
from contextlib import asynccontextmanager

import pytest
import structlog

from everbus.bus import send_queue
from everbus.bus import unsettled as module
from everbus.bus.errors import Invalid, Overloaded, Unavailable, VersionConflict
from everbus.bus.outgoing_command import OutgoingCommand
from everbus.bus.settled_numbers import RefusedCommand, SettledNumbers
from everbus.bus.unsettled import Unsettled
from tests.builders import an_unsent
from tests.unit.fake_bus import FakeBus, FakeWire, a_publisher_on, running


def a_command(n, *, reply=False, instance="i"):
    outgoing = OutgoingCommand(an_unsent("timeline.append", session="s1", reply=reply))
    outgoing.instance, outgoing.n = instance, n

    return outgoing


def an_append(n):
    return an_unsent("timeline.append", session="s1", body={"entry": n})


def kept(count=5, **parts):
    unsettled = Unsettled("m", on_refused=None, **parts)
    unsettled.keep(0, [a_command(n) for n in range(1, count + 1)])

    return unsettled


@asynccontextmanager
async def asking(unsettled, *answers):
    """
    The managers give *answers* in turn; the last one stays.
    """
    given = list(answers)

    async def ask(instance, partition):
        answer = given.pop(0) if len(given) > 1 else given[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    task = asyncio.create_task(unsettled.run(ask))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    ("mark", "runs", "left"),
    [
        (0, (), 5),
        (3, (), 2),
        (5, (), 0),
        (5, ((2, 3),), 2),
        (4, ((1, 1), (4, 4)), 3),
        (9, (), 0),
    ],
)
def test_a_number_is_settled_up_to_the_mark_and_outside_of_the_open_runs(
    mark, runs, left
):
    unsettled = kept()

    unsettled._settle(("i", 0), SettledNumbers(mark=mark, open=runs))

    assert unsettled.count == left
    assert (unsettled.bytes > 0) == (left > 0)


def test_requests_and_free_ids_are_not_kept():
    unsettled = Unsettled("m", on_refused=None)

    unsettled.keep(0, [a_command(1, reply=True), a_command(0)])

    assert unsettled.count == 0


async def test_settled_waits_for_the_commands_of_now_only():
    unsettled = kept()
    first, last = SettledNumbers(mark=3), SettledNumbers(mark=5)
    async with asking(unsettled, first, last), asyncio.timeout(5):
        assert await unsettled.settled(5)

        unsettled.keep(0, [a_command(6)])
        assert unsettled.count == 1


async def test_settled_ends_when_no_manager_answers_for_its_patience():
    unsettled = kept()
    async with asking(unsettled, Unavailable("away")), asyncio.timeout(5):
        assert not await unsettled.settled(0.05)
    assert unsettled.count == 5


async def test_a_flush_waits_its_whole_timeout_for_managers_that_do_not_answer(
    monkeypatch,
):
    monkeypatch.setattr(module, "UNANSWERED_S", 0.01)
    unsettled = kept()
    away = [Unavailable("away")] * 3
    async with asking(unsettled, *away, SettledNumbers(mark=5)):
        assert await unsettled.settled(20)


async def test_managers_that_do_not_know_the_question_are_asked_once():
    unsettled = kept()
    async with asking(unsettled, Invalid("unknown kind")), asyncio.timeout(5):
        assert await unsettled.settled(5)
    unsettled.keep(0, [a_command(6)])

    assert unsettled.count == 0


async def test_another_lineage_sends_what_is_left_once_in_order_before_newer_ones():
    fake = FakeBus()
    unsettled = Unsettled("m", on_refused=None)
    publisher = a_publisher_on(fake, unsettled=unsettled)
    for n in range(1, 4):
        publisher.publish(an_append(n), 0)
    assert await publisher._write() is None
    unsettled._settle(("i", 0), SettledNumbers(lineage=7, mark=1))
    lost = fake.arrived
    fake.arrived = []

    # A mark of the new lineage says nothing of the numbers before; and the same
    # lineage once more changes nothing.
    unsettled._settle(("i", 0), SettledNumbers(lineage=8, mark=9))
    unsettled._settle(("i", 0), SettledNumbers(lineage=8, mark=0))
    publisher.publish(an_append(4), 0)
    async with running(publisher), asyncio.timeout(5):
        await publisher.flush()

    assert [one.id for one in lost] == ["i.0.1", "i.0.2", "i.0.3"]
    assert [one.id for one in fake.arrived] == ["i.0.2", "i.0.3", "i.0.4"]
    assert fake.applied["s1"] == [1, 2, 3, 4]
    assert unsettled.count == 3


async def test_after_a_lost_connection_older_numbers_come_before_newer_ones():
    """
    A bus that has lost all takes the first number that it sees for the lowest.
    """
    unsettled = Unsettled("m", on_refused=None)
    lost = a_publisher_on(FakeBus(), unsettled=unsettled)
    for n in range(1, 4):
        lost.publish(an_append(n), 0)
    assert await lost._write() is None

    emptied = FakeBus()
    lost._wire = FakeWire(emptied)
    lost.publish(an_append(4), 0)
    async with running(lost), asyncio.timeout(5):
        await lost.flush()

    assert emptied.applied["s1"] == [1, 2, 3, 4]


async def test_full_refuses_appends_and_takes_requests(monkeypatch):
    monkeypatch.setattr(module, "MAX_UNSETTLED", 2)
    unsettled = kept(2)
    publisher = a_publisher_on(FakeBus(), unsettled=unsettled)

    with pytest.raises(Overloaded, match="not settled"):
        publisher.publish(an_unsent("timeline.append", session="s1"), 0)
    publisher.publish(an_unsent("session.get", reply=True), 0)

    assert publisher.waiting == 1


async def test_flush_waits_for_room_as_long_as_managers_answer(monkeypatch):
    monkeypatch.setattr(module, "MAX_UNSETTLED", 2)
    unsettled = kept(2)
    publisher = a_publisher_on(FakeBus(), unsettled=unsettled)

    async with asking(unsettled, SettledNumbers(mark=1)), asyncio.timeout(5):
        await publisher.flush()

    assert not unsettled.full


def test_a_refusal_is_told_once_and_keeps_the_fields_of_its_error():
    told = []
    unsettled = Unsettled("m", on_refused=told.append)
    details = {"current_version": 4}
    refused = RefusedCommand("i.0.1", "version_conflict", "no", details=details)
    cancelled = RefusedCommand("i.0.2", "cancelled", "its sender took it back")

    for one in (refused, refused, cancelled):
        unsettled.refused(one)

    assert told == [refused]
    with pytest.raises(VersionConflict) as raised:
        unsettled.check_refused()
    assert raised.value.current_version == 4
    unsettled.check_refused()


def test_a_callback_that_fails_breaks_nothing():
    def fails(_):
        raise ZeroDivisionError

    unsettled = Unsettled("m", on_refused=fails)

    unsettled.refused(RefusedCommand("i.0.1", "not_found", "no session"))

    assert len(unsettled._untold) == 1


def test_a_lower_lineage_is_another_one_too():
    """
    As after a FLUSHALL, if a clock was ahead when the one before began.
    """
    unsettled = kept()
    old = unsettled._began_ms - 3_600_000

    unsettled._settle(("i", 0), SettledNumbers(lineage=old))
    assert not unsettled.take_again()
    unsettled._settle(("i", 0), SettledNumbers(lineage=old - 1))
    assert len(unsettled.take_again()[0]) == 5


@pytest.mark.parametrize(("age_ms", "again"), [(0, True), (3_600_000, False)])
def test_the_first_lineage_counts_as_another_if_it_may_have_begun_since(age_ms, again):
    """
    What was sent before the first answer may have gone to the memory before it.
    """
    unsettled = kept()
    lineage = unsettled._began_ms - age_ms

    unsettled._settle(("i", 0), SettledNumbers(lineage=lineage))
    unsettled._settle(("i", 0), SettledNumbers(lineage=lineage))

    assert len(unsettled.take_again().get(0, [])) == (5 if again else 0)


@pytest.mark.parametrize(
    ("first", "age_ms", "warned"),
    [([], 0, 0), ([1], 0, 1), ([], -3_600_000, 1)],
    ids=["young_bus", "another", "begun_since"],
)
def test_only_a_lineage_that_is_surely_another_is_warned_of(first, age_ms, warned):
    """
    A first client of a young bus has lost nothing.
    """
    unsettled = kept()
    for known in first:
        unsettled._settle(("i", 0), SettledNumbers(lineage=known))

    with structlog.testing.capture_logs() as logs:
        unsettled._settle(
            ("i", 0), SettledNumbers(lineage=unsettled._began_ms - age_ms)
        )

    assert [one["event"] for one in logs] == ["commands.sent_again"] * warned
    assert len(unsettled.take_again()[0]) == 5


async def test_the_managers_are_asked_about_a_command_after_a_time_without_any(
    monkeypatch,
):
    monkeypatch.setattr(module, "ASK_EVERY_S", 0.01)
    unsettled = Unsettled("m", on_refused=None)
    async with asking(unsettled, SettledNumbers(mark=1)), asyncio.timeout(5):
        await asyncio.sleep(0)  # it waits for a first command by now
        unsettled.keep(0, [a_command(1)])
        while unsettled.count:  # noqa: ASYNC110 - nothing else tells
            await asyncio.sleep(0.001)


async def test_what_is_on_its_way_once_more_is_not_settled():
    unsettled = kept()
    unsettled.send_all_again()
    [again] = unsettled.take_again().values()
    unsettled.keep(0, again[:3])

    async with asking(unsettled, SettledNumbers(mark=5)):
        waiting = asyncio.create_task(unsettled.settled(5))
        while unsettled.count:  # noqa: ASYNC110 - nothing else tells
            await asyncio.sleep(0.001)
        assert unsettled._open(("i", 0), 5)
        unsettled.keep(0, again[3:])
        assert await asyncio.wait_for(waiting, 5)


async def test_what_is_to_be_sent_once_more_is_not_settled():
    """
    Also for who asks after it was scheduled, and before it is on the bus.
    """
    unsettled = kept()
    unsettled.send_all_again()
    assert not await unsettled.settled(0)
    [again] = unsettled.take_again().values()
    assert not await unsettled.settled(0)

    unsettled.keep(0, again)

    async with asking(unsettled, SettledNumbers(mark=5)):
        assert await unsettled.settled(5)


async def test_what_is_sent_again_takes_no_room_of_new_commands(monkeypatch):
    """
    The bus lost them, so the caller, who awaited every flush, is not refused.
    """
    monkeypatch.setattr(send_queue, "MAX_WAITING", 3)
    unsettled = Unsettled("m", on_refused=None)
    publisher = a_publisher_on(FakeBus(), unsettled=unsettled)
    for first in (1, 4):
        for n in range(first, first + 3):
            publisher.publish(an_append(n), 0)
        assert await publisher._write() is None
    unsettled.send_all_again()
    publisher._resend_wanted = True
    publisher._put_again()

    for n in range(7, 10):
        publisher.publish(an_append(n), 0)
    with pytest.raises(Overloaded, match="wait for the bus"):
        publisher.publish(an_append(10), 0)
    assert await publisher._write() is None

    assert (publisher.waiting, unsettled.count) == (0, 9)


def test_full_counts_what_is_sent_again(monkeypatch):
    monkeypatch.setattr(module, "MAX_UNSETTLED", 5)
    unsettled = kept(5)

    unsettled.send_all_again()
    assert unsettled.full
    [again] = unsettled.take_again().values()
    unsettled.back(len(again), sum(one.size for one in again))
    assert not unsettled.full
    unsettled.keep(0, again)
    assert unsettled.full


async def test_the_lineage_is_asked_for_as_soon_as_there_is_a_command():
    """
    Until it is known, all that is on the bus may have to be sent again.
    """
    unsettled = kept(1)
    async with asking(unsettled, SettledNumbers(mark=1)), asyncio.timeout(1):
        while unsettled.count:  # noqa: ASYNC110 - nothing else tells
            await asyncio.sleep(0.001)


async def test_a_command_knows_that_it_was_sent_again():
    fake = FakeBus()
    publisher = a_publisher_on(fake)
    first = publisher.publish(an_unsent("session.get", reply=True), 0)
    publisher._queue.attempt(publisher._queue.gather())
    second = publisher.publish(an_unsent("session.get", reply=True), 0)

    assert await publisher._write() is None

    assert (first.again, second.again) == (True, False)

"""
The publisher without a spool: numbers, epochs, flushes, and a bus that is away.
"""

import asyncio

import pytest
from redis.exceptions import ResponseError

from everbus.bus.bus_breaker import (
    FIRST_BACKOFF_S,
    MAX_BACKOFF_S,
    OPEN_AFTER_S,
    BusBreaker,
)
from everbus.bus.errors import (
    Overloaded,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from everbus.bus.lease import Lease
from everbus.bus.messages import MAX_COMMAND_BYTES
from everbus.bus.outgoing_command import GRANT_BYTES, SURELY_FITS_BYTES
from everbus.bus.send_queue import ENTRY_COMMANDS, HORIZON_S
from tests.builders import an_unsent
from tests.unit.fake_bus import FakeBus, FakeCredential, a_publisher_on, running


@pytest.fixture
def fake():
    return FakeBus()


@pytest.fixture
def breaker(clock):
    return BusBreaker("m", clock=clock, draw=lambda least, most: most)


def an_append(n, session="s1", **fields):
    return an_unsent("timeline.append", session=session, body={"entry": n}, **fields)


def a_request():
    return an_unsent("session.get", reply=True)


async def all_arrived(publisher, fake):
    async with running(publisher), asyncio.timeout(5):
        await publisher.flush()
    return [(one.id, one.epoch) for one in fake.arrived]


async def test_nothing_waits_between_the_look_at_the_connection_and_the_write(fake):
    """
    A new connection may lead to a bus that lost what is there: that has to go first.
    """

    class Losing(FakeCredential):
        async def current(self):
            publisher._wire.connected = False
            return await super().current()

    publisher = a_publisher_on(fake, credential=Losing(b"grant"))
    publisher.publish(an_append(1), 0)
    publisher._wire.connected = True

    assert await publisher._write() is None
    # A ping, and the entry.
    assert fake.writes == 2


class TestEpochs:
    async def test_without_a_lease_there_is_none(self, fake):
        publisher = a_publisher_on(fake)
        publisher.publish(an_append(1), 0)

        assert await all_arrived(publisher, fake) == [("i.0.1", 0)]

    async def test_a_command_counts_under_the_epoch_in_which_it_is_written(
        self, fake, clock
    ):
        """
        What waits through a loss is not refused with what was sent before it.
        """
        lease = Lease("i", clock=clock)
        publisher = a_publisher_on(fake, lease=lease)
        publisher.publish(an_append(1), 0)
        assert await publisher._write() is None

        publisher.publish(an_append(2), 0)
        lease.declare_lost(1)
        assert await publisher._write() is None
        publisher.publish(an_append(3), 0)
        clock.now += 2 * lease.ttl_s
        assert await publisher._write() is None

        assert [one.epoch for one in fake.arrived] == [1, 2, 3]
        assert fake.applied["s1"] == [1, 2, 3]

    async def test_what_may_have_arrived_is_sent_again_under_the_new_epoch(
        self, fake, clock
    ):
        lease = Lease("i", clock=clock)
        publisher = a_publisher_on(fake, lease=lease)
        publisher.publish(an_append(1), 0)
        fake.faults = [None, "unheard"]  # the first write asks who is there
        assert await publisher._write() is not None
        lease.declare_lost(1)

        assert await all_arrived(publisher, fake) == [("i.0.1", 1), ("i.0.1", 2)]
        assert fake.applied["s1"] == [1]

    async def test_the_lease_is_asked_once_a_write(self, fake):
        class Counted(Lease):
            asked = 0

            def epoch(self):
                self.asked += 1
                return super().epoch()

        lease = Counted("i")
        publisher = a_publisher_on(fake, lease=lease)
        for n in range(ENTRY_COMMANDS):
            publisher.publish(an_append(n), 0)
        lease.asked = 0

        assert await publisher._write() is None
        assert lease.asked == 1

    def test_no_epoch_and_no_grant_makes_a_command_too_large(self, fake, clock):
        """
        What was accepted can always be written, also when these need more room.
        """
        publisher = a_publisher_on(fake, lease=Lease("i", clock=clock))
        sizes = []
        for room in range(80):
            filler = "x" * (MAX_COMMAND_BYTES - GRANT_BYTES - 150 + room)
            try:
                outgoing = publisher.publish(an_append(filler), 0)
            except TooLarge:
                break
            sizes.append(outgoing.size)
            grant = bytes(GRANT_BYTES)
            assert len(outgoing.packed(0.0, 2**31 - 1, grant)) <= MAX_COMMAND_BYTES

        assert sizes[-1] > SURELY_FITS_BYTES - 16
        assert len(sizes) < 80


class TestGrants:
    async def test_what_was_published_before_the_first_is_written_under_it(self, fake):
        publisher = a_publisher_on(fake, credential=FakeCredential(b"first"))
        publisher.publish(an_append(1), 0)

        await all_arrived(publisher, fake)
        assert [one.grant for one in fake.arrived] == [b"first"]

    async def test_what_waited_is_written_under_the_latest(self, fake):
        credential = FakeCredential(b"first")
        publisher = a_publisher_on(fake, credential=credential)
        publisher.publish(an_append(1), 0)
        fake.faults = [None, "unheard"]
        assert await publisher._write() is not None
        credential.fresh = b"second"

        await all_arrived(publisher, fake)
        assert [one.grant for one in fake.arrived] == [b"first", b"second"]
        assert fake.applied["s1"] == [1]

    async def test_nothing_is_packed_twice_while_it_stays_the_same(self, fake):
        credential = FakeCredential(b"g")
        await credential.current()
        publisher = a_publisher_on(fake, credential=credential)

        outgoing = publisher.publish(an_append(1), 0)
        packed = outgoing._packed

        assert outgoing.packed(0.0, 0, b"g") is packed

    async def test_without_one_everything_waits(self, fake):
        credential = FakeCredential(b"g")
        credential.error = Unavailable("no manager answered")
        publisher = a_publisher_on(fake, credential=credential)
        outgoing = publisher.publish(a_request(), 0)

        assert await publisher._write() is credential.error
        assert (fake.arrived, outgoing.attempted) == ([], False)
        credential.error = None
        assert await all_arrived(publisher, fake) == [("i.0.1", 0)]

    async def test_a_mad_whose_token_is_refused_is_turned_away_for_good(self, fake):
        credential = FakeCredential(b"g")
        credential.error = Unauthenticated("the token is not valid here")
        publisher = a_publisher_on(fake, credential=credential)
        publisher.publish(an_append(1), 0)

        async with running(publisher):
            with pytest.raises(Unauthenticated):
                await publisher.flush()
            with pytest.raises(Unauthenticated, match="not valid here"):
                publisher.publish(an_append(2), 0)
        assert fake.arrived == []

    async def test_what_is_signed_keeps_its_own(self, fake):
        """
        It is for that command alone; under another one it would be refused.
        """
        publisher = a_publisher_on(fake, credential=FakeCredential(b"of the instance"))
        publisher.publish(an_append(1), 0, sign=lambda e: f"for {e.id}".encode())
        publisher.publish(an_append(2), 0)

        await all_arrived(publisher, fake)
        grants = [one.grant for one in fake.arrived]
        assert grants == [b"for i.0.1", b"of the instance"]


class TestFreeIds:
    async def test_one_is_kept_and_takes_no_number(self, fake):
        publisher = a_publisher_on(fake)
        for id_ in ("", "order-7", ""):
            publisher.publish(an_append(1, id=id_), 0)

        await publisher._write()
        assert [one.id for one in fake.arrived] == ["i.0.1", "order-7", "i.0.2"]


class TestFlush:
    async def test_waits_for_all_that_was_published_before_and_no_longer(self, fake):
        """
        Commands of another partition that came behind it do not count for it.
        """
        publisher = a_publisher_on(fake)
        for n in range(3 * ENTRY_COMMANDS):
            publisher.publish(an_append(n), 0)
        flushed = publisher._queue.flushed()
        for n in range(3 * ENTRY_COMMANDS):
            publisher.publish(an_append(n, "s2"), 1)

        for wrote in (1, 2):
            assert await publisher._write() is None
            assert len(fake.applied["s1"]) == wrote * ENTRY_COMMANDS
            assert not flushed.done()
        assert await publisher._write() is None
        assert flushed.done()

    @pytest.mark.parametrize(
        "error", ["NOPERM no permissions", "OOM no", "BUSY a script", "ODD thing"]
    )
    async def test_survives_every_refusal_of_the_bus(self, fake, error):
        """
        Rights and passwords come back as memory does; what waits is kept.
        """
        publisher = a_publisher_on(fake)
        publisher.publish(an_append(1), 0)
        fake.faults = [None, ResponseError(error)]

        async with running(publisher):
            publisher.publish(an_append(2), 0)
            await publisher.flush()

        assert fake.applied["s1"] == [1, 2]
        assert not publisher.trouble


class TestWriting:
    async def test_one_partition_refused_does_not_hold_up_the_others(self, fake):
        publisher = a_publisher_on(fake)
        publisher.publish(an_append(1), 0)
        publisher.publish(an_append(2, "s2"), 1)
        wire = publisher._wire
        answer = wire.exchange

        async def first_refused(commands, **_):
            if commands[0][0] != "XADD":
                return await answer(commands)
            return [ResponseError("TRYAGAIN"), *await answer(commands[1:])]

        wire.exchange = first_refused
        error = await publisher._write()
        wire.exchange = answer

        assert isinstance(error, Unavailable)
        assert (fake.applied["s1"], fake.applied["s2"]) == ([], [2])
        await all_arrived(publisher, fake)
        assert fake.applied["s1"] == [1]

    async def test_nothing_is_written_to_a_bus_that_may_not_be_there(self, fake):
        """
        Else a request that was never on its way would be told as perhaps applied.
        """
        publisher = a_publisher_on(fake)
        outgoing = publisher.publish(a_request(), 0)
        fake.faults = ["lost", "lost"]

        for _ in range(2):
            assert await publisher._write() is not None
        assert not outgoing.attempted

    async def test_what_the_replicas_have_forgotten_is_not_sent_again(self, fake):
        publisher = a_publisher_on(fake)
        old = publisher.publish(an_append("old"), 0)
        publisher.publish(an_append("new"), 0)
        old.attempted_s = 1.0 + HORIZON_S

        await all_arrived(publisher, fake)

        assert fake.applied["s1"] == ["new"]
        assert publisher.waiting == 0


class TestBreaker:
    def test_pauses_are_drawn_from_zero_up_to_a_bound_that_doubles(self, clock):
        """
        Full jitter from the first try on: whoever lost the bus together comes back
        apart.
        """
        lowest = BusBreaker("m", clock=clock, draw=lambda least, most: least)
        highest = BusBreaker("m", clock=clock, draw=lambda least, most: most)

        waits = {lowest.failed(Unavailable("away")) for _ in range(20)}
        bounds = [highest.failed(Unavailable("away")) for _ in range(20)]

        assert waits == {0.0}
        assert bounds[:4] == [FIRST_BACKOFF_S * 2**n for n in range(4)]
        assert bounds[-1] == MAX_BACKOFF_S == 1.0

    def test_a_thousand_that_lose_the_bus_together_do_not_come_back_together(self):
        """
        No hundredth of the first tenth of a second has more than 30 of them.
        """
        pauses = [BusBreaker("m").failed(Unavailable("away")) for _ in range(1000)]
        slots = [0] * 100
        for pause in pauses:
            slots[min(99, int(pause / FIRST_BACKOFF_S * 100))] += 1

        assert max(slots) < 30

    def test_a_short_trouble_refuses_nobody(self, breaker, clock):
        breaker.failed(Unavailable("away"))
        clock.now += OPEN_AFTER_S - 0.1

        breaker.check()
        assert 0 < breaker.away_s < OPEN_AFTER_S

    def test_a_long_one_refuses_and_tells_since_when_and_what_comes(
        self, breaker, clock
    ):
        breaker.failed(Unavailable("no route"))
        clock.now += 10
        breaker.failed(Unavailable("no route"))

        with pytest.raises(Unavailable, match="will not be applied") as refused:
            breaker.check()
        assert "no route" in refused.value.message
        assert "next try in 0.2 s" in refused.value.message
        assert refused.value.details == {"away_s": 10.0, "retry_after_s": 0.2}
        breaker.begin()
        with pytest.raises(Unavailable, match="being tried now"):
            breaker.check()

    def test_the_first_success_closes_it(self, breaker, clock):
        breaker.failed(Unavailable("away"))
        clock.now += 10
        breaker.succeeded()

        breaker.check()
        assert (breaker.away_s, breaker.last_error) == (0.0, None)

    async def test_open_it_refuses_requests_and_lets_appends_wait(self, fake, clock):
        publisher = a_publisher_on(fake)
        publisher._breaker._clock = clock
        waiting = publisher.publish(a_request(), 0)
        fake.faults = ["lost"]
        publisher._breaker.failed(await publisher._write())
        clock.now += OPEN_AFTER_S

        with pytest.raises(Unavailable, match="the bus is away since"):
            publisher.publish(a_request(), 0)
        publisher.publish(an_append(1), 0)
        assert publisher.away_s == OPEN_AFTER_S

        arrived = await all_arrived(publisher, fake)
        # The refused one has no number: nothing is missing between the others.
        assert [one for one, _ in arrived] == [waiting.envelope.id, "i.0.2"]
        publisher.publish(a_request(), 0)

    async def test_a_busy_event_loop_is_no_trouble(self, fake, clock):
        """
        A write under way, and nobody looks for its answer: that says nothing.
        """
        publisher = a_publisher_on(fake)
        publisher._breaker._clock = clock
        publisher.publish(an_append(1), 0)
        publisher._breaker.begin()
        clock.now += 60

        publisher.publish(a_request(), 0)


def test_so_much_waits_and_no_more(fake, monkeypatch):
    monkeypatch.setattr("everbus.bus.send_queue.MAX_WAITING", 3)
    publisher = a_publisher_on(fake)
    for n in range(3):
        publisher.publish(an_append(n), 0)

    with pytest.raises(Overloaded) as refused:
        publisher.publish(an_append(3), 0)
    assert refused.value.details == {"waiting": 3, "limit": 3}
    assert publisher.waiting == 3

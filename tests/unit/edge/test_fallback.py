"""
The desk: asks the bus while it is there, reads below it while it is not.
"""

import asyncio
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
import uuid_utils

from everbus.bus.errors import (
    EverbusError,
    Forbidden,
    Invalid,
    NotFound,
    Overloaded,
    ReplyTimeout,
    Unavailable,
)
from everbus.bus.wire import WireFailed
from everbus.compose.testing.memory.warm import MemoryWarm
from everbus.gateway.edge.fallback import ReadFallback
from everbus.gateway.edge.warm_reads import WarmReads
from everbus.gateway.health.bus_watchdog import STALLED_S, Watchdog
from everbus.gateway.identity.principal import Principal
from tests.unit.below import World, with_history

NOWHERE = "redis://127.0.0.1:1"
GONE = Unavailable("the bus is away: it does not answer")
READING = frozenset(
    {"changes", "checkpoint", "checkpoints", "counts", "entries", "find"}
    | {"first_since", "sessions", "snapshot"}
)


def a_principal(name: str = "ada", role: Any = "user", tenant: str = "") -> Principal:
    return Principal(name, role, math.inf, tenant)


ADA = a_principal()


class Clock:
    """
    A clock that a test puts forward.
    """

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bus:
    """
    What is asked of the bus, and a watchdog that sees what the test tells it.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.dog = Watchdog(NOWHERE, clock=self.clock)
        self.asked = 0
        self.hanging = asyncio.Event()

    def fallback(self, below: WarmReads | None = None, **options: Any) -> ReadFallback:
        return ReadFallback(self.dog, below, **options)

    def dies(self) -> None:
        self.dog.record_ping(self.clock(), GONE)

    def returns(self) -> None:
        self.dog.record_ping(self.clock(), None)

    async def answers(self) -> str:
        self.asked += 1
        return "from the bus"

    async def hangs(self) -> str:
        self.asked += 1
        self.hanging.set()
        await asyncio.Event().wait()
        raise AssertionError


async def warm() -> str:
    return "from below"


async def read(fallback: ReadFallback, ask: Any, below: Any = warm) -> Any:
    return await fallback.read(ask, below)


async def test_without_a_watchdog_everything_passes():
    fallback, bus = ReadFallback(), Bus()

    assert await read(fallback, bus.answers) == ("from the bus", "bus", 0.0)
    assert await fallback.write(bus.answers) == "from the bus"
    assert fallback.outage is None


async def test_a_read_is_the_buss_while_that_is_there():
    bus = Bus()

    assert await read(bus.fallback(), bus.answers) == ("from the bus", "bus", 0.0)


async def test_a_read_while_the_bus_is_away_comes_from_below_and_tells_how_old():
    bus = Bus()
    bus.returns()
    bus.clock.now += 7
    bus.dies()

    assert await read(bus.fallback(), bus.answers) == ("from below", "warm", 7.0)
    assert bus.asked == 0


async def test_a_read_that_hangs_is_answered_from_below_when_the_bus_goes():
    """
    Nobody waits for a deadline of its own once the watchdog knows.
    """
    bus = Bus()
    reading = asyncio.create_task(read(bus.fallback(timeout_s=1000), bus.hangs))
    await bus.hanging.wait()

    bus.dies()
    answer = await asyncio.wait_for(reading, 1)

    assert answer.source == "warm"


async def test_the_bus_is_asked_again_when_it_is_back():
    bus = Bus()
    bus.dies()
    bus.returns()

    assert (await read(bus.fallback(), bus.answers)).source == "bus"


async def test_managers_that_do_not_answer_in_time_are_read_past():
    bus = Bus()

    answer = await read(bus.fallback(timeout_s=0.01), bus.hangs)

    assert answer.source == "warm"


async def test_managers_that_were_silent_are_waited_for_less_until_they_answer(
    monkeypatch,
):
    """
    Else every read would take the whole patience while none lives.
    """
    monkeypatch.setattr("everbus.gateway.edge.fallback.SILENT_TIMEOUT_S", 0.001)
    bus = Bus()
    fallback = bus.fallback(timeout_s=0.05)
    await read(fallback, bus.hangs)

    async with asyncio.timeout(0.04):
        hasty = await read(fallback, bus.hangs)
    await read(fallback, bus.answers)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.04):
            await read(fallback, bus.hangs)

    assert hasty.source == "warm"


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(ReplyTimeout("no reply", command_id="x"), id="timeout"),
        pytest.param(Unavailable("not sent", command_id="x"), id="unsent"),
        pytest.param(Unavailable("away", away_s=3.0), id="breaker"),
        pytest.param(Overloaded("full", away_s=3.0), id="memory"),
    ],
)
async def test_what_the_sdk_could_not_deliver_is_read_below(error: EverbusError):
    async def fails() -> str:
        raise error

    assert (await read(Bus().fallback(), fails)).source == "warm"


@pytest.mark.parametrize("error", [NotFound("no"), Forbidden("no"), Unavailable("no")])
async def test_a_refusal_of_the_managers_is_never_read_past(error: EverbusError):
    """
    They know better than MongoDB does.
    """

    async def fails() -> str:
        raise error

    with pytest.raises(type(error)) as raised:
        await read(Bus().fallback(), fails)

    assert raised.value is error


async def test_slow_managers_are_waited_for_if_there_is_nothing_below():
    bus = Bus()
    turns = iter([bus.hangs, bus.answers])

    async def slow() -> str:
        return await next(turns)()

    answer = await read(
        bus.fallback(timeout_s=0.01),
        slow,
        lambda: bus.fallback().warm(ADA).get_session("s1"),
    )

    assert answer == ("from the bus", "bus", 0.0)


async def test_nothing_to_read_from_is_told_with_the_remedy():
    bus = Bus()
    bus.dies()
    fallback = bus.fallback()

    with pytest.raises(Unavailable, match="EVERBUS_MONGO_URL") as raised:
        await read(fallback, bus.answers, lambda: fallback.warm(ADA).get_session("s1"))

    assert raised.value.details["retry_after_s"] > 0


async def test_a_write_while_the_bus_is_away_is_never_sent():
    bus = Bus()
    bus.dies()

    with pytest.raises(Unavailable, match="will not be applied") as raised:
        await bus.fallback().write(bus.answers, command_id="key-1")

    assert bus.asked == 0
    assert raised.value.details == {
        "retry_after_s": 1.0,
        "sent": "no",
        "command_id": "key-1",
    }


async def test_a_write_under_way_is_told_that_its_outcome_is_unknown():
    bus = Bus()
    writing = asyncio.create_task(bus.fallback().write(bus.hangs, command_id="key-1"))
    await bus.hanging.wait()

    bus.dies()
    with pytest.raises(Unavailable, match="unknown until the bus is back") as raised:
        await asyncio.wait_for(writing, 1)

    assert raised.value.code == "unavailable"
    assert raised.value.details["sent"] == "maybe"
    assert raised.value.details["command_id"] == "key-1"


async def test_a_write_that_the_sdk_did_not_send_is_told_so():
    async def fails() -> str:
        raise Unavailable("no connection to the bus at 10.0.0.1:6379", away_s=4.0)

    with pytest.raises(Unavailable, match="will not be applied") as raised:
        await Bus().fallback().write(fails, command_id="key-1")

    assert raised.value.details["sent"] == "no"
    assert raised.value.details["command_id"] == "key-1"
    assert "10.0.0.1" not in raised.value.message


@pytest.mark.parametrize("error", [ReplyTimeout("late"), Unavailable("MongoDB")])
async def test_what_the_managers_leave_open_is_passed_on_as_it_is(error: EverbusError):
    async def fails() -> str:
        raise error

    with pytest.raises(Unavailable) as raised:
        await Bus().fallback().write(fails, command_id="key-1")

    assert raised.value is error


async def test_a_timeout_of_the_callers_own_stays_one():
    async def impatient() -> str:
        async with asyncio.timeout(0.001):
            return await Bus().hangs()

    with pytest.raises(TimeoutError):
        await Bus().fallback().write(impatient)


async def test_whoever_cancels_a_request_is_heard_also_when_the_bus_goes():
    bus = Bus()
    writing = asyncio.create_task(bus.fallback().write(bus.hangs))
    await bus.hanging.wait()

    bus.dies()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing


async def test_what_was_answered_is_not_ended_later():
    """
    A request that is over is forgotten by the watchdog.
    """
    bus = Bus()
    await bus.fallback().write(bus.answers)
    bus.dies()
    await asyncio.sleep(0)

    assert not bus.dog._scopes


class Late:
    """
    A wire whose pings fail, each a given time after it was sent.
    """

    def __init__(self, clock: Clock, *took_s: float) -> None:
        self.clock = clock
        self.took_s = list(took_s)

    async def call(self, *_: Any, **__: Any) -> bytes:
        if not self.took_s:
            return b"PONG"
        self.clock.now += self.took_s.pop(0)
        raise WireFailed("the bus at 10.0.0.1:6379 did not answer within 0.5 s")


async def test_one_lost_ping_is_enough():
    clock = Clock()
    dog = Watchdog(NOWHERE, clock=clock, deadline_s=0.5)
    dog._wire = Late(clock, 0.5)

    assert await dog._ping() is not None


async def test_a_ping_that_waited_for_our_own_loop_is_sent_again():
    """
    An event loop that stood still for a second proves nothing of the bus.
    """
    clock = Clock()
    dog = Watchdog(NOWHERE, clock=clock, deadline_s=0.5)
    dog._wire = Late(clock, 0.5 + 2 * STALLED_S)

    assert await dog._ping() is None


async def test_a_connection_that_broke_is_opened_anew_before_anything_is_said():
    """
    Somebody may have ended it: a failover, CLIENT KILL, a proxy.
    """
    clock = Clock()
    dog = Watchdog(NOWHERE, clock=clock, deadline_s=0.5)
    dog._wire = Late(clock, 0.01)
    once = await dog._ping()
    dog._wire = Late(clock, 0.01, 0.01)
    twice = await dog._ping()

    assert once is None
    assert twice is not None


async def test_clients_are_not_told_where_the_bus_is():
    clock = Clock()
    dog = Watchdog(NOWHERE, clock=clock)
    dog._wire = Late(clock, dog._deadline_s)

    error = await dog._ping()

    assert error is not None
    assert "10.0.0.1" not in error.message


class Watched:
    """
    A warm tier that notes what is called.
    """

    def __init__(self, tier: MemoryWarm) -> None:
        self.tier = tier
        self.called: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.called.add(name)
        return getattr(self.tier, name)


def below(world: World, **options: Any) -> WarmReads:
    return WarmReads(world.warm, world.vault, **options)


async def test_a_session_below_is_as_the_managers_would_tell_it():
    world = await with_history(29)
    await world.append(1)
    await world.change(full_context={"topic": "tides"}, context_bytes=20)
    mad = below(world).mad(ADA)

    session = await mad.get_session("s1")
    full = await mad.get_session("s1", full=True)

    assert (session.version, session.last_seq) == (30, 30)
    assert session.work_in_progress == world.session.work_in_progress
    assert [entry.seq for entry in session.recent_timeline] == [*range(11, 31)]
    assert session.full_context is None
    assert full.full_context == world.context


async def test_pages_below_go_through_a_whole_timeline():
    world = World()
    await world.change()
    await world.append(250)
    mad = below(world).mad(ADA)

    after: int | None = 0
    found: list[int] = []
    while after is not None:
        page = await mad.timeline("s1", after=after, limit=100)
        found += (entry.seq for entry in page.entries)
        after = page.next

    assert found == [*range(1, 251)]


async def test_history_checkpoints_and_lists_are_answered_below():
    world = await with_history(5)
    await world.keep("c1")
    mad = below(world).mad(ADA)

    assert (await mad.session_at("s1", 3)).version == 3
    assert (await mad.diff("s1", 2, 4)).to_version == 4
    assert [c.id for c in (await mad.checkpoints("s1")).checkpoints] == ["c1"]
    assert [s.id for s in (await mad.list_sessions()).sessions] == ["s1"]


async def test_entries_that_only_the_cold_tier_has_are_read_there():
    """
    Of a session that has returned, but not all of its entries yet.
    """
    world = World()
    await world.change()
    await world.append(50)
    await world.archive(purged=40)
    stub = await world.held()
    whole = msgspec.structs.replace(
        stub,
        session=world.session,
        archival_status="ACTIVE",
        moves=stub.moves + 1,
        unrestored=True,
    )
    assert await world.warm.swap(stub, whole)

    page = await below(world).mad(ADA).timeline("s1", after=10, limit=5)

    assert [entry.seq for entry in page.entries] == [11, 12, 13, 14, 15]


async def test_an_archived_session_stays_where_it_is():
    world = World()
    await world.change()
    await world.append(5)
    await world.archive()
    before = await world.held()

    for ask in ("get_session", "timeline", "checkpoints"):
        with pytest.raises(Unavailable, match="cold tier"):
            await getattr(below(world).mad(ADA), ask)("s1")

    assert await world.held() == before


async def test_no_read_calls_anything_that_writes():
    world = await with_history(30)
    await world.keep("c1")
    watched = Watched(world.warm)
    mad = WarmReads(watched, world.vault).mad(ADA)

    await mad.get_session("s1", full=True)
    await mad.timeline("s1", limit=1000)
    await mad.session_at("s1", 3)
    await mad.checkpoints("s1")
    await mad.list_sessions()

    assert watched.called
    assert watched.called <= READING
    with pytest.raises(AttributeError, match="only reads"):
        await WarmReads(watched)._warm.write([])


@pytest.mark.parametrize(
    "call",
    [
        lambda mad: mad.update_session("s1", {"tags": ["x"]}),
        lambda mad: mad.create_session("ada"),
        lambda mad: mad.append_and_wait("s1", 1),
        lambda mad: mad.durable("s1"),
        lambda mad: mad.outcome("i1.0.1"),
    ],
)
async def test_what_needs_the_bus_is_refused_below(call: Any):
    world = await with_history(1)

    with pytest.raises(Unavailable, match="needs the bus"):
        await call(below(world).mad(ADA))
    assert (await world.held()).session.version == 1


async def test_an_append_below_is_refused_at_once():
    with pytest.raises(Unavailable, match="needs the bus"):
        below(World()).mad(ADA).append("s1", 1)


async def test_bounds_are_judged_as_by_the_managers():
    world = await with_history(1)

    with pytest.raises(Invalid, match="limit"):
        await below(world).mad(ADA).timeline("s1", limit=5000)


async def test_strangers_are_refused_in_the_managers_own_words():
    world = await with_history(1)

    with pytest.raises(Forbidden, match=r"role user may not 'session\.get'"):
        await below(world).mad(a_principal("eve")).get_session("s1")


async def test_another_tenants_session_is_told_as_one_that_is_not_there():
    """
    Word for word, also where the id is too young to say that there is none.
    """
    world = await with_history(1)
    eve = below(world).mad(a_principal("eve", "admin", "other"))

    with pytest.raises(NotFound) as theirs:
        await eve.get_session("s1")
    with pytest.raises(NotFound) as nobodys:
        await eve.get_session("s2")

    assert theirs.value.message.replace("s1", "s2") == nobodys.value.message


async def test_lists_below_show_only_what_the_principal_may_see():
    world = await with_history(1)
    found = below(world)

    assert not (await found.mad(a_principal("eve")).list_sessions()).sessions
    assert not (
        await found.mad(a_principal("eve", "admin", "other")).list_sessions()
    ).sessions
    with pytest.raises(Forbidden):
        await found.mad(ADA).stats()


async def test_a_session_that_only_the_bus_may_know_is_not_said_to_be_nowhere():
    """
    The archiver may not have got to it; after an hour nothing is only hot.
    """
    young = str(uuid_utils.uuid7())
    later = datetime.now(UTC) + timedelta(hours=2)

    with pytest.raises(Unavailable, match="so young"):
        await below(World()).mad(ADA).get_session(young)
    with pytest.raises(NotFound):
        await below(World(), now=lambda: later).mad(ADA).get_session(young)


async def test_a_young_session_of_another_tenant_is_told_like_one_that_is_not_there():
    young = str(uuid_utils.uuid7())
    world = World(session_id=young)
    await world.change()
    eve = a_principal("eve", "user", "other")

    with pytest.raises(Unavailable) as theirs:
        await below(world).mad(eve).get_session(young)
    with pytest.raises(Unavailable) as nobodys:
        await below(World()).mad(eve).get_session(young)

    assert theirs.value.message == nobodys.value.message


async def test_a_warm_tier_that_is_silent_ends_in_a_refusal(monkeypatch):
    class Silent:
        async def sessions(self, *_: Any, **__: Any) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr("everbus.gateway.edge.warm_reads.ANSWER_TIMEOUT_S", 0.01)

    with pytest.raises(Unavailable, match="warm tier did not answer"):
        await WarmReads(Silent()).mad(ADA).get_session("s1")

"""
A broken network between MAD and bus, and between manager and bus.

Every fault must prove by the proxy's counters that it bit. What happened is
read from the server's own keys, never from what the SDK says of itself.
"""

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest

import everbus as sdk
from everbus.bus.wire import EXCHANGE_TIMEOUT_S
from tests.integration.conftest import (
    NEEDS_REDIS,
    a_replica,
    a_token,
    in_order,
    until,
)
from tests.proxy import Proxy

pytestmark = pytest.mark.asyncio(loop_scope="module")
served = pytest.mark.usefixtures("manager")

# Nothing is stranded 2 s after a heal; the rest is for a machine under load.
AFTER_HEAL_S = 2.0
LANE = 1
SAID = [*range(10)]
PATCH = {"context_summary": {"topic": "tides"}}


class Call(NamedTuple):
    """
    A call of the SDK on a session at version 1 in which `bob` takes part.

    Attributes:
        events: what it does to the session.
    """

    make: Callable[..., Any]
    events: tuple[str, ...] = ()


UPDATED, APPENDED = ("session.updated",), ("timeline.appended",)
JOINED, LEFT = ("participant.added",), ("participant.removed",)

CALLS = {
    "create": Call(
        lambda m, s, **k: m.create_session(m.name, session_id=beside(s), **k)
    ),
    "get_or_create": Call(lambda m, s, **k: m.get_or_create_session(m.name, **k)),
    "get": Call(lambda m, s, **k: m.get_session(s, **k)),
    "update": Call(lambda m, s, **k: m.update_session(s, PATCH, **k), UPDATED),
    "update if at version": Call(
        lambda m, s, **k: m.update_session(s, PATCH, expected_version=2, **k), UPDATED
    ),
    "delete": Call(lambda m, s, **k: m.delete_session(beside(s), **k)),
    "add": Call(lambda m, s, **k: m.add_participant(s, "eve", **k), JOINED),
    "remove": Call(lambda m, s, **k: m.remove_participant(s, "bob", **k), LEFT),
    "join": Call(lambda m, s, **k: m.join(s, **k), JOINED),
    "leave": Call(lambda m, s, **k: m.leave(s, **k)),
    "append_and_wait": Call(
        lambda m, s, **k: m.append_and_wait(s, "waited", **k), APPENDED
    ),
    "timeline": Call(lambda m, s, **k: m.timeline(s, **k)),
    "outcome": Call(lambda m, s, **k: m.outcome(f"other.{LANE}.1", **k)),
}
# What these do to the session beside; the one that is looked at stays as it is.
BESIDE = {
    "create": ["session.created"],
    "delete": ["session.created", "session.deleted"],
}


class Fault(NamedTuple):
    """
    Attributes:
        begin: arms it; what comes next over the proxy is what it hits.
        bit: whether it did, by the proxy's counters.
        end: heals it, and tells the ends of broken connections.
    """

    begin: Callable[[Proxy], None]
    bit: Callable[[Proxy], int] = lambda proxy: proxy.connections_cut
    end: Callable[[Proxy], None] = lambda proxy: proxy.heal()


def healed_by_cut(proxy: Proxy) -> None:
    proxy.cut()
    proxy.heal()


# The first bytes of a call are its XADD, the first bytes back are the answer to
# that XADD (22 bytes), then come the wake-up and the reply.
FAULTS = {
    "request cut off": Fault(lambda proxy: proxy.requests.cut_after(0)),
    "request cut in two": Fault(lambda proxy: proxy.requests.cut_after(150)),
    "answer cut off": Fault(lambda proxy: proxy.replies.cut_after(0)),
    "answer cut in two": Fault(lambda proxy: proxy.replies.cut_after(5)),
    "wake-up cut off": Fault(lambda proxy: proxy.replies.cut_after(25)),
    "wake-up cut in two": Fault(lambda proxy: proxy.replies.cut_after(150)),
    "requests swallowed": Fault(
        lambda proxy: proxy.drop_requests(),
        lambda proxy: proxy.requests.dropped_bytes,
        healed_by_cut,
    ),
    "replies swallowed": Fault(
        lambda proxy: proxy.drop_replies(),
        lambda proxy: proxy.replies.dropped_bytes,
        healed_by_cut,
    ),
    "stalled": Fault(
        lambda proxy: proxy.stall(), lambda proxy: proxy.requests.held_bytes
    ),
    "replies stalled": Fault(
        lambda proxy: proxy.replies.stall(), lambda proxy: proxy.replies.held_bytes
    ),
}

# Nobody tells the ends of the connection: only their own deadlines can.
BLACK_HOLES = {
    "requests": Fault(
        lambda proxy: proxy.drop_requests(), lambda proxy: proxy.requests.dropped_bytes
    ),
    "replies": Fault(
        lambda proxy: proxy.drop_replies(), lambda proxy: proxy.replies.dropped_bytes
    ),
    "both ways": Fault(
        lambda proxy: proxy.black_hole(), lambda proxy: proxy.dropped_bytes
    ),
}


def beside(session: str) -> str:
    """
    The id of another session of the same lane, found again from the first's.
    """
    return f"{session}-beside"


class Scene:
    """
    One MAD behind a proxy of its own, its session, and what is done to both.
    """

    def __init__(self, bus, mad, proxy, session):
        self.bus, self.mad, self.proxy, self.session = bus, mad, proxy, session

    async def prepare(self, name):
        await self.mad.create_session(self.mad.name, session_id=self.session)
        await self.mad.add_participant(self.session, "bob")
        if name == "delete":
            await self.mad.create_session(
                self.mad.name, session_id=beside(self.session)
            )

    async def suffer(self, call, fault, gives_up_after_s=None):
        """
        Half of what is SAID, the call, and the other half, all under *fault*.

        Returns the call when the fault is over: once it bit, or, if the caller
        shall give up, once it did.
        """
        fault.begin(self.proxy)
        timeout_s = gives_up_after_s or 2 * EXCHANGE_TIMEOUT_S
        # Its first step comes behind the appends, but before anything is written:
        # one stream entry, on which the fault falls, carries all of them.
        calling = asyncio.ensure_future(
            call.make(self.mad, self.session, timeout=timeout_s)
        )
        for one in SAID[:5]:
            self.mad.append(self.session, one)
        await asyncio.sleep(0)
        for one in SAID[5:]:
            self.mad.append(self.session, one)

        async def bit():
            return fault.bit(self.proxy) > 0

        await until(bit, "the fault bites")
        if gives_up_after_s:
            await asyncio.wait([calling])
        fault.end(self.proxy)

        return calling

    async def assert_settled(self, within_s):
        await self.mad.flush(timeout=within_s)
        await self.bus.until_settled(self.mad.name, within_s=within_s)

    async def assert_one_effect(self, name, applied=True):
        """
        The server's own keys tell of every effect once, and in order.
        """
        events, waited = [], []
        if applied:
            events = list(CALLS[name].events)
            waited = ["waited"] * events.count("timeline.appended")
        records = await self.bus.records(self.session)
        entries = await self.bus.entries(self.session)
        kinds = [event.kind for record in records for event in record.events]
        changes = [kind for kind in kinds if kind != "timeline.appended"]
        wanted = [one for one in events if one != "timeline.appended"]
        assert changes == ["session.created", "participant.added", *wanted]
        assert await self.bus.versions(self.session) == list(range(1, 3 + len(wanted)))
        assert in_order(entries, self.mad.name) == SAID[:5] + waited + SAID[5:]
        assert [one.seq for one in entries] == list(range(1, len(entries) + 1))
        others = await self.bus.records(beside(self.session))
        kinds = [event.kind for record in others for event in record.events]
        assert kinds == BESIDE.get(name, [])
        assert await self.bus.letters(self.mad.name) == []


@asynccontextmanager
async def a_scene(bus, name, fault):
    """
    A scene for one call, prepared while the network is still whole.
    """
    mad_name = f"{name}-{fault}".replace(" ", "_")
    while True:
        session = bus.a_session_id(LANE)
        if bus.partition(beside(session)) == LANE:
            break
    async with (
        Proxy("127.0.0.1", bus.server.port) as proxy,
        sdk.connect(proxy.url(), mad=mad_name, token=a_token(mad_name)) as mad,
    ):
        scene = Scene(bus, mad, proxy, session)
        await scene.prepare(name)
        yield scene


@served
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", CALLS)
async def test_a_call_succeeds_once_whatever_breaks_under_it(bus, name, fault):
    """
    G1, G2, G7: and no append around it is lost, doubled or overtaken.
    """
    async with a_scene(bus, name, fault) as scene:
        calling = await scene.suffer(CALLS[name], FAULTS[fault])
        async with asyncio.timeout(AFTER_HEAL_S):
            await calling

        await scene.assert_settled(within_s=AFTER_HEAL_S)
        await scene.assert_one_effect(name)


@served
async def test_a_black_hole_is_noticed_by_the_deadline_of_an_exchange(bus):
    """
    G1, G2, G7: nobody is told, yet every call succeeds once, all at the same time.
    """
    # All of them at once take their time where other tests run beside them.
    limit_s = EXCHANGE_TIMEOUT_S + 2 * AFTER_HEAL_S

    async def suffer(name, direction):
        async with a_scene(bus, name, f"hole_{direction}") as scene:
            calling = await scene.suffer(CALLS[name], BLACK_HOLES[direction])
            async with asyncio.timeout(limit_s):
                await calling
            await scene.assert_settled(within_s=limit_s)
            await scene.assert_one_effect(name)

    await asyncio.gather(
        *(suffer(name, direction) for name in CALLS for direction in BLACK_HOLES)
    )


@served
@pytest.mark.parametrize("fault", ["requests swallowed", "replies swallowed"])
async def test_who_gives_up_is_told_the_truth_about_the_outcome(bus, fault):
    """
    G6: what arrived late was not applied, what was applied is called so.
    """

    async def suffer(name):
        async with a_scene(bus, name, f"up_{fault}") as scene:
            calling = await scene.suffer(CALLS[name], FAULTS[fault], 0.3)
            with pytest.raises(sdk.ReplyTimeout) as refused:
                await calling
            await scene.assert_settled(within_s=AFTER_HEAL_S)
            told = await scene.mad.outcome(refused.value.command_id)
            applied = fault == "replies swallowed"
            assert told.state == ("applied" if applied else "rejected")
            assert told.code == ("ok" if applied else "expired")
            await scene.assert_one_effect(name, applied)

    changing = [name for name, call in CALLS.items() if call.events]
    await asyncio.gather(*(suffer(name) for name in changing))


@served
@pytest.mark.parametrize("at", [0, 25, 60, 120, 300, 5_000, 30_000])
async def test_a_large_reply_is_fetched_again_until_it_is_there(bus, at):
    """
    A reply too large for the wake-up lies on its stream until it was received.
    """
    large = {"work_in_progress": {"text": "x" * 40_000}}
    async with a_scene(bus, "get", f"large_{at}") as scene:
        await scene.mad.update_session(scene.session, large)

        scene.proxy.replies.cut_after(at)
        async with asyncio.timeout(AFTER_HEAL_S):
            found = await scene.mad.get_session(scene.session)

        assert scene.proxy.connections_cut == 1, "the fault did not bite"
        assert found.work_in_progress == large["work_in_progress"]


class Talk:
    """
    A MAD that talks and changes its session until it is told to stop.
    """

    def __init__(self, mad, session):
        self.mad, self.session = mad, session
        self.said = 0
        self.changed = 0

    async def run(self, stop):
        while not stop.is_set():
            for _ in range(7):
                self.mad.append(self.session, self.said)
                self.said += 1
            patch = {"context_summary": {"changed": self.changed}}
            after = await self.mad.update_session(
                self.session, patch, expected_version=1 + self.changed, timeout=30
            )
            self.changed += 1
            assert after.version == 1 + self.changed

    async def assert_complete(self, bus):
        entries = await bus.entries(self.session)
        assert in_order(entries, self.mad.name) == list(range(self.said))
        assert [one.seq for one in entries] == list(range(1, self.said + 1))
        versions = await bus.versions(self.session)
        assert versions == list(range(1, 2 + self.changed))
        assert await bus.letters(self.mad.name) == []


MANAGER_FAULTS = {
    "cut": Fault(lambda proxy: proxy.cut()),
    "requests swallowed": FAULTS["requests swallowed"],
    "replies swallowed": FAULTS["replies swallowed"],
    "stalled": FAULTS["stalled"],
    "black hole": BLACK_HOLES["both ways"],
    "commits in, answers lost": BLACK_HOLES["replies"],
}


@pytest.mark.parametrize(
    ("bus_server", "fault"),
    [("valkey", fault) for fault in MANAGER_FAULTS]
    + [
        pytest.param("redis", fault, marks=NEEDS_REDIS)
        for fault in ("cut", "requests swallowed", "replies swallowed", "stalled")
    ],
    indirect=["bus_server"],
    scope="module",
)
async def test_a_manager_loses_nothing_on_a_broken_network(bus, mad, fault):
    """
    G1 to G3, G7: the same between manager and bus, while four MADs talk.
    """
    breaks = MANAGER_FAULTS[fault]
    async with (
        Proxy("127.0.0.1", bus.server.port) as proxy,
        a_replica(proxy.url(), "behind-a-proxy"),
        mad("m0") as m0,
        mad("m1") as m1,
        mad("m2") as m2,
        mad("m3") as m3,
    ):
        talks = [
            Talk(one, (await one.create_session(one.name)).id)
            for one in (m0, m1, m2, m3)
        ]
        stop = asyncio.Event()

        async def all_changed(since):
            return all(t.changed > n + 3 for t, n in zip(talks, since, strict=True))

        async with asyncio.TaskGroup() as talking:
            for talk in talks:
                talking.create_task(talk.run(stop))
            await until(lambda: all_changed([0] * 4), "all talk")
            breaks.begin(proxy)

            async def bit():
                return breaks.bit(proxy) > 0

            await until(bit, "the fault bites")
            breaks.end(proxy)
            broken = [talk.changed for talk in talks]
            await until(lambda: all_changed(broken), "all talk again")
            stop.set()
        await bus.until_settled("m0", "m1", "m2", "m3", within_s=AFTER_HEAL_S)

        for talk in talks:
            await talk.assert_complete(bus)

"""
Watching on a real bus: every event once and in order, whatever breaks in between.
"""

import asyncio
import signal
from contextlib import aclosing, asynccontextmanager

import pytest

from everbus.bus import (
    Forbidden,
    Invalid,
    NotFound,
    TooLarge,
    Unavailable,
    connect,
    watches,
)
from everbus.bus.events import TIER_MOVES, Position, generation_of
from everbus.bus.watches import MAX_BUFFERED
from tests import replicas
from tests.integration.conftest import a_token
from tests.proxy import Proxy

pytestmark = pytest.mark.asyncio(loop_scope="module")
served = pytest.mark.usefixtures("manager")
# The bound of one wait; far more than any of them takes.
WITHIN_S = 40.0


class Listener:
    """
    A MAD that watches, and notes what it hears.
    """

    def __init__(self, mad, session, after="0"):
        self.mad, self.session = mad, session
        self.events = []
        self.failure = None
        self._after = after
        self._news = asyncio.Event()

    @property
    def numbers(self):
        return [event.position.number for event in self.events]

    @asynccontextmanager
    async def listening(self):
        task = asyncio.create_task(self._listen())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _listen(self):
        try:
            async with aclosing(
                self.mad.watch(self.session, after=self._after)
            ) as watch:
                async for event in watch:
                    self.events.append(event)
                    self._news.set()
        except Exception as error:  # noqa: BLE001 - a test asks for it
            self.failure = error
        self._after = "over"
        self._news.set()

    async def hears(self, claim, what):
        async with asyncio.timeout(WITHIN_S):
            while not claim():
                assert self.failure is None, f"{what}: {self.failure!r}"
                self._news.clear()
                await self._news.wait()

    async def hears_up_to(self, number):
        await self.hears(
            lambda: self.events and self.numbers[-1] >= number, f"event {number}"
        )

    async def ends(self):
        async with asyncio.timeout(WITHIN_S):
            while self._after != "over":
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def far_away(bus, writer):
    """
    One who hears a session of the writer's, by two events, through a proxy.
    """
    session = (await writer.create_session("writer")).id
    await writer.add_participant(session, "hearer")
    token = a_token("hearer")
    async with (
        Proxy("127.0.0.1", bus.server.port) as proxy,
        connect(proxy.url(), mad="hearer", token=token) as hearer,
        Listener(hearer, session).listening() as heard,
    ):
        await heard.hears_up_to(2)
        yield proxy, heard


async def some_of_everything(mad, session, rounds=5):
    """
    Change the session in every way; returns how many events that made.
    """
    for n in range(rounds):
        await mad.update_session(session, {"context_summary": {"n": n}})
        mad.append(session, {"n": n})
        mad.append(session, {"n": n, "text": "x" * 500})
        await mad.broadcast(session, {"typing": n})
        await mad.create_checkpoint(session, name=f"v{n}", durability="hot")
    return 5 * rounds


async def record_of(bus, session):
    """
    The ids of the session's events, in the order of their commits.
    """
    return [
        Position(generation_of(record.created_at), e.version, e.seq, e.notices).id
        for record in await bus.records(session)
        for e in record.events
        if e.kind not in TIER_MOVES
    ]


@served
async def test_whoever_watches_hears_everything_in_order(mad, bus):
    async with mad("writer") as writer, mad("hearer") as hearer:
        session = (await writer.create_session("writer")).id
        await writer.add_participant(session, "hearer")
        async with Listener(hearer, session).listening() as heard:
            await heard.hears_up_to(2)
            count = await some_of_everything(writer, session)
            await heard.hears_up_to(2 + count)

    assert heard.numbers == list(range(1, 3 + count))
    assert [event.id for event in heard.events] == await record_of(bus, session)
    kinds = [event.kind for event in heard.events[2:7]]
    assert kinds == [
        *("session.updated", "timeline.appended", "timeline.appended"),
        *("session.broadcast", "checkpoint.created"),
    ]
    updated, appended, _, said, _ = heard.events[2:7]
    assert updated.patch == {"context_summary": {"n": 0}}
    assert (appended.entry, appended.mad) == ({"n": 0}, "writer")
    assert (said.message, said.principal) == ({"typing": 0}, "writer")
    assert [e.at for e in heard.events] == sorted(e.at for e in heard.events)


@served
async def test_it_comes_by_pushes_and_not_by_asking(mad):
    """
    Else it would come late, and cost a question an event.
    """
    async with mad("writer") as writer:
        session = (await writer.create_session("writer")).id
        async with Listener(writer, session).listening() as heard:
            await heard.hears_up_to(1)
            asked = 0
            ask = writer._requests.ask

            async def counted(kind, *arguments, **options):
                nonlocal asked
                asked += kind == "session.watch"
                return await ask(kind, *arguments, **options)

            writer._ask = counted
            for n in range(100):
                await writer.append_and_wait(session, n)
            await heard.hears_up_to(101)

    assert asked <= 2


@served
async def test_watching_from_now_on_begins_somewhere_and_misses_nothing_after(mad):
    async with mad("writer") as writer:
        session = (await writer.create_session("writer")).id
        async with Listener(writer, session, after=None).listening() as heard:
            while not heard.events:
                await writer.append_and_wait(session, "is anybody there?")
            last = await writer.append_and_wait(session, "bye")
            await heard.hears(lambda: heard.events[-1].seq == last, "the last")

    first = heard.numbers[0]
    assert first > 1
    assert heard.numbers == list(range(first, first + len(heard.events)))


@served
async def test_whoever_resumes_in_the_middle_hears_the_rest(mad, bus):
    async with mad("writer") as writer:
        session = (await writer.create_session("writer")).id
        count = await some_of_everything(writer, session)
        record = await record_of(bus, session)
        for after in (0, 1, count // 2, count):
            heard = Listener(writer, session, after=record[after])
            async with heard.listening():
                await writer.broadcast(session, "one more")
                record = await record_of(bus, session)
                await heard.hears_up_to(len(record))
            assert [event.id for event in heard.events] == record[after + 1 :]


@served
async def test_where_the_wake_up_channel_is_cut_again_and_again_nothing_is_missed(
    mad, bus, monkeypatch
):
    """
    Being connected again is reason enough to ask.
    """
    monkeypatch.setattr(watches, "ASK_EVERY_S", 60)
    async with mad("writer") as writer, far_away(bus, writer) as (proxy, heard):
        session = heard.session
        for n in range(6):
            writer.append(session, f"before {n}")
            proxy.cut()
            writer.append(session, f"while it is cut {n}")
            seq = await writer.append_and_wait(session, f"after {n}")
            # Only sometimes waited for: it is also cut while it catches up.
            if n % 2:
                await heard.hears_up_to(2 + seq)
        await heard.hears_up_to(2 + 18)

    assert proxy.connections_cut > 6
    assert heard.numbers == list(range(1, 21))
    assert heard.failure is None


@served
async def test_in_a_black_hole_it_waits_and_then_catches_up(mad, bus):
    async with mad("writer") as writer, far_away(bus, writer) as (proxy, heard):
        proxy.black_hole()
        for n in range(5):
            await writer.append_and_wait(heard.session, n)
        proxy.heal()
        proxy.cut()
        await writer.append_and_wait(heard.session, "there again")
        await heard.hears_up_to(8)

    assert heard.numbers == list(range(1, 9))


async def test_it_goes_on_through_the_death_of_its_manager(server, client, tmp_path):
    """
    The successor knows of nobody who watches, until it is asked again.
    """
    async with (
        replicas.manager(tmp_path, server.url, "first") as first,
        replicas.a_mad(server.url, "writer") as writer,
        replicas.a_mad(server.url, "hearer") as hearer,
    ):
        session = (await writer.create_session("ada")).id
        async with Listener(hearer, session).listening() as heard:
            await heard.hears_up_to(1)
            for n in range(20):
                writer.append(session, n)
            async with replicas.manager(tmp_path, server.url, "second"):
                await first.end(signal.SIGKILL)
                for n in range(20, 40):
                    writer.append(session, n)
                await writer.append_and_wait(session, 40, timeout=WITHIN_S)
                await heard.hears_up_to(42)

    assert heard.numbers == list(range(1, 43))
    assert [event.entry for event in heard.events[1:]] == list(range(41))


@served
async def test_whoever_is_slow_gets_all_of_it_all_the_same(mad):
    """
    More than its instance keeps for it: the rest is asked for when it comes back.
    """
    count = 2 * MAX_BUFFERED
    async with mad("writer") as writer, mad("hearer") as hearer:
        session = (await writer.create_session("writer")).id
        await writer.add_participant(session, "hearer")
        async with aclosing(hearer.watch(session, after="0")) as watch:
            heard = [(await anext(watch)).position.number]
            for n in range(count):
                writer.append(session, n)
            await writer.append_and_wait(session, "last")
            async with asyncio.timeout(WITHIN_S):
                while heard[-1] < count + 3:
                    heard.append((await anext(watch)).position.number)

    assert heard == list(range(1, count + 4))


@served
async def test_the_end_of_the_session_ends_the_watch(mad):
    async with mad("writer") as writer:
        session = (await writer.create_session("writer")).id
        async with Listener(writer, session).listening() as heard:
            await heard.hears_up_to(1)
            writer.append(session, "bye")
            await writer.delete_session(session)
            await heard.ends()
        later = Listener(writer, session, after=heard.events[-1].id)
        async with later.listening():
            await later.ends()

    kinds = [event.kind for event in heard.events]
    assert kinds == ["session.created", "timeline.appended", "session.deleted"]
    assert heard.failure is None
    assert isinstance(later.failure, NotFound)


@served
async def test_whoever_is_put_out_hears_nothing_from_then_on(mad):
    async with mad("writer") as writer, mad("hearer") as hearer:
        session = (await writer.create_session("writer")).id
        await writer.add_participant(session, "hearer")
        async with Listener(hearer, session).listening() as heard:
            await heard.hears_up_to(2)
            await writer.append_and_wait(session, "for both")
            await heard.hears_up_to(3)
            await writer.update_session(session, {"acl": []})
            await writer.append_and_wait(session, "secret")
            await heard.ends()

    assert isinstance(heard.failure, Forbidden)
    assert heard.numbers == [1, 2, 3]


@served
async def test_the_managers_push_nothing_to_whom_they_refuse(mad, bus):
    """
    Whatever its SDK would do with it: it does not even reach its channel.
    """
    async with mad("writer") as writer, mad("hearer") as hearer:
        session = (await writer.create_session("writer")).id
        await writer.add_participant(session, "hearer")
        said = []
        async with Listener(hearer, session).listening() as heard:
            await heard.hears_up_to(2)
            async with bus.client.pubsub() as channel:
                await channel.subscribe(f"eb:wake:hearer:{hearer.instance}")
                await writer.append_and_wait(session, "for both")
                await writer.update_session(session, {"acl": []})
                await writer.append_and_wait(session, "top secret")
                await heard.ends()
                while (one := await channel.get_message(timeout=0.1)) is not None:
                    said.append(one["data"])

    told = b"".join(part for part in said if isinstance(part, bytes))
    assert b"for both" in told
    assert b"top secret" not in told
    assert b'"acl"' not in told
    assert b"\xa3acl" not in told


@served
async def test_an_expired_token_ends_the_watch(bus, monkeypatch):
    monkeypatch.setattr(watches, "ASK_EVERY_S", 0.2)
    token = a_token("hasty", ttl_s=2)
    async with connect(bus.url, mad="hasty", token=token) as hasty:
        session = (await hasty.create_session("hasty")).id
        async with Listener(hasty, session).listening() as heard:
            await heard.hears_up_to(1)
            await heard.ends()

    assert heard.failure is not None
    assert heard.failure.code == "unauthenticated"


@served
async def test_strangers_can_neither_watch_nor_be_heard(mad):
    async with mad("writer") as writer, mad("stranger") as stranger:
        session = (await writer.create_session("writer")).id
        with pytest.raises(Forbidden):
            await stranger.broadcast(session, "hi")
        with pytest.raises(Forbidden):
            await anext(stranger.watch(session, after="0"))
        with pytest.raises(NotFound):
            await anext(writer.watch("nowhere"))
        with pytest.raises(Invalid):
            await anext(writer.watch(session, after="1-9.9.9"))
        with pytest.raises(TooLarge):
            await writer.broadcast(session, "x" * 70_000)
        found = await writer.get_session(session)

    assert (found.version, found.notices) == (1, 0)


@served
async def test_a_broadcast_is_heard_and_changes_nothing(mad):
    async with mad("writer") as writer:
        before = await writer.create_session("writer")
        event_id = await writer.broadcast(before.id, {"cursor": [1, 2]})
        after = await writer.get_session(before.id)
        async with Listener(writer, before.id).listening() as heard:
            await heard.hears_up_to(2)

    assert (after.version, after.last_seq, after.notices) == (1, 0, 1)
    assert after.state == before.state
    assert heard.events[1].id == event_id
    assert heard.events[1].message == {"cursor": [1, 2]}


@served
async def test_what_is_too_large_to_be_pushed_comes_all_the_same(mad):
    async with mad("writer") as writer:
        session = (await writer.create_session("writer")).id
        async with Listener(writer, session).listening() as heard:
            await heard.hears_up_to(1)
            await writer.append_and_wait(session, "x" * 200_000)
            await writer.append_and_wait(session, "small")
            await heard.hears_up_to(3)

    assert [len(event.entry) for event in heard.events[1:]] == [200_000, 5]


@served
async def test_many_watches_of_one_instance_all_hear_it_by_one_message(mad, bus):
    async with mad("writer") as writer, mad("hearer") as hearer:
        session = (await writer.create_session("writer")).id
        await writer.add_participant(session, "hearer")
        listeners = [Listener(hearer, session) for _ in range(20)]
        async with asyncio.TaskGroup() as tasks:
            for one in listeners:
                tasks.create_task(_hears(one, writer, session))
        channel = f"eb:wake:hearer:{hearer.instance}"
        assert await bus.client.pubsub_numsub(channel) == [(channel.encode(), 1)]

    assert all(one.numbers[:3] == [1, 2, 3] for one in listeners)


async def _hears(listener, writer, session):
    async with listener.listening():
        await listener.hears_up_to(2)
        await writer.append_and_wait(session, "hi")
        await listener.hears_up_to(3)


@served
async def test_with_the_connection_closed_the_watch_ends(mad):
    async with mad("writer") as writer:
        session = (await writer.create_session("writer")).id
        watch = writer.watch(session, after="0")
        assert (await anext(watch)).kind == "session.created"

    with pytest.raises(Unavailable, match="connect\\(\\) anew"):
        async with asyncio.timeout(WITHIN_S):
            await anext(watch)

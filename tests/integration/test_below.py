"""
Sessions that are not hot: loaded from the tiers below, aside, and never twice.

The tiers are a stand-in that the test holds in its hands, so that it decides when
they answer and what; the real ones are in test_archiving.py and test_coming_back.py.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
import uuid_utils

from everbus.bus import connect, keys
from everbus.bus.errors import (
    AlreadyExists,
    Forbidden,
    Invalid,
    NotFound,
    ReplyTimeout,
    Unavailable,
)
from everbus.bus.messages import Session, pack_envelope
from everbus.gateway.lane import cache
from everbus.gateway.store import key_names
from everbus.gateway.store.claims import NO_LENGTH, length_of
from everbus.gateway.store.tiers import Admissible
from tests.builders import an_envelope
from tests.lineages import lost_nothing, lost_writes
from tests.replicas import a_client, a_mad, a_token, replica_here, settled, until
from tests.servers import RealServer, valkey

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


class HeldTiers:
    """
    The tiers below as a table; `gate` is what their answers wait for.
    """

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self.failing: set[str] = set()
        self.loads: list[str] = []
        self.refused: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}

    async def load_each(self, claims, found, wanted):
        self.loads += [claim.session for claim in claims]
        for claim in claims:
            if claim.session in self.gates:
                await self.gates[claim.session].wait()
            held = self.sessions.get(claim.session)
            if held is not None and not wanted(held):
                self.refused.append(claim.session)
                continue
            found(claim.session, self._claimed(claim))

    def _claimed(self, claim):
        """
        As if nobody had claimed it before: the later of the two counts.
        """
        if claim.session in self.failing:
            return Unavailable("MongoDB is away")
        held = self.sessions.get(claim.session)
        length = length_of(held) if held else NO_LENGTH
        if claim.hot is not None and claim.hot >= length:
            return Admissible(None, keeps_hot=True)
        return Admissible(held)

    async def answer(self, session, wanted):
        raise Unavailable("nothing but sessions here")

    def hold(self, session_id: str, **fields) -> Session:
        known = {
            "version": 4,
            "owner_id": "ada",
            "created_at": LONG_AGO,
            "last_active": LONG_AGO + timedelta(hours=1),
            "context_summary": {"topic": "tides"},
        }
        session = Session(id=session_id, **known | fields)
        self.sessions[session_id] = session
        return session


@pytest.fixture
async def server(tmp_path) -> AsyncIterator[RealServer]:
    async with valkey(tmp_path) as real:
        yield real


@asynccontextmanager
async def serving(server, tiers, *, since_ms=1, **settings):
    """
    One lane over *tiers*, on a bus that has lost nothing since *since_ms*.
    """
    async with a_client(server.url) as client:
        await lost_nothing(client, 0, since_ms)
        async with (
            replica_here(server.url, tiers=tiers, partitions=1, **settings) as replica,
            a_mad(server.url) as mad,
        ):
            yield replica, mad, client


async def test_a_session_that_nobody_had_is_looked_for_again_after_a_while(
    server, monkeypatch
):
    """
    What its claim left below goes after a while, so another bus's write may come there.
    """
    monkeypatch.setattr(cache, "MISSING_S", 0.5)
    tiers = HeldTiers()
    async with serving(server, tiers) as (_, mad, _):
        with pytest.raises(NotFound):
            await mad.get_session("late")
        tiers.hold("late")

        async def found():
            try:
                return await mad.get_session("late")
            except NotFound:
                return None

        assert (await until(found)).version == 4


async def test_a_session_that_is_not_hot_comes_back_with_its_state(server):
    tiers = HeldTiers()
    held = tiers.hold("quiet")
    async with serving(server, tiers) as (_, mad, client):
        session = await mad.get_session("quiet")
        await mad.get_session("quiet")

        assert session == held
        assert tiers.loads == ["quiet"]
        assert await client.pttl(key_names.session(0, "quiet")) > 0


async def test_what_is_written_on_it_stays_until_mongodb_holds_it(server):
    tiers = HeldTiers()
    tiers.hold("quiet")
    async with serving(server, tiers) as (_, mad, client):
        after = await mad.update_session(
            "quiet", {"work_in_progress": {"step": 2}}, expected_version=4
        )
        await mad.append_and_wait("quiet", {"n": 1})

        assert after.version == 5
        assert after.context_summary == {"topic": "tides"}
        assert await client.pttl(key_names.session(0, "quiet")) == -1
        assert await client.pttl(key_names.recent(0, "quiet")) == -1


@pytest.mark.parametrize(
    ("who", "refusal"),
    [
        ({"name": "eve", "role": "user"}, Forbidden),
        ({"name": "ada", "tenant": "acme", "role": "admin"}, NotFound),
    ],
)
async def test_a_session_stays_where_it_is_for_those_who_may_not_touch_it(
    server, who, refusal
):
    """
    A stranger, and another tenant's admin, are answered by what MongoDB's document
    tells of owner, ACL and tenant; nothing is fetched, swapped or made hot for them.
    """
    tiers = HeldTiers()
    tiers.hold("quiet")
    async with (
        serving(server, tiers) as (_, mad, client),
        connect(server.url, mad="eve", token=a_token(**who)) as other,
    ):
        with pytest.raises(refusal):
            await other.get_session("quiet")
        with pytest.raises(refusal):
            await other.append_and_wait("quiet", {"n": 1})

        assert tiers.refused == ["quiet", "quiet"]
        assert not await client.exists(key_names.session(0, "quiet"))
        assert (await mad.get_session("quiet")).version == 4


async def test_nothing_is_loaded_for_a_command_without_a_grant(server):
    tiers = HeldTiers()
    tiers.hold("quiet")
    async with serving(server, tiers) as (_, _, client):
        packed = pack_envelope(an_envelope("session.get", session="quiet"))
        await client.xadd(keys.ingress(0, "fiedler"), {"c": packed})
        await settled(client)

        assert tiers.loads == []


async def test_an_id_that_a_tier_holds_cannot_be_created_again(server):
    tiers = HeldTiers()
    tiers.hold("taken")
    async with serving(server, tiers) as (_, mad, _):
        with pytest.raises(AlreadyExists):
            await mad.create_session(user_id="bob", session_id="taken")


async def test_a_new_id_is_not_looked_for(server):
    """
    So creating costs no MongoDB, and works while it is away.
    """
    tiers = HeldTiers()
    async with serving(server, tiers) as (_, mad, _):
        session = await mad.create_session(user_id="ada")

        assert session.version == 1
        assert tiers.loads == []


async def test_a_new_id_is_looked_for_once_the_hot_tier_was_lost(server):
    tiers = HeldTiers()
    new = str(uuid_utils.uuid7())
    tiers.hold(new)
    async with serving(server, tiers) as (_, mad, client):
        await mad.create_session(user_id="ada")
        await client.flushall()
        await until(lambda: client.exists(key_names.owner(0)), what="the lane is back")

        with pytest.raises(AlreadyExists):
            await mad.create_session(user_id="bob", session_id=new)


async def test_a_new_id_that_is_elsewhere_is_looked_for(server):
    """
    Created, suspended and gone from Redis within the minute.
    """
    tiers = HeldTiers()
    new = str(uuid_utils.uuid7())
    tiers.hold(new)
    async with serving(server, tiers) as (_, mad, client):
        await client.set(key_names.tombstone(0, new), "elsewhere")

        assert (await mad.get_session(new)).version == 4


async def test_only_the_session_that_is_loaded_waits(server):
    """
    Both are in one lane; the others are answered while the first one waits.
    """
    tiers = HeldTiers()
    tiers.hold("slow")
    tiers.gates["slow"] = asyncio.Event()
    async with serving(server, tiers) as (_, mad, _):
        other = await mad.create_session(user_id="ada")
        slow = asyncio.create_task(mad.get_session("slow"))
        await until(lambda: tiers.loads == ["slow"])

        for n in range(20):
            await mad.update_session(other.id, {"work_in_progress": {"n": n}})

        assert not slow.done()
        tiers.gates["slow"].set()
        assert (await slow).version == 4


async def test_what_waits_for_a_session_is_applied_in_order(server):
    tiers = HeldTiers()
    tiers.hold("slow")
    tiers.gates["slow"] = asyncio.Event()
    async with serving(server, tiers) as (_, mad, client):
        for n in range(50):
            mad.append("slow", {"n": n})
        await mad.flush()
        await until(lambda: tiers.loads)
        tiers.gates["slow"].set()
        await settled(client)
        page = await mad.timeline("slow", after=30)

        assert [entry.entry["n"] for entry in page.entries] == list(range(30, 50))
        assert tiers.loads == ["slow"]


async def test_while_a_session_cannot_be_had_requests_are_told_and_appends_wait(server):
    tiers = HeldTiers()
    tiers.hold("lost")
    tiers.failing.add("lost")
    async with serving(server, tiers) as (_, mad, client):
        mad.append("lost", {"n": 1})
        with pytest.raises(Unavailable, match="MongoDB is away"):
            await mad.get_session("lost")
        mad.append("lost", {"n": 2})
        await mad.flush()
        tiers.failing.clear()
        await settled(client)
        session = await mad.get_session("lost")

        assert [entry.entry["n"] for entry in session.recent_timeline] == [1, 2]


async def test_a_deleted_session_is_not_found_below(server):
    """
    MongoDB hears of it later; until then the mark says so.
    """
    tiers = HeldTiers()
    tiers.hold("over")
    async with serving(server, tiers) as (replica, mad, _):
        await mad.delete_session("over")
        for lane in replica.lanes.values():
            lane._decider.cache.forget()

        with pytest.raises(NotFound):
            await mad.get_session("over")
        again = await mad.create_session(user_id="ada", session_id="over")
        assert again.version == 1


async def test_a_hot_copy_that_expired_under_the_lane_is_loaded_again(server):
    """
    The lane knew the session; it must not commit on what is gone.
    """
    tiers = HeldTiers()
    async with serving(server, tiers, hot_ttl_s=0.3) as (_, mad, client):
        session = await mad.create_session(user_id="ada")
        tiers.sessions[session.id] = session
        await asyncio.sleep(0.35)
        await client.delete(key_names.session(0, session.id))

        after = await mad.update_session(session.id, {"tags": ["x"]})

        assert after.version == 2
        assert tiers.loads == [session.id]


class TestAfterAPromotion:
    """
    A replica of the bus was promoted that had lagged behind: what is hot may be old.
    """

    async def promoted(self, server, tiers, session):
        """
        The bus with *session* hot, as a server that says it followed another one.
        """
        async with serving(server, tiers) as (_, mad, client):
            await mad.create_session(user_id="ada", session_id=session.id)
            await lost_writes(client, 0)

    async def test_what_mongodb_holds_later_counts(self, server):
        tiers = HeldTiers()
        session_id = str(uuid_utils.uuid7())
        await self.promoted(server, tiers, tiers.hold(session_id))
        hot = await self.hot(server, session_id)
        tiers.sessions[session_id] = msgspec.structs.replace(hot, version=7)
        async with serving_again(server, tiers) as (mad, _):
            assert (await mad.get_session(session_id)).version == 7
            assert tiers.loads == [session_id]

    async def test_what_is_hot_and_later_counts(self, server):
        tiers = HeldTiers()
        session_id = str(uuid_utils.uuid7())
        await self.promoted(server, tiers, tiers.hold(session_id))
        async with serving_again(server, tiers) as (mad, client):
            assert (await mad.get_session(session_id)).version == 1
            assert await client.pttl(key_names.session(0, session_id)) == -1
            await mad.get_session(session_id)
            assert tiers.loads == [session_id]

    async def hot(self, server, session_id):
        async with replica_here(server.url, partitions=1), a_mad(server.url) as mad:
            return await mad.get_session(session_id)


@asynccontextmanager
async def serving_again(server, tiers):
    async with (
        replica_here(server.url, tiers=tiers, partitions=1),
        a_mad(server.url) as mad,
        a_client(server.url) as client,
    ):
        yield mad, client


class TestReplicated:
    """
    Level `replicated`: replied to when the bus's replicas have it.
    """

    async def test_callers_without_a_replica_delay_no_other_caller(self, server):
        async with serving(server, HeldTiers(), replicated_timeout_ms=1000) as (
            _,
            mad,
            _,
        ):
            sessions = [await mad.create_session(user_id="ada") for _ in range(9)]
            hot = sessions.pop()
            waiting = [
                asyncio.create_task(
                    mad.append_and_wait(one.id, {"n": 1}, durability="replicated")
                )
                for one in sessions
            ]
            await asyncio.sleep(0.1)
            took_s = []
            for n in range(20):
                began = time.monotonic()
                await mad.append_and_wait(hot.id, {"n": n})
                took_s.append(time.monotonic() - began)
            refused = await asyncio.gather(*waiting, return_exceptions=True)

        assert max(took_s) < 0.5
        assert all(one.details["applied"] for one in refused)

    async def test_with_a_replica_it_is_ok(self, server, tmp_path):
        (tmp_path / "follower").mkdir()
        async with (
            valkey(tmp_path / "follower") as follower,
            serving(server, HeldTiers()) as (_, mad, _),
            a_client(follower.url) as copy,
        ):
            await copy.replicaof("127.0.0.1", server.port)
            await until(lambda: in_sync(copy), what="the replica follows")
            session = await mad.create_session(user_id="ada", durability="replicated")
            key = key_names.session(0, session.id)

            assert await copy.hget(key, "version") == b"1"

    async def test_without_a_replica_it_is_told_as_applied_but_not_replicated(
        self, server
    ):
        async with serving(server, HeldTiers(), replicated_timeout_ms=50) as (
            _,
            mad,
            _,
        ):
            session = await mad.create_session(user_id="ada")
            with pytest.raises(Unavailable, match="0 of 1 replicas") as told:
                await mad.update_session(
                    session.id, {"tags": ["x"]}, durability="replicated"
                )

            assert told.value.details["applied"] is True
            assert (await mad.get_session(session.id)).version == 2

    async def test_a_paused_replica_is_not_waited_for_without_end(
        self, server, tmp_path
    ):
        (tmp_path / "follower").mkdir()
        async with (
            valkey(tmp_path / "follower") as follower,
            serving(server, HeldTiers(), replicated_timeout_ms=100) as (_, mad, client),
            a_client(follower.url) as copy,
        ):
            await copy.replicaof("127.0.0.1", server.port)
            await until(lambda: in_sync(copy), what="the replica follows")
            follower.pause()
            try:
                with pytest.raises(Unavailable, match="0 of 1 replicas"):
                    await mad.create_session(user_id="ada", durability="replicated")
            finally:
                follower.resume()
            session = await mad.create_session(user_id="ada", durability="replicated")

            assert session.version == 1
            await settled(client)


async def in_sync(copy) -> bool:
    return (await copy.info("replication")).get("master_link_status") == "up"


async def test_without_mongodb_nothing_can_be_asked_to_be_warm(server):
    async with replica_here(server.url, partitions=1), a_mad(server.url) as mad:
        with pytest.raises(Unavailable, match="EVERBUS_MONGO_URL"):
            await mad.create_session(user_id="ada", durability="warm")


async def test_a_warm_reply_waits_for_the_archiver(server):
    """
    It is committed, and told nobody before MongoDB holds it.
    """
    async with serving(server, HeldTiers()) as (_, mad, client):
        with pytest.raises(ReplyTimeout):
            await mad.create_session(
                user_id="ada", session_id="s1", durability="warm", timeout=0.5
            )
        entries = await client.xrange(key_names.outbox(0))

        assert await client.exists(key_names.session(0, "s1"))
        assert b"r" in entries[0][1]
        assert keys.ingress(0, "fiedler").encode() in await client.keys("eb:{0}:in:*")


async def test_no_session_begins_under_an_id_of_the_future(server):
    """
    Such an id would count as new once more when its time has come.
    """
    async with serving(server, HeldTiers()) as (_, mad, _):
        ahead = f"{int((time.time() + 3600) * 1000):012x}"
        session_id = f"{ahead[:8]}-{ahead[8:]}-7abc-8def-0123456789ab"

        with pytest.raises(Invalid, match="Set the clock"):
            await mad.create_session(user_id="ada", session_id=session_id)

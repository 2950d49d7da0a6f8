"""
Every call of the SDK against a real bus: what it gives, and what it refuses.
"""

import asyncio
from collections import defaultdict
from contextlib import AsyncExitStack

import msgspec
import pytest

import everbus as sdk
from everbus.bus import keys
from everbus.bus.messages import command_id, pack, unpack
from everbus.bus.send_queue import MAX_WAITING, MAX_WAITING_BYTES
from everbus.gateway.store import key_names
from everbus.handlers.patches import HOT_BYTES
from tests.builders import an_envelope
from tests.integration.conftest import (
    ON_EACH_SERVER,
    PARTITIONS,
    a_grant,
    a_replica,
    in_order,
    until,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
served = pytest.mark.usefixtures("manager")

KIB = 1024


@served
@ON_EACH_SERVER
async def test_a_session_from_its_creation_to_its_end(mad):
    async with mad("ada") as ada:
        made = await ada.create_session("ada")
        patch = {"context_summary": {"topic": "tides"}}
        changed = await ada.update_session(made.id, patch, expected_version=1)
        joined = await ada.join(made.id, role="host")
        both = await ada.add_participant(made.id, "bob")
        alone = await ada.remove_participant(made.id, "bob")
        nobody = await ada.leave(made.id)
        found = await ada.get_session(made.id)
        await ada.delete_session(made.id, expected_version=6)
        with pytest.raises(sdk.NotFound):
            await ada.get_session(made.id)

    assert (made.version, made.owner_id, made.state) == (1, "ada", "active")
    assert (changed.version, changed.context_summary) == (2, {"topic": "tides"})
    assert joined.participants["ada"]["role"] == "host"
    assert sorted(both.participants) == ["ada", "bob"]
    assert list(alone.participants) == ["ada"]
    assert (nobody.version, nobody.participants) == (6, {})
    assert (found.version, found.acl) == (6, ())


@served
async def test_taking_part_twice_is_the_same_as_once(mad):
    async with mad("ada") as ada:
        session = await ada.create_session("ada")

        once, twice = [await ada.join(session.id) for _ in range(2)]
        left, again = [await ada.leave(session.id) for _ in range(2)]

    assert (once.version, twice.version) == (2, 2)
    assert (left.version, again.version) == (3, 3)


@served
async def test_an_id_of_the_callers_own_is_taken_once(mad, bus):
    chosen = bus.a_session_id(0)
    async with mad("ada") as ada:
        made = await ada.create_session("ada", session_id=chosen)
        with pytest.raises(sdk.AlreadyExists):
            await ada.create_session("ada", session_id=chosen)

    assert made.id == chosen


@served
async def test_a_conflict_tells_the_current_version(mad):
    async with mad("ada") as ada:
        session = await ada.create_session("ada")
        for call in (
            ada.update_session(session.id, {}, expected_version=7),
            ada.delete_session(session.id, expected_version=7),
        ):
            with pytest.raises(sdk.VersionConflict) as refused:
                await call

            assert (refused.value.code, refused.value.current_version) == (
                "version_conflict",
                1,
            )


def has_grant(mad, grant):
    """
    Let what *mad* asks carry *grant*, whatever the managers gave it.
    """
    mad._requests._publisher._credential.grant = grant


# Each call of the SDK on a session, as `(mad, session id)`.
CALLS = {
    "get": lambda m, s: m.get_session(s),
    "update": lambda m, s: m.update_session(s, {"context_summary": {"a": 1}}),
    "delete": lambda m, s: m.delete_session(s),
    "add": lambda m, s: m.add_participant(s, "eve"),
    "remove": lambda m, s: m.remove_participant(s, "eve"),
    "join": lambda m, s: m.join(s),
    "leave": lambda m, s: m.leave(s),
    "append": lambda m, s: m.append_and_wait(s, "hi"),
    "timeline": lambda m, s: m.timeline(s),
}


@served
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_every_call_is_refused_with_the_code_of_its_cause(mad, bus, call):
    async with AsyncExitStack() as stack:
        ada, eve, forger, late = [
            await stack.enter_async_context(mad(name))
            for name in ("ada", "eve", "ada", "ada")
        ]
        has_grant(forger, b"no grant of ours")
        has_grant(late, a_grant("ada", instance=late.instance, ttl_s=-60))
        session = await ada.create_session("ada")

        for one, there, code in (
            (eve, session.id, "forbidden"),
            (forger, session.id, "unauthenticated"),
            (late, session.id, "unauthenticated"),
            (ada, bus.a_session_id(0), "not_found"),
        ):
            with pytest.raises(sdk.EverbusError) as refused:
                await call(one, there)

            assert refused.value.code == code
    assert await bus.state(session.id) == (1, 0)


@served
@pytest.mark.parametrize(
    ("patch", "field"),
    [
        ({"owner_id": "eve"}, "owner_id"),
        ({"version": 9}, "version"),
        ({"last_seq": 9}, "last_seq"),
        ({"surprise": 1}, "surprise"),
        ({"context_summary": "text"}, "context_summary"),
        ({"context_summary": {"n": float("nan")}}, "patch"),
        ({"work_in_progress": {"$set": 1}}, "patch"),
        ({"acl": ["a b"]}, "acl"),
    ],
)
async def test_a_patch_that_cannot_be_names_its_field(mad, bus, patch, field):
    async with mad("ada") as ada:
        session = await ada.create_session("ada")

        with pytest.raises(sdk.Invalid) as refused:
            await ada.update_session(session.id, patch)

    assert refused.value.details["field"] == field
    assert await bus.state(session.id) == (1, 0)


@served
async def test_arguments_that_cannot_be_name_their_field(mad):
    async with mad("ada") as ada:
        session = await ada.create_session("ada")
        for call, field in (
            (lambda: ada.get_session("a b"), "session"),
            (lambda: ada.create_session(""), "user_id"),
            (lambda: ada.add_participant(session.id, ""), "mad"),
            (lambda: ada.timeline(session.id, limit=0), "limit"),
            (lambda: ada.timeline(session.id, after=-1), "after"),
            (lambda: ada.append_and_wait(session.id, {"a.b": 1}), "entry"),
            (lambda: ada.outcome("not-an-id"), "id"),
        ):
            with pytest.raises(sdk.Invalid) as refused:
                await call()

            assert refused.value.details["field"] == field


@served
async def test_what_is_too_large_is_refused_with_its_size(mad, bus):
    state, command = "x" * (50 * KIB), "x" * (256 * KIB)
    async with mad("ada") as ada:
        session = await ada.create_session("ada")
        with pytest.raises(sdk.TooLarge) as hot:
            await ada.update_session(session.id, {"work_in_progress": {"x": state}})
        with pytest.raises(sdk.TooLarge) as waited:
            await ada.append_and_wait(session.id, command)
        with pytest.raises(sdk.TooLarge) as appended:
            ada.append(session.id, command)
        seq = await ada.append_and_wait(session.id, "x" * (250 * KIB))

    assert hot.value.details["size"] > hot.value.details["limit"] == HOT_BYTES
    for refused in (waited, appended):
        assert refused.value.details["size"] > refused.value.details["limit"]
        assert refused.value.details["limit"] == 256 * KIB
    assert seq == 1
    assert await bus.state(session.id) == (1, 1)


@served
@ON_EACH_SERVER
async def test_ten_mads_at_once_get_one_session_of_a_user(mad, token_for, bus):
    user = token_for("cleo", "user")
    async with AsyncExitStack() as stack:
        mads = [
            await stack.enter_async_context(mad(f"m{n}", token=user)) for n in range(10)
        ]

        found = await asyncio.gather(*(m.get_or_create_session("cleo") for m in mads))

    assert len({session.id for session in found}) == 1
    assert await bus.versions(found[0].id) == [1]


@served
async def test_a_timeline_is_paged_in_ascending_seq(mad):
    async with mad("ada") as ada:
        session = await ada.create_session("ada")
        for n in range(1, 13):
            ada.append(session.id, {"n": n})

        first = await ada.timeline(session.id, limit=5)
        second = await ada.timeline(session.id, after=first.next, limit=5)
        third = await ada.timeline(session.id, after=second.next, limit=5)
        newest = await ada.timeline(session.id, after=None, limit=3)
        behind = await ada.timeline(session.id, after=12)

    pages = [[entry.seq for entry in page.entries] for page in (first, second, third)]
    assert pages == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 12]]
    assert (first.next, second.next, third.next) == (5, 10, None)
    assert [entry.seq for entry in newest.entries] == [10, 11, 12]
    assert behind == sdk.TimelinePage((), None)
    last = newest.entries[-1]
    assert (last.author, last.entry) == ("ada", {"n": 12})


@served
async def test_a_session_shows_the_newest_twenty_of_its_timeline(mad):
    """
    What is older is no longer hot: without a warm tier it is refused, not hidden.
    """
    async with mad("ada") as ada:
        session = await ada.create_session("ada")
        for n in range(25):
            ada.append(session.id, n)

        shown = await ada.get_session(session.id)
        with pytest.raises(sdk.Unavailable, match="EVERBUS_MONGO_URL"):
            await ada.timeline(session.id, after=0)

    assert shown.last_seq == 25
    assert [entry.seq for entry in shown.recent_timeline] == list(range(6, 26))
    assert [entry.entry for entry in shown.recent_timeline] == list(range(5, 25))


@served
@ON_EACH_SERVER
async def test_an_outcome_tells_what_became_of_a_command(mad, bus):
    """
    A MAD's own commands only: another one's id is as good as unknown.
    """
    nowhere = bus.a_session_id(0)
    async with mad("ada") as ada, mad("eve") as eve:
        session = await ada.create_session("ada")
        good = ada.append(session.id, "hi")
        bad = ada.append(nowhere, "hi")
        ours = [await ada.outcome(one) for one in (good, bad, "other.0.1")]
        of_others = await eve.outcome(good)

    assert [one.state for one in ours] == ["applied", "rejected", "unknown"]
    assert ours[1].code == "not_found"
    assert of_others.state == "unknown"
    [letter] = [one for one in await bus.letters("ada") if one.envelope.id == bad]
    assert letter.cause == "not_found"


@served
@ON_EACH_SERVER
async def test_one_publisher_s_entries_keep_their_order(mad, bus):
    """
    G8: over several sessions and lanes, each in the order of the calls.
    """
    said = defaultdict(list)
    async with mad("order") as one:
        made = [await one.create_session("order") for _ in range(6)]
        for n in range(2_000):
            session = made[n * n % 6].id
            one.append(session, n)
            said[session].append(n)
            if n % 50 == 0:
                await asyncio.sleep(0)
        await one.flush()
    await bus.until_settled("order")

    for session in said:
        entries = await bus.entries(session)
        assert in_order(entries, "order") == said[session]
        assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))


@served
@pytest.mark.parametrize("kib", [0, 200])
async def test_appends_are_refused_at_the_bound_and_none_is_lost(mad, bus, kib):
    """
    10,000 commands or 32 MiB wait while the bus is away, and arrive in order.
    """
    padding, taken = "x" * (kib * KIB), 0
    async with mad("flood") as flood:
        session = await flood.create_session("flood")
        bus.server.pause()
        try:
            with pytest.raises(sdk.Overloaded) as refused:  # noqa: PT012 - the last
                while True:
                    flood.append(session.id, [taken, padding])
                    taken += 1
            waiting = flood.waiting
        finally:
            bus.server.resume()
        await flood.flush()
        await bus.until_settled("flood")

    bound = MAX_WAITING if not kib else -(-MAX_WAITING_BYTES // (kib * KIB + 500))
    assert waiting == taken == refused.value.details["waiting"]
    assert bound <= taken <= bound + 1
    numbers = [n for n, _ in in_order(await bus.entries(session.id), "flood")]
    assert numbers == list(range(taken))


async def test_a_thousand_requests_wait_on_a_handful_of_connections(unserved, mad):
    async with AsyncExitStack() as stack:
        async with a_replica(unserved.url, "first"):
            await unserved.until_served()
            connecting = mad("busy", url=unserved.url)
            busy = await stack.enter_async_context(connecting)
        session = unserved.a_session_id(0)
        made = asyncio.create_task(busy.create_session("busy", session_id=session))
        asked = [
            asyncio.create_task(busy.append_and_wait(session, n, timeout=30))
            for n in range(999)
        ]
        await asyncio.sleep(0)
        await busy.flush()
        clients = await unserved.client.client_list()
        waiting = [task for task in (made, *asked) if not task.done()]

        async with a_replica(unserved.url, "second"):
            seqs = [await task for task in asked]

    assert len(waiting) == 1_000
    named = [one for one in clients if one["name"].startswith("mad-busy")]
    assert 1 <= len(named) <= len(clients) - 1 <= 8, clients
    assert seqs == list(range(1, 1_000))


@served
@ON_EACH_SERVER
@pytest.mark.parametrize("counted", [False, True], ids=["free id", "counted id"])
async def test_a_command_sent_twice_has_one_effect_and_one_reply(bus, counted):
    """
    G2: the first reply, twice, on the request's own stream and on no other.
    """
    await bus.register("raw")
    session = bus.a_session_id(2)
    grant = a_grant("raw", instance=f"i{session}")
    made = await bus.ask(
        "raw", "session.create", session, body={"user_id": "raw"}, grant=grant
    )
    chosen = command_id(f"i{session}", 2, 1) if counted else f"free-{session}"
    command = an_envelope(
        "timeline.append",
        session=session,
        body={"entry": "once"},
        id=chosen,
        grant=grant,
        reply=True,
    )

    for _ in range(2):
        await bus.publish("raw", 2, command)
    await bus.until_settled("raw")
    await bus.publish("raw", 2, command, command)
    await bus.until_settled("raw")

    first, *more = await bus.replies("raw", 2, chosen)
    assert (made.code, first.code, first.id) == ("ok", "ok", chosen)
    assert msgspec.msgpack.decode(first.body) == {"seq": 1}
    assert [first] * 3 == more
    assert await bus.state(session) == (1, 1)
    streams = await bus.client.keys(f"eb:*:reply:raw:*{chosen}*")
    assert streams == [keys.reply(2, "raw", chosen).encode()]
    assert 0 < await bus.client.pttl(streams[0]) <= 60_000


@served
async def test_a_reply_that_was_read_is_gone_from_the_bus(mad, bus):
    async with mad("reader") as reader:
        session = await reader.create_session("reader")
        for n in range(50):
            await reader.append_and_wait(session.id, n)

        async def none_left():
            return await bus.client.keys("eb:*:reply:reader:*") == []

        await until(none_left, "every reply unlinked")


async def test_a_timeout_carries_the_id_to_ask_with(unserved, mad):
    """
    G6: what came too late was not applied, and its outcome says so.
    """
    async with AsyncExitStack() as stack:
        async with a_replica(unserved.url, "first"):
            await unserved.until_served()
            connecting = mad("late", url=unserved.url)
            late = await stack.enter_async_context(connecting)
        with pytest.raises(sdk.ReplyTimeout, match="outcome") as refused:
            await late.create_session("late", timeout=0.2)
        async with a_replica(unserved.url, "second"):
            told = await late.outcome(refused.value.command_id)

    assert refused.value.code == "timeout"
    assert (told.state, told.code) == ("rejected", "expired")


@served
@pytest.mark.parametrize("timeout", [0.03, 0.3])
async def test_what_was_never_sent_is_never_applied(mad, bus, timeout):
    """
    G6: told as not sent, it must not be applied once the bus is back.
    """
    async with mad("early") as early:
        session = await early.create_session("early")
        bus.server.pause()
        try:
            early.append(session.id, "keeps the publisher busy")
            partition = bus.partition(session.id)
            [busy_with] = early._requests._publisher._queue.queue(partition)

            async def busy():
                return busy_with.attempted

            await until(busy, "the publisher waits for an answer")
            with pytest.raises(sdk.Unavailable, match="not be applied") as refused:
                await early.update_session(session.id, {}, timeout=timeout)
        finally:
            bus.server.resume()
        told = await early.outcome(refused.value.details["command_id"])

    assert (told.state, told.code) == ("rejected", "expired")
    assert await bus.state(session.id) == (1, 1)


async def test_a_bus_without_managers_says_so(unserved, mad):
    with pytest.raises(sdk.Unavailable, match="no manager ever started"):
        await mad("lonely", url=unserved.url, timeout=0.2).__aenter__()


async def test_no_bus_at_all_is_unavailable(unserved, mad):
    await unserved.server.stop()

    with pytest.raises(sdk.Unavailable, match="connection"):
        await mad("lonely", url=unserved.url, timeout=0.2).__aenter__()


@served
async def test_neither_token_nor_grant_lies_in_any_dead_letter(mad, bus, token_for):
    """
    S4: neither of a command that was refused, nor of one that was none, be it of an
    SDK of before there were grants.
    """
    token = token_for("dead")
    async with mad("dead") as dead, mad("dead") as late:
        good, old = dead.grant, a_grant("dead", instance=late.instance, ttl_s=-60)
        has_grant(late, old)
        dead.append(bus.a_session_id(0), "nowhere")
        late.append(bus.a_session_id(1), "too late")
        await asyncio.gather(dead.flush(), late.flush())
    unknown = an_envelope("no.such", session=bus.a_session_id(3))
    bearing = pack(unpack(pack(unknown), dict) | {"token": token})
    await bus.publish("dead", 3, bearing, bearing[:-2])
    await bus.until_settled("dead")

    letters = await bus.letters("dead")
    kept = [
        entry
        for partition in range(PARTITIONS)
        for entry in await bus.client.xrange(key_names.dead(partition))
    ]

    assert sorted(letter.cause for letter in letters) == [
        "not_found",
        "unauthenticated",
        "undecodable",
        "wrong_partition",
    ]
    assert b"eyJ" in bearing
    assert not any(one in pack(kept) for one in (b"eyJ", good, old))

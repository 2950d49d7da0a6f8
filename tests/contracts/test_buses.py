"""
A bus in memory and one of real servers do the same, whatever a MAD asks of them.

Every test here runs over both, so that `TestBus` can promise nothing that the real
stack does not keep, and the other way round.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime

import msgspec
import pytest
import redis.asyncio

import everbus as sdk
from everbus.bus import keys
from everbus.bus.keys import partition_of
from everbus.bus.messages import COMMAND_FIELD, SCHEMA, Envelope, pack, pack_envelope
from everbus.testing import BusUnderTest, RealBus, TestBus
from tests.servers import inherited

LEASE_S = 3.0
# A MAD in a process of its own, which joins a session and is killed then.
GUEST = """
import asyncio, sys, everbus

async def visit(url, token, session_id):
    async with everbus.connect(url, mad="guest", token=token) as mad:
        await mad.join(session_id)
        print("joined", flush=True)
        await asyncio.sleep(60)

asyncio.run(visit(*sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Iterator[RealBus]:
    with RealBus(tmp_path_factory.mktemp("stack"), lease_s=LEASE_S) as bus:
        yield bus


@pytest.fixture(params=["memory", "real"])
def bus(request) -> Iterator[BusUnderTest]:
    if request.param == "real":
        yield request.getfixturevalue("real")
        return
    with TestBus(lease_s=LEASE_S) as memory:
        yield memory


@pytest.fixture
async def ada(bus) -> AsyncIterator[sdk.Mad]:
    async with bus.connect(mad="ada") as mad:
        yield mad


@pytest.fixture
async def session(ada) -> sdk.Session:
    """
    One that is ada's own, at version 1.
    """
    return await ada.create_session("ada")


@asynccontextmanager
async def a_guest(bus: BusUnderTest, session_id: str):
    """
    A process that takes part in the session as `guest`; killed at the end, at last.
    """
    token = bus.token("ada", role="user")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", GUEST, bus.url, token, session_id),
        env=inherited(),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"joined\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def until_event(mad: sdk.Mad, session_id: str, kind: str) -> sdk.SessionEvent:
    """
    The first event of that kind that ever was in the session.
    """
    async with asyncio.timeout(20), aclosing(mad.watch(session_id, after="0")) as told:
        async for event in told:
            if event.kind == kind:
                return event
    raise AssertionError(f"the watch ended without {kind}")


async def told_in(mad: sdk.Mad, session_id: str) -> list:
    """
    The entries of the session, oldest first.
    """
    return [one.entry for one in (await mad.timeline(session_id)).entries]


class TestSessions:
    async def test_live_from_creation_to_deletion(self, ada):
        made = await ada.create_session("ada")
        patch = {"context_summary": {"topic": "tides"}, "tags": ["sea"]}
        changed = await ada.update_session(made.id, patch, expected_version=1)
        read = await ada.get_session(made.id)
        await ada.delete_session(made.id, expected_version=2)

        with pytest.raises(sdk.NotFound):
            await ada.get_session(made.id)
        assert (made.version, made.owner_id, made.state) == (1, "ada", "active")
        assert (changed.version, changed.context_summary) == (2, {"topic": "tides"})
        assert (read.version, read.tags) == (2, ("sea",))

    async def test_refuse_an_update_of_another_version(self, ada, session):
        await ada.update_session(session.id, {"tags": ["a"]}, expected_version=1)

        with pytest.raises(sdk.VersionConflict) as refused:
            await ada.update_session(session.id, {"tags": ["b"]}, expected_version=1)

        assert refused.value.current_version == 2
        assert (await ada.get_session(session.id)).tags == ("a",)

    async def test_refuse_an_id_that_is_taken(self, ada, session):
        with pytest.raises(sdk.AlreadyExists):
            await ada.create_session("ada", session_id=session.id)

    async def test_are_the_same_for_all_who_ask_for_the_one_of_a_user(self, bus):
        async with bus.connect(mad="ada") as ada, bus.connect(mad="ada") as twin:
            both = await asyncio.gather(
                ada.get_or_create_session("ada"), twin.get_or_create_session("ada")
            )

        assert both[0].id == both[1].id

    async def test_know_their_full_context_below_the_hot_tier(self, ada, session):
        await ada.update_session(
            session.id, {"full_context": {"notes": "long"}}, durability="warm"
        )

        whole = await ada.get_session(session.id, full=True)

        assert whole.full_context == {"notes": "long"}

    async def test_sleep_and_come_back(self, ada, session):
        await ada.append_and_wait(session.id, {"text": "before"})
        await ada.suspend_session(session.id)
        asleep = await ada.get_session(session.id)

        await ada.resume_session(session.id)
        awake = await ada.get_session(session.id)
        page = await ada.timeline(session.id)

        assert (asleep.state, awake.state) == ("dormant", "active")
        assert [one.entry for one in page.entries] == [{"text": "before"}]

    async def test_are_found_by_their_owner(self, ada, session):
        await ada.update_session(session.id, {"tags": ["deep"]}, durability="warm")

        page = await ada.list_sessions(owner="ada", tag="deep", limit=1)

        assert session.id in [one.id for one in page.sessions]

    async def test_are_changed_once_under_the_callers_id(self, ada):
        made = [
            await ada.create_session("ada", session_id="own", command_id="make")
            for _ in "12"
        ]
        patch = {"tags": ["a"]}
        changed = [
            await ada.update_session("own", patch, expected_version=1, command_id="tag")
            for _ in "12"
        ]
        for _ in "12":
            await ada.delete_session("own", command_id="end")

        assert [one.version for one in (*made, *changed)] == [1, 1, 2, 2]


class TestParticipants:
    async def test_join_and_leave_once(self, ada, session):
        once = await ada.join(session.id, role="host")
        twice = await ada.join(session.id, role="host")
        left = await ada.leave(session.id)

        assert once.participants["ada"]["role"] == "host"
        assert (once.version, twice.version, left.version) == (2, 2, 3)
        assert left.participants == {}

    async def test_that_are_killed_are_missed(self, bus, ada, session):
        async with a_guest(bus, session.id) as guest:
            guest.kill()
            await guest.wait()
            if isinstance(bus, TestBus):
                bus.advance(LEASE_S + 1)
            lost = await until_event(ada, session.id, "participant.lost")

        assert lost.patch is not None
        assert (await ada.get_session(session.id)).participants == {}

    async def test_that_say_goodbye_are_not_missed(self, bus, ada, session):
        async with bus.connect(mad="guest", user="ada") as guest:
            await guest.join(session.id)
        if isinstance(bus, TestBus):
            bus.advance(LEASE_S + 1)

        assert list((await ada.get_session(session.id)).participants) == ["guest"]


class TestTimelines:
    async def test_are_paged_in_order(self, ada, session):
        for n in range(25):
            ada.append(session.id, {"n": n})
        await ada.flush()

        first = await ada.timeline(session.id, after=0, limit=10)
        second = await ada.timeline(session.id, after=first.next, limit=100)
        newest = await ada.timeline(session.id, newest_first=True, after=None, limit=2)

        told = [one.entry["n"] for one in (*first.entries, *second.entries)]
        assert told == list(range(25))
        assert [one.seq for one in newest.entries] == [25, 24]
        assert {one.author for one in first.entries} == {"ada"}

    async def test_take_a_command_that_comes_twice_once(self, bus, ada, session):
        partition = partition_of(session.id, await partitions_of(bus))
        envelope = Envelope(
            v=SCHEMA,
            id="sent-twice",
            kind="timeline.append",
            session=session.id,
            body=msgspec.Raw(pack({"entry": "once"})),
            grant=ada.grant,
            wake=ada.instance,
        )
        entry = {COMMAND_FIELD: pack_envelope(envelope)}
        async with redis.asyncio.from_url(bus.url) as client:
            for _ in range(2):
                await client.xadd(keys.ingress(partition, "ada"), entry)
        seq = await ada.append_and_wait(session.id, "after it")

        page = await ada.timeline(session.id)

        assert [one.entry for one in page.entries] == ["once", "after it"]
        assert seq == 2

    async def test_take_an_entry_that_expects_their_last_seq(self, ada, session):
        first = await ada.append_and_wait(session.id, "a", expected_last_seq=0)
        second = await ada.append_and_wait(session.id, "b", expected_last_seq=1)

        with pytest.raises(sdk.VersionConflict) as refused:
            await ada.append_and_wait(session.id, "late", expected_last_seq=1)

        assert (first, second) == (1, 2)
        conflict = refused.value
        assert (conflict.current_last_seq, conflict.current_version) == (2, 1)
        assert await told_in(ada, session.id) == ["a", "b"]

    async def test_refuse_what_is_appended_later_at_another_seq(self, ada, session):
        """
        Without a reply: the next flush tells it, and what comes behind is applied.
        """
        ada.append(session.id, "a", expected_last_seq=0)
        late = ada.append(session.id, "late", expected_last_seq=0)
        ada.append(session.id, "b", expected_last_seq=1)

        with pytest.raises(sdk.VersionConflict) as refused:
            await ada.flush(settled=True)

        assert [one["id"] for one in refused.value.details["refused"]] == [late]
        assert (await ada.outcome(late)).code == "version_conflict"
        assert await told_in(ada, session.id) == ["a", "b"]

    async def test_have_one_winner_for_each_seq(self, bus, ada, session):
        """
        Two MADs append to each state of one timeline; the loser knows, nothing is lost.
        """
        await ada.update_session(session.id, {"acl": ["ada", "bo"]})
        async with bus.connect(mad="bo") as bo:
            for seq in range(20):
                told = await asyncio.gather(
                    *(
                        mad.append_and_wait(
                            session.id, f"{mad.name} {seq}", expected_last_seq=seq
                        )
                        for mad in (ada, bo)
                    ),
                    return_exceptions=True,
                )

                lost = [one for one in told if isinstance(one, sdk.VersionConflict)]
                assert [one for one in told if isinstance(one, int)] == [seq + 1]
                assert [one.current_last_seq for one in lost] == [seq + 1]

        entries = await told_in(ada, session.id)
        assert [one.split()[1] for one in entries] == [str(n) for n in range(20)]

    async def test_take_an_entry_under_the_callers_id_once(self, bus, ada, session):
        """
        Also from another instance, and although the condition holds no longer.
        """
        once = {"expected_last_seq": 0, "command_id": f"paid-{session.id}"}
        late = {"expected_last_seq": 0, "command_id": f"late-{session.id}"}
        seqs = [await ada.append_and_wait(session.id, "paid", **once)]
        with pytest.raises(sdk.VersionConflict):
            await ada.append_and_wait(session.id, "late", **late)
        async with bus.connect(mad="ada") as twin:
            seqs += [await twin.append_and_wait(session.id, "paid", **once)]
            await twin.append_and_wait(session.id, "more")
            with pytest.raises(sdk.VersionConflict) as refused:
                await twin.append_and_wait(session.id, "late", **late)
            with pytest.raises(sdk.Invalid, match="used for another command"):
                await twin.append_and_wait(session.id, "other", **once)

        assert seqs == [1, 1]
        assert refused.value.current_last_seq == 1
        assert await told_in(ada, session.id) == ["paid", "more"]

    async def test_are_durable_when_the_warm_tier_has_them(self, ada, session):
        ada.append(session.id, "kept")
        await ada.flush()

        durable = await ada.durable(session.id, wait=True)

        assert (durable.version, durable.seq) == (1, 1)


class TestTurns:
    async def test_are_committed_as_one_version(self, ada, session):
        before = await ada.append_and_wait(session.id, "before")

        taken = await ada.turn(session.id, ["a", {"n": 1}], {"tags": ["sea"]})

        page = await ada.timeline(session.id)
        read = await ada.get_session(session.id)
        assert (before, taken.version, taken.seqs) == (1, 2, (2, 3))
        assert (read.version, read.last_seq, read.tags) == (2, 3, ("sea",))
        assert [one.entry for one in page.entries] == ["before", "a", {"n": 1}]
        turns = ["", taken.turn, taken.turn]
        assert [one.turn for one in page.entries] == turns
        assert [one.turn for one in read.recent_timeline] == turns

    async def test_in_a_block_are_sent_at_its_end_or_never(self, ada, session):
        async def fail() -> None:
            async with ada.turn(session.id, ["never"]) as turn:
                turn.append("said")
                raise KeyError("oh")

        with pytest.raises(KeyError):
            await fail()
        async with ada.turn(session.id, expected_version=1) as turn:
            turn.append("said")
            turn.update({"tags": ["a"]})

        assert turn.committed is not None
        assert turn.committed.seqs == (1,)
        assert await told_in(ada, session.id) == ["said"]

    @pytest.mark.parametrize(
        ("how", "refusal"),
        [
            ({"expected_version": 7}, sdk.VersionConflict),
            ({"expected_last_seq": 7}, sdk.VersionConflict),
            ({"patch": {"owner_id": "eve"}}, sdk.Invalid),
            ({"patch": {"fields": {"a": "x" * 60_000}}}, sdk.TooLarge),
            ({"entries": list(range(257))}, sdk.TooLarge),
            ({"entries": ["x" * 200_000, "x" * 200_000]}, sdk.TooLarge),
        ],
        ids=["version", "seq", "patch", "state", "entries", "bytes"],
    )
    async def test_that_are_refused_leave_nothing(self, ada, session, how, refusal):
        with pytest.raises(refusal):
            await ada.turn(session.id, **{"entries": ["a", "b"]} | how)

        read = await ada.get_session(session.id)
        assert (read.version, read.last_seq, read.tags) == (1, 0, ())

    async def test_of_many_mads_have_one_winner_for_each_version(
        self, bus, ada, session
    ):
        """
        No turn of one lies within another's, and the loser knows.
        """
        await ada.update_session(session.id, {"acl": ["ada", "bo"]})
        async with bus.connect(mad="bo") as bo:
            for version in range(2, 12):
                told = await asyncio.gather(
                    *(
                        mad.turn(
                            session.id,
                            [f"{mad.name} {n}" for n in range(3)],
                            {"fields": {"last": mad.name}},
                            expected_version=version,
                        )
                        for mad in (ada, bo)
                    ),
                    return_exceptions=True,
                )

                lost = [one for one in told if isinstance(one, sdk.VersionConflict)]
                won = [one for one in told if isinstance(one, sdk.CommittedTurn)]
                assert [one.version for one in won] == [version + 1]
                assert [one.current_version for one in lost] == [version + 1]

        entries = (await ada.timeline(session.id)).entries
        for first in range(0, 30, 3):
            one = entries[first : first + 3]
            assert len({(e.author, e.turn) for e in one}) == 1
            assert [e.entry for e in one] == [f"{one[0].author} {n}" for n in range(3)]

    async def test_are_taken_once_under_the_callers_id(self, bus, ada, session):
        once = {"command_id": f"paid-{session.id}", "expected_version": 1}
        first = await ada.turn(session.id, ["a", "b"], {"tags": ["a"]}, **once)
        async with bus.connect(mad="ada") as twin:
            again = await twin.turn(session.id, ["a", "b"], {"tags": ["a"]}, **once)
            with pytest.raises(sdk.Invalid, match="used for another command"):
                await twin.turn(session.id, ["a"], {"tags": ["a"]}, **once)

        assert again == first
        assert first.turn == once["command_id"]
        assert await told_in(ada, session.id) == ["a", "b"]

    async def test_carry_an_id_of_the_callers_own(self, ada, session):
        taken = await ada.turn(session.id, ["a"], turn_id="run-7")

        [entry] = (await ada.timeline(session.id)).entries
        assert (taken.turn, entry.turn) == ("run-7", "run-7")

    async def test_wake_a_session_in_their_one_step(self, ada, session):
        await ada.suspend_session(session.id)

        taken = await ada.turn(session.id, ["a"], expected_version=2)

        assert taken.version == 3
        assert (await ada.get_session(session.id)).state == "active"

    async def test_are_watched_as_a_whole(self, bus, ada, session):
        """
        From the bus and from MongoDB alike: the entries, and behind them the end.
        """
        taken = await ada.turn(
            session.id, ["a", "b"], {"tags": ["a"]}, turn_id="run-7", durability="warm"
        )
        await ada.append_and_wait(session.id, "after", durability="warm")
        for _ in "12":
            heard = []
            async with asyncio.timeout(20):
                async with aclosing(ada.watch(session.id, after="0")) as told:
                    async for event in told:
                        heard.append(event)
                        if event.entry == "after":
                            break
            kinds = [(one.kind, one.version, one.seq, one.turn) for one in heard]
            assert kinds == [
                ("session.created", 1, 0, ""),
                ("timeline.appended", 1, 1, "run-7"),
                ("timeline.appended", 1, 2, "run-7"),
                ("session.turned", 2, 2, "run-7"),
                ("timeline.appended", 2, 3, ""),
            ]
            assert heard[3].patch == {"tags": ["a"]}
            # It leaves the hot tier: the second watch reads it from below.
            await ada.suspend_session(session.id, durability="warm")
        assert taken.version == 2

    async def test_are_in_the_history(self, ada, session):
        await ada.turn(session.id, ["a"], {"tags": ["a"]}, durability="warm")
        await ada.turn(session.id, ["b", "c"], durability="warm")

        past = await ada.session_at(session.id, 2)
        difference = await ada.diff(session.id, 1, 3)

        assert (past.tags, past.last_seq) == (("a",), 1)
        steps = [(one.kind, one.version, one.seq) for one in difference.changes]
        assert steps == [("session.turned", 2, 1), ("session.turned", 3, 3)]

    async def test_are_refused_to_strangers(self, bus, ada, session):
        async with bus.connect(mad="eve") as eve:
            with pytest.raises(sdk.Forbidden):
                await eve.turn(session.id, ["a"])
        async with bus.connect(mad="eve", user="ada", tenant="other") as eve:
            with pytest.raises(sdk.NotFound):
                await eve.turn(session.id, ["a"])
        await ada.update_session(session.id, {"acl": ["ada", "bo"]})
        async with bus.connect(mad="bo") as bo:
            assert (await bo.turn(session.id, ["a"])).seqs == (1,)
            with pytest.raises(sdk.Forbidden, match="acl"):
                await bo.turn(session.id, ["b"], {"acl": ["bo"]})

        assert await told_in(ada, session.id) == ["a"]


class TestHistories:
    async def test_know_each_version_and_its_change(self, ada, session):
        await ada.update_session(session.id, {"tags": ["a"]})
        await ada.update_session(session.id, {"tags": ["b"]})

        past = await ada.session_at(session.id, 2)
        difference = await ada.diff(session.id, 1, 3)

        assert (past.version, past.tags) == (2, ("a",))
        assert [step.version for step in difference.changes] == [2, 3]
        with pytest.raises(sdk.NotFound):
            await ada.session_at(session.id, 9)

    async def test_go_back_to_a_checkpoint(self, ada, session):
        await ada.update_session(session.id, {"tags": ["kept"]})
        made = await ada.create_checkpoint(session.id, name="before")
        await ada.update_session(session.id, {"tags": ["lost"]})

        listed = await ada.checkpoints(session.id)
        restored = await ada.restore_checkpoint(session.id, made.id)

        assert [one.name for one in listed.checkpoints] == ["before"]
        assert (restored.version, restored.tags) == (4, ("kept",))

    async def test_keep_the_checkpoints_of_two_mads_under_one_id_apart(
        self, bus, ada, session
    ):
        """
        A repetition is the same checkpoint; another MAD's is another one.
        """
        once = {"command_id": f"nightly-{session.id}"}
        await ada.update_session(session.id, {"tags": ["ada"], "acl": ["ada", "bo"]})
        mine = [
            await ada.create_checkpoint(session.id, name="ada's", **once) for _ in "12"
        ]
        async with bus.connect(mad="bo") as bo:
            await bo.update_session(session.id, {"tags": ["bo"]})
            other = await bo.create_checkpoint(session.id, name="bo's", **once)
            with pytest.raises(sdk.Invalid, match="used for another command"):
                await bo.create_checkpoint(session.id, name="else", **once)

        listed = (await ada.checkpoints(session.id)).checkpoints
        assert mine[0] == mine[1]
        assert [(one.name, one.author) for one in listed] == [
            ("bo's", "bo"),
            ("ada's", "ada"),
        ]
        assert [one.id for one in listed] == [other.id, mine[0].id]
        for made, tags in ((mine[0], ("ada",)), (other, ("bo",))):
            restored = await ada.restore_checkpoint(session.id, made.id)
            assert restored.tags == tags

    async def test_of_two_mads_under_one_id_never_mix(self, bus, ada, session):
        """
        Whatever they write: the id is each MAD's own.
        """
        await ada.update_session(session.id, {"acl": ["ada", "bo"]})
        once = {"command_id": f"same-{session.id}"}
        async with bus.connect(mad="bo") as bo:
            for mad in (ada, bo, ada, bo):
                await mad.turn(
                    session.id, [mad.name], {"fields": {mad.name: 1}}, **once
                )

        page = await ada.timeline(session.id)
        read = await ada.get_session(session.id)
        assert [(one.author, one.entry) for one in page.entries] == [
            ("ada", "ada"),
            ("bo", "bo"),
        ]
        assert read.fields == {"ada": 1, "bo": 1}


class TestWatching:
    async def test_hears_all_in_order(self, bus, ada, session):
        async with bus.connect(mad="bob", user="ada") as bob:
            await bob.join(session.id)
            bob.append(session.id, "hello")
            await bob.broadcast(session.id, {"typing": True})

        heard: list[sdk.SessionEvent] = []
        async with asyncio.timeout(20):
            async for event in ada.watch(session.id, after="0"):
                heard.append(event)
                if event.kind == "session.broadcast":
                    await ada.delete_session(session.id)

        assert [event.kind for event in heard] == [
            "session.created",
            "participant.added",
            "timeline.appended",
            "session.broadcast",
            "session.deleted",
        ]
        assert heard[3].message == {"typing": True}

    async def test_hears_what_happens_while_it_watches(self, ada, session):
        async with asyncio.timeout(20), aclosing(ada.watch(session.id)) as told:
            first = asyncio.ensure_future(anext(told))
            await asyncio.sleep(0)
            while not first.done():
                ada.append(session.id, "now")
                await asyncio.wait({first}, timeout=0.2)

        assert (await first).kind == "timeline.appended"


class TestRefusals:
    @pytest.mark.parametrize(
        ("patch", "field"),
        [({"owner": "x"}, "owner"), ({"tags": "no list"}, "tags")],
        ids=["unknown_field", "wrong_type"],
    )
    async def test_of_a_bad_patch_name_its_field(self, ada, session, patch, field):
        with pytest.raises(sdk.Invalid) as refused:
            await ada.update_session(session.id, patch)

        assert refused.value.details["field"] == field

    async def test_of_a_session_that_is_not_there(self, ada):
        with pytest.raises(sdk.NotFound):
            await ada.update_session("01a2224e-3a56-772c-b362-d0a4c3077736", {})

    async def test_of_what_is_too_large_name_the_limit(self, ada, session):
        with pytest.raises(sdk.TooLarge) as refused:
            await ada.append_and_wait(session.id, "x" * 300_000)

        assert refused.value.details["limit"] < 300_000

    async def test_of_a_stranger(self, bus, session):
        async with bus.connect(mad="eve") as eve:
            with pytest.raises(sdk.Forbidden):
                await eve.get_session(session.id)

    async def test_of_another_tenant_say_that_there_is_nothing(self, bus, session):
        async with bus.connect(mad="eve", user="ada", tenant="other") as eve:
            with pytest.raises(sdk.NotFound):
                await eve.get_session(session.id)

    async def test_of_a_token_that_is_none(self, bus):
        with pytest.raises(sdk.Unauthenticated):
            async with bus.connect(mad="ada", token="no.good.token"):
                raise AssertionError("it was let in")

    async def test_of_a_command_past_its_deadline(self, bus, ada, session):
        partition = partition_of(session.id, await partitions_of(bus))
        envelope = Envelope(
            v=SCHEMA,
            id=f"{ada.instance}.{partition}.1000",
            kind="session.update",
            session=session.id,
            body=msgspec.Raw(pack({"patch": {"tags": ["late"]}})),
            grant=ada.grant,
            deadline_ms=0,
        )
        async with redis.asyncio.from_url(bus.url) as client:
            entry = {COMMAND_FIELD: pack_envelope(envelope)}
            await client.xadd(keys.ingress(partition, "ada"), entry)

        assert (await ada.get_session(session.id)).version == 1
        assert (await ada.outcome(envelope.id)).state == "rejected"


class TestOutcomes:
    async def test_tell_what_became_of_a_command(self, ada, session):
        done = ada.append(session.id, "done")
        await ada.flush()
        await ada.get_session(session.id)
        instance, partition, _ = done.split(".")

        assert (await ada.outcome(done)).state == "applied"
        assert (await ada.cancel(done)).state == "applied"
        never = f"{instance}.{partition}.999"
        assert (await ada.outcome(never)).state == "unknown"

    async def test_come_on_the_servers_clock(self, ada, session):
        page_before = datetime.now(UTC)
        await ada.append_and_wait(session.id, "now")

        [entry] = (await ada.timeline(session.id)).entries

        assert abs((entry.at - page_before).total_seconds()) < 60


class TestSharing:
    async def test_a_member_lets_nobody_in(self, bus, ada, session):
        await ada.update_session(session.id, {"acl": ["user:bo"]})
        async with (
            bus.connect(mad="bos", user="bo") as bo,
            bus.connect(mad="eve") as eve,
            bus.connect(mad="eves", user="eve") as user_eve,
        ):
            await bo.get_session(session.id)
            with pytest.raises(sdk.Forbidden, match="eve is not in the acl"):
                await bo.add_participant(session.id, "eve")
            await bo.join(session.id)

            for stranger in (eve, user_eve):
                with pytest.raises(sdk.Forbidden):
                    await stranger.get_session(session.id)

    async def test_a_participant_is_let_in_until_it_is_removed(self, bus, ada, session):
        """
        The MAD alone, no user of its name; and no longer than it is a participant.
        """
        await ada.add_participant(session.id, "eve", durability="warm")
        async with (
            bus.connect(mad="eve") as eve,
            bus.connect(mad="eves", user="eve") as user_eve,
            asyncio.timeout(20),
        ):
            assert (await eve.get_session(session.id)).acl == ("participant:eve",)
            listed = (await eve.list_sessions(owner="ada")).sessions
            with pytest.raises(sdk.Forbidden):
                await user_eve.get_session(session.id)
            async with aclosing(eve.watch(session.id, after="0")) as told:
                heard = [(await anext(told)).kind for _ in range(2)]
                await ada.remove_participant(session.id, "eve")
                ada.append(session.id, "secret")
                with pytest.raises(sdk.Forbidden):
                    await anext(told)
            with pytest.raises(sdk.Forbidden):
                await eve.timeline(session.id)

        assert heard == ["session.created", "participant.added"]
        assert session.id in {one.id for one in listed}

    async def test_a_mad_brings_others_into_the_session_that_it_made(self, bus, ada):
        """
        For its user, who owns it; and those whom it brings bring nobody.
        """
        made = await ada.create_session("user-7")
        joined = await ada.add_participant(made.id, "bo")
        async with bus.connect(mad="bo") as bo:
            await bo.get_session(made.id)
            with pytest.raises(sdk.Forbidden):
                await bo.add_participant(made.id, "eve")
        with pytest.raises(sdk.Forbidden, match="acl"):
            await ada.update_session(made.id, {"acl": ["mad:eve"]})

        assert (made.acl, joined.acl) == (
            ("host:ada",),
            ("host:ada", "participant:bo"),
        )

    async def test_a_mad_and_a_user_of_one_name_have_entries_of_their_own(
        self, bus, ada, session
    ):
        async with (
            bus.connect(mad="bo") as mad,
            bus.connect(mad="bos", user="bo") as user,
            bus.connect(mad="trick", user="mad:bo") as named_like_an_entry,
        ):
            both = {"mad:bo": (mad, user), "user:bo": (user, mad)}
            for entry, (admitted, refused) in both.items():
                await ada.update_session(session.id, {"acl": [entry]})

                await admitted.get_session(session.id)
                for one in (refused, named_like_an_entry):
                    with pytest.raises(sdk.Forbidden):
                        await one.get_session(session.id)
            await ada.update_session(session.id, {"acl": ["bo"]})
            for one in (mad, user):
                await one.get_session(session.id)


def test_the_blocking_sdk_works_as_well(bus):
    with bus.connect_sync(mad="ada") as ada:
        session = ada.create_session("ada")
        changed = ada.update_session(session.id, {"tags": ["blocking"]})
        taken = ada.turn(session.id, ["a", "b"], expected_version=2)

    assert (changed.version, changed.tags) == (2, ("blocking",))
    assert (taken.version, taken.seqs) == (3, (1, 2))


def test_the_environment_names_the_bus_and_the_mad(bus, monkeypatch):
    for name, value in bus.environment("ada").items():
        monkeypatch.setenv(name, value)

    async def as_deployed() -> str:
        async with sdk.connect() as mad:
            return (await mad.create_session("ada")).owner_id

    assert asyncio.run(as_deployed()) == "ada"


async def partitions_of(bus: BusUnderTest) -> int:
    async with redis.asyncio.from_url(bus.url) as client:
        return int(await client.hget(keys.CONFIG, "partitions"))

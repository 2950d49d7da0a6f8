"""
What a bus in memory does on demand: faults, time, deaths.
"""

import asyncio
import threading

import msgspec
import pytest
import structlog

import everbus as sdk
from everbus.compose.testing.bus import bus_time
from everbus.gateway.presence.lane import PresenceLane
from everbus.testing import TestBus

SHORT_S = 0.3
# Long enough for the SDK to look for the reply on its stream, twice.
SWEPT_S = 1.5


class TypedFields(msgspec.Struct):
    """
    What an application keeps in `fields`.
    """

    mood: str = ""


@pytest.fixture
def bus():
    with TestBus() as running:
        yield running


@pytest.fixture
async def mad(bus):
    async with bus.connect(mad="ada") as connected:
        yield connected


@pytest.fixture
async def session(mad):
    return await mad.create_session("ada")


class TestFaults:
    @pytest.mark.parametrize(
        ("code", "error"),
        [
            ("unavailable", sdk.Unavailable),
            ("overloaded", sdk.Overloaded),
            ("forbidden", sdk.Forbidden),
            ("superseded", sdk.Superseded),
            ("defect", sdk.Defect),
        ],
    )
    async def test_a_request_fails_with_the_wanted_code_once(
        self, bus, mad, session, code, error
    ):
        bus.fail_next(code)

        with pytest.raises(error):
            await mad.update_session(session.id, {"tags": ["a"]})
        changed = await mad.update_session(session.id, {"tags": ["b"]})

        assert (changed.version, changed.tags) == (2, ("b",))

    async def test_details_are_those_of_the_error(self, bus, mad, session):
        bus.fail_next("version_conflict", current_version=7)

        with pytest.raises(sdk.VersionConflict) as refused:
            await mad.update_session(session.id, {}, expected_version=1)

        assert refused.value.current_version == 7

    async def test_only_the_wanted_kind_and_mad_are_struck(self, bus, mad, session):
        bus.fail_next("defect", kind="session.update", mad="bob")
        bus.fail_next("defect", kind="session.delete")

        assert (await mad.update_session(session.id, {"tags": ["a"]})).version == 2

    async def test_as_many_requests_fail_as_wanted(self, bus, mad, session):
        bus.fail_next("overloaded", times=2)

        for _ in range(2):
            with pytest.raises(sdk.Overloaded):
                await mad.get_session(session.id)
        assert (await mad.get_session(session.id)).version == 1

    async def test_a_timeout_leaves_the_outcome_to_be_asked(self, bus, mad, session):
        told = []
        for applied in (True, False):
            bus.fail_next("timeout", applied=applied)
            with pytest.raises(sdk.ReplyTimeout) as lost:
                await mad.update_session(session.id, {"tags": [str(applied)]})
            told.append((await mad.outcome(lost.value.command_id)).state)

        assert told == ["applied", "unknown"]
        assert (await mad.get_session(session.id)).tags == ("True",)

    async def test_a_lost_reply_is_waited_for(self, bus, mad, session):
        bus.lose_reply(kind="session.update")

        with pytest.raises(sdk.ReplyTimeout) as lost:
            await mad.update_session(session.id, {"tags": ["a"]}, timeout=SWEPT_S)

        assert (await mad.outcome(lost.value.command_id)).state == "applied"

    async def test_a_write_under_an_own_id_is_repeated_after_a_lost_reply(
        self, bus, mad, session
    ):
        bus.lose_reply(kind="timeline.append")

        with pytest.raises(sdk.ReplyTimeout, match="repeat it under 'order-7'"):
            await mad.append_and_wait(session.id, 1, command_id="order-7", timeout=1.5)
        seq = await mad.append_and_wait(session.id, 1, command_id="order-7")

        assert (seq, (await mad.get_session(session.id)).last_seq) == (1, 1)

    async def test_a_lost_command_never_arrives(self, bus, mad, session):
        bus.lose_command(kind="session.update")

        with pytest.raises(sdk.ReplyTimeout) as lost:
            await mad.update_session(session.id, {"tags": ["a"]}, timeout=SHORT_S)

        assert (await mad.outcome(lost.value.command_id)).state == "unknown"
        assert (await mad.get_session(session.id)).version == 1

    def test_a_code_or_a_kind_that_is_none_is_refused(self, bus):
        with pytest.raises(sdk.Invalid, match="version_conflict"):
            bus.fail_next("version-conflict")
        with pytest.raises(sdk.Invalid, match=r"session\.update"):
            bus.fail_next("timeout", kind="session.updated")

    async def test_it_can_be_told_how_many_are_left(self, bus, mad, session):
        bus.fail_next("overloaded", times=2)
        with pytest.raises(sdk.Overloaded):
            await mad.get_session(session.id)

        assert bus.faults_left == 1

    async def test_an_outage_is_met_and_survived(self, bus, mad, session):
        with bus.outage(), pytest.raises(sdk.Unavailable):
            await mad.get_session(session.id, timeout=SHORT_S)

        assert (await mad.get_session(session.id)).version == 1


class TestTime:
    async def test_who_is_connected_stays_alive(self, bus, mad, session):
        await mad.join(session.id)

        for _ in range(3):
            bus.advance(bus.lease_s + 1)

        assert list((await mad.get_session(session.id)).participants) == ["ada"]
        assert mad.losses == 0

    async def test_who_is_connected_outlives_a_sweep_before_its_next_heartbeat_is_read(
        self, bus, mad, session, monkeypatch
    ):
        """
        The skip comes between the lane's reading of heartbeats and its sweep.
        """
        read, forced = PresenceLane._read_heartbeats, []
        waits_for_skip = threading.Event()

        async def read_before_the_skip(lane):
            more, before = await read(lane), bus_time._skipped.seconds
            waits_for_skip.set()
            while not forced and bus_time._skipped.seconds == before:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            forced.append(lane)
            lane._sweep_at = 0.0
            return more

        await mad.join(session.id)
        monkeypatch.setattr(PresenceLane, "_read_heartbeats", read_before_the_skip)
        assert await asyncio.to_thread(waits_for_skip.wait, 10)

        bus.advance(bus.lease_s + 1)

        assert forced
        assert list((await mad.get_session(session.id)).participants) == ["ada"]
        assert mad.losses == 0

    async def test_who_is_silent_is_lost_and_refused(self, bus, mad, session):
        lost = asyncio.Event()
        async with bus.connect(
            mad="bob", user="ada", on_lost=lambda _: lost.set()
        ) as bob:
            await bob.join(session.id)
            bus.silence("bob")
            bus.advance(bus.lease_s + 1)
            bus.unsilence("bob")

            async with asyncio.timeout(5):
                await lost.wait()
            assert bob.losses == 1
            assert (await mad.get_session(session.id)).participants == {}

    async def test_a_lease_that_is_not_over_is_kept(self, bus, mad, session):
        async with bus.connect(mad="bob", user="ada") as bob:
            await bob.join(session.id)
            bus.silence("bob")
            bus.advance(bus.lease_s - 5)

            assert list((await mad.get_session(session.id)).participants) == ["bob"]

    async def test_another_bus_keeps_its_own_time(self, bus):
        with TestBus() as other:
            other.advance(3600)
            async with bus.connect(mad="a") as a, other.connect(mad="b") as b:
                early, late = await a.create_session("a"), await b.create_session("b")

        assert 3590 < (late.created_at - early.created_at).total_seconds() < 3660

    def test_time_does_not_run_backwards(self, bus):
        with pytest.raises(sdk.Invalid):
            bus.advance(-1)


class TestReplicas:
    async def test_one_that_dies_leaves_its_lanes_to_another(self):
        with TestBus(replicas=2) as bus:
            async with bus.connect(mad="ada") as mad:
                session = await mad.create_session("ada")
                dead = bus.kill_replica()
                bus.advance(6)

                changed = await mad.update_session(session.id, {"tags": ["on"]})

                assert changed.version == 2
                assert dead not in bus.replicas

    async def test_one_that_comes_back_has_its_lanes_at_once(self, bus, mad, session):
        bus.start_replica(bus.kill_replica())

        assert (await mad.update_session(session.id, {"tags": ["on"]})).version == 2

    def test_what_is_not_there_cannot_be_killed(self, bus):
        with pytest.raises(sdk.Invalid, match="replica-1"):
            bus.kill_replica("nobody")
        with pytest.raises(sdk.Invalid):
            bus.start_replica("replica-1")


async def test_a_session_comes_back_from_the_cold_tier(bus, mad, session):
    await mad.append_and_wait(session.id, "kept")
    await mad.suspend_session(session.id)

    report = bus.archive()
    page = await mad.timeline(session.id)

    assert (report.archived, [one.entry for one in page.entries]) == (1, ["kept"])


async def test_settings_are_those_of_the_managers():
    typed = {"EVERBUS_SESSION_FIELDS": f"{__name__}:TypedFields"}
    with TestBus(settings=typed) as bus:
        async with bus.connect(mad="ada") as mad:
            session = await mad.create_session("ada")
            await mad.update_session(session.id, {"fields": {"mood": "calm"}})

            with pytest.raises(sdk.Invalid):
                await mad.update_session(session.id, {"fields": {"mood": 1}})


def test_outside_its_block_a_bus_says_so():
    bus = TestBus()

    with pytest.raises(sdk.Invalid, match="block"):
        bus.advance(1)


def test_nothing_is_left_running():
    before = threading.active_count()

    for _ in range(3):
        with TestBus():
            pass

    assert threading.active_count() == before


@pytest.mark.parametrize("logs", [True, False])
def test_only_errors_are_logged_unless_wanted(logs, capsys):
    with TestBus(logs=logs):
        structlog.get_logger().info("told")

    assert ("told" in capsys.readouterr().out) == logs
    assert not structlog.is_configured()

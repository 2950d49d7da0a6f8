"""
Heartbeats: when each is due, and what follows when one does not get through.
"""

import threading
import time
from types import SimpleNamespace

import pytest
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,
    NoPermissionError,
    OutOfMemoryError,
)
from structlog.testing import capture_logs

from everbus.bus import blocking_wire, heartbeat
from everbus.bus.heartbeat import MAX_BACKOFF_S, HeartbeatThread
from everbus.bus.lease import Lease
from everbus.bus.messages import unpack, unpack_envelope

TTL_S = 30.0


class FakeBus:
    """
    Answers like a server, or as it is told to.

    Attributes:
        trouble: raised by each command, if any.
        dies: whether each connection ends with the command that it is used for.
    """

    def __init__(self):
        self.trouble = None
        self.lease_ms = b"30000"
        self.streams = []
        self.beats = []
        self.connections = 0
        self.closed = 0
        self.blocked = threading.Event()
        self.blocked.set()
        self.mads = {"ada"}
        self.news = []
        self.refusal = None

    def register(self, command):
        if self.refusal is not None:
            raise self.refusal
        if command[0] == "PUBLISH":
            return self.news.append(command[1:])
        new = command[2] not in self.mads
        self.mads.add(command[2])
        return int(new)

    def from_url(self, url, **options):
        assert 0 < options["socket_timeout"] <= 3
        assert 0 < options["socket_connect_timeout"] <= 3
        return SimpleNamespace(make_connection=lambda: FakeConnection(self))

    def answer(self, command):
        if self.trouble is not None:
            raise self.trouble
        self.blocked.wait(10)
        if command[0] == "HMGET":
            return [self.lease_ms]
        if command[0] in ("HSETNX", "PUBLISH"):
            return self.register(command)
        self.streams.append(command[1])
        envelope = unpack_envelope(command[-1])
        self.beats.append((envelope.kind, unpack(envelope.body, dict)["epoch"]))
        return b"1-1"


class FakeConnection:
    def __init__(self, bus):
        self.bus = bus
        self.alive = True

    def connect(self):
        if self.bus.trouble is not None:
            raise self.bus.trouble
        self.bus.connections += 1

    def send_command(self, *command, check_health):
        self.command = command

    def read_response(self):
        return self.bus.answer(self.command)

    def disconnect(self):
        self.bus.closed += 1


@pytest.fixture
def bus(monkeypatch):
    fake = FakeBus()
    monkeypatch.setattr(blocking_wire, "ConnectionPool", fake)
    return fake


@pytest.fixture
def lease(clock):
    return Lease("i", TTL_S, clock=clock)


@pytest.fixture
def told():
    return []


@pytest.fixture
def heart(bus, lease, told):
    return HeartbeatThread("redis://bus", "ada", lease, on_lost=told.append)


def test_the_first_one_joins_and_the_next_is_due_after_a_third(heart, bus):
    waits = [heart._beat() for _ in range(3)]

    assert bus.beats == [("instance.join", 1), *[("instance.beat", 1)] * 2]
    assert set(bus.streams) == {"eb:{mads}:in:ada"}
    assert waits == [TTL_S / 3] * 3
    assert bus.connections == 1


def test_a_mad_that_the_bus_has_forgotten_is_entered_again(heart, bus):
    """
    The list went with the bus's memory, and no manager lived that knew it.
    """
    heart._beat()
    bus.mads.clear()
    assert bus.news == []

    heart._beat()

    assert bus.mads == {"ada"}
    assert bus.news == [("eb:news", "mads")]


def test_where_operators_enter_mads_no_mad_tries_twice(heart, bus):
    bus.refusal = NoPermissionError("no permissions to run the 'hsetnx' command")
    heart._beat()
    bus.refusal = None
    bus.mads.clear()
    heart._beat()

    assert bus.mads == set()
    assert [kind for kind, _ in bus.beats] == ["instance.join", "instance.beat"]
    assert bus.connections == 1


@pytest.mark.parametrize(
    "refusal", [OutOfMemoryError("full"), ConnectionError("the list's node is away")]
)
def test_a_heartbeat_counts_although_its_mad_cannot_be_entered(
    heart, bus, lease, told, refusal
):
    heart._beat()
    lease.declare_lost(1)
    bus.mads.clear()
    bus.refusal = refusal

    waits = [heart._beat(), heart._beat()]
    bus.refusal = None
    heart._beat()

    assert waits == [TTL_S / 3] * 2
    assert bus.beats[1:] == [("instance.join", 2), *[("instance.beat", 2)] * 2]
    assert told == [1]
    assert bus.mads == {"ada"}


def test_each_epoch_begins_with_a_join_and_its_predecessor_is_told_then(
    heart, bus, lease, told
):
    heart._beat()
    lease.declare_lost(1)
    assert told == []

    heart._beat()
    heart._beat()

    assert bus.beats[1:] == [("instance.join", 2), ("instance.beat", 2)]
    assert told == [1]


def test_a_join_that_was_not_acknowledged_is_repeated(heart, bus):
    """
    The managers may not know of the instance: a beat alone would be a riddle.
    """
    bus.trouble = ConnectionError("gone")
    heart._beat()
    bus.trouble = None

    heart._beat()

    assert bus.beats == [("instance.join", 1)]


def test_in_an_outage_the_waits_grow_and_stay_well_below_the_ttl(heart, bus):
    bus.trouble = ConnectionError("gone")

    with capture_logs() as logs:
        waits = [heart._beat() for _ in range(200)]
        bus.trouble = None
        heart._beat()

    assert waits[0] <= 0.1
    assert 1 < max(waits) <= 3
    assert len(set(waits)) == 200, "no two instances come back in step"
    assert bus.closed == 200
    assert [(line["log_level"], line["event"]) for line in logs] == [
        ("warning", "heartbeats.delayed"),
        ("info", "heartbeats.resumed"),
    ]


def test_three_tries_begin_within_the_shortest_lease(heart, lease, bus):
    """
    With one that fails after its whole deadline, the instance is not lost by it.
    """
    lease.ttl_s = 1.0
    bus.trouble = ConnectionError("gone")

    waits = [heart._beat() for _ in range(50)]

    assert 1 / 3 + 2 * (1 / 6 + max(waits)) < 1


@pytest.mark.parametrize("error", [NoPermissionError("no"), AuthenticationError("no")])
def test_who_is_refused_says_so_once_and_tries_on(heart, bus, error):
    if isinstance(error, NoPermissionError):
        error.status_code = "NOPERM"
    bus.trouble = error

    with capture_logs() as logs:
        waits = [heart._beat() for _ in range(5)]
        bus.trouble = None
        heart._beat()

    assert max(waits) <= 1.5 * MAX_BACKOFF_S
    assert [(line["log_level"], line["event"]) for line in logs] == [
        ("error", "heartbeats.refused"),
        ("info", "heartbeats.resumed"),
    ]


def test_a_fault_of_ours_does_not_stop_the_heart(heart, bus):
    bus.trouble = ZeroDivisionError("ours")

    with capture_logs() as logs:
        heart._beat()
        bus.trouble = None
        heart._beat()

    assert logs[0]["exc_info"] is not None
    assert bus.beats == [("instance.join", 1)]


def test_each_join_asks_how_long_leases_are(heart, bus, lease):
    """
    Who joined before an operator shortened them is lost by it once, not for ever.
    """
    heart._beat()
    bus.lease_ms = b"6000"
    assert heart._beat() == TTL_S / 3

    lease.declare_lost(1)

    assert heart._beat() == 2.0
    assert lease.ttl_s == 6.0


def test_a_bus_that_does_not_tell_leaves_the_ttl_as_it_is(heart, bus, lease):
    bus.lease_ms = None

    heart._beat()

    assert lease.ttl_s == TTL_S


def test_the_first_try_is_told_once_whatever_came_of_it(bus, lease):
    tries = []
    heart = HeartbeatThread(
        "redis://bus", "ada", lease, on_tried=lambda: tries.append(1)
    )
    bus.trouble = ConnectionError("gone")

    heart._beat()
    heart._beat()

    assert tries == [1]


def test_a_close_gives_the_lease_up(heart, bus):
    heart.start()
    _until(lambda: bus.beats)

    heart.close()

    assert bus.beats == [("instance.join", 1), ("instance.leave", 1)]
    assert not heart._thread.is_alive()


def test_a_close_before_the_first_beat_says_nothing(heart, bus):
    heart._closing.set()
    heart.start()

    heart.close()

    assert bus.beats == []


class ClosedMeanwhile(threading.Event):
    """
    News of a heart that is closed just before they are cleared.
    """

    def __init__(self):
        super().__init__()
        self.closing = None

    def clear(self):
        self.closing.set()
        self.set()
        super().clear()


def test_a_close_in_between_is_not_overlooked(bus, lease):
    """
    Else it would wait for the next heartbeat, up to a third of the TTL.
    """
    lease._changed = ClosedMeanwhile()
    heart = HeartbeatThread("redis://bus", "ada", lease)
    lease.changed.closing = heart._closing
    heart.start()

    heart._thread.join(5)

    assert not heart._thread.is_alive()
    assert bus.beats == []


def test_a_goodbye_is_said_on_a_new_connection_if_the_old_one_died(heart, bus):
    heart._beat()
    broken = heart._connection
    broken.read_response = lambda: (_ for _ in ()).throw(ConnectionError("idle"))

    heart._publish_leave()

    assert bus.beats[-1] == ("instance.leave", 1)
    assert bus.connections == 2


def test_no_goodbye_is_tried_in_an_outage(heart, bus):
    """
    It would make whoever closes wait for nothing: the lease lapses by itself.
    """
    heart._beat()
    bus.trouble = ConnectionError("gone")
    heart._beat()
    bus.trouble = None

    heart._publish_leave()

    assert bus.beats == [("instance.join", 1)]


def test_a_close_does_not_wait_for_a_server_that_is_deaf(heart, bus, monkeypatch):
    monkeypatch.setattr(heartbeat, "CLOSE_S", 0.05)
    bus.blocked.clear()
    heart.start()
    began = time.monotonic()

    heart.close()

    assert time.monotonic() - began < 1
    bus.blocked.set()
    heart._thread.join(5)


def test_a_loss_is_followed_by_a_join_at_once(heart, bus, lease):
    heart.start()
    _until(lambda: bus.beats)

    lease.declare_lost(1)
    _until(lambda: len(bus.beats) == 2)

    assert bus.beats[1] == ("instance.join", 2)
    heart.close()


def test_an_epoch_that_ends_by_itself_costs_one_heartbeat(heart, bus, lease, clock):
    """
    Its own moving on is no reason to beat twice.
    """
    heart.start()
    _until(lambda: bus.beats)
    clock.now += TTL_S + 1
    lease.changed.set()
    _until(lambda: len(bus.beats) == 2)

    assert not lease.changed.wait(0.05)
    heart.close()
    assert [kind for kind, _ in bus.beats] == [
        *("instance.join", "instance.join"),
        "instance.leave",
    ]


def test_no_exit_waits_for_the_thread(heart):
    assert heart._thread.daemon


def _until(claim):
    deadline = time.monotonic() + 5
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.001)

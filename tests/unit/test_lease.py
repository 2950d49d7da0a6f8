"""
The lease of one instance: which epoch counts, and when one is over.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from everbus.bus.lease import Lease

TTL_S = 30.0


@pytest.fixture
def lease(clock):
    return Lease("i", TTL_S, clock=clock)


def test_an_instance_that_is_heard_keeps_its_epoch(lease, clock):
    epochs = set()
    for _ in range(20):
        clock.now += TTL_S / 3
        epochs.add(lease.epoch())
        assert lease.heartbeat_published(1, clock.now) == 0

    assert (epochs, lease.losses, lease.changed.is_set()) == ({1}, 0, False)


def test_silence_for_longer_than_the_ttl_ends_the_epoch(lease, clock):
    """
    The managers may have declared it lost by now: what is sent late must not be
    sent under a name that is no longer good.
    """
    lease.heartbeat_published(1, clock.now)

    clock.now += TTL_S
    assert lease.epoch() == 1
    clock.now += 0.001
    assert lease.epoch() == 2

    assert (lease.losses, lease.changed.is_set()) == (1, True)


def test_a_heartbeat_counts_from_when_it_was_begun(lease, clock):
    """
    It may have arrived at once, and only its acknowledgement took long.
    """
    begun = clock.now
    clock.now += TTL_S - 1
    lease.heartbeat_published(1, begun)

    clock.now += 2

    assert lease.epoch() == 2


def test_a_late_acknowledgement_does_not_revive_an_epoch(lease, clock):
    begun = clock.now
    clock.now += TTL_S + 1
    assert lease.epoch() == 2

    assert lease.heartbeat_published(1, begun) == 0

    assert lease.epoch() == 2


def test_an_outage_of_hours_is_one_loss_and_told_once(lease, clock):
    lease.heartbeat_published(1, clock.now)
    for _ in range(120):
        clock.now += TTL_S + 1
        epoch = lease.epoch()

    assert (epoch, lease.losses) == (121, 1)
    assert lease.heartbeat_published(epoch, clock.now) == epoch - 1
    assert lease.heartbeat_published(epoch, clock.now) == 0


def test_what_was_never_heard_of_is_never_lost(lease, clock):
    """
    A MAD that starts while the bus is away misses nothing.
    """
    for _ in range(3):
        clock.now += TTL_S + 1
        epoch = lease.epoch()

    assert (epoch, lease.losses) == (4, 0)
    assert lease.heartbeat_published(epoch, clock.now) == 0


def test_a_loss_ends_the_epoch_at_once_and_counts_once(lease, clock):
    lease.heartbeat_published(1, clock.now)

    assert lease.declare_lost(1)
    assert not lease.declare_lost(1)

    assert (lease.epoch(), lease.losses, lease.changed.is_set()) == (2, 1, True)
    assert lease.heartbeat_published(2, clock.now) == 1
    assert lease.heartbeat_published(2, clock.now) == 0


def test_the_loss_of_an_epoch_that_has_ended_is_no_news(lease, clock):
    lease.heartbeat_published(1, clock.now)
    clock.now += TTL_S + 1
    assert lease.epoch() == 2

    assert not lease.declare_lost(1)

    assert (lease.epoch(), lease.losses) == (2, 1)


def test_a_loss_that_is_ahead_of_us_is_believed(lease):
    """
    Else every command would be refused, each with the same answer.
    """
    assert lease.declare_lost(7)

    assert lease.epoch() == 8


def test_a_new_epoch_has_a_ttl_to_be_heard_in(lease, clock):
    clock.now += TTL_S - 1
    lease.declare_lost(1)
    clock.now += TTL_S - 1

    assert lease.epoch() == 2


def test_the_time_of_a_lease_runs_while_the_process_stands_still():
    """
    The clock of its own choice, too: it need not be asked to go on.
    """
    lease = Lease("i", 0.01)
    lease.heartbeat_published(1, lease.now())

    threading.Event().wait(0.02)

    assert lease.epoch() == 2


def test_threads_that_notice_the_silence_together_end_one_epoch(lease, clock):
    """
    Each of them looks at the clock while the others do.
    """
    lease.heartbeat_published(1, clock.now)
    clock.now += TTL_S + 1
    together = threading.Barrier(8)

    def look():
        time.sleep(0.001)
        return clock.now

    def notice(_):
        together.wait(5)
        return lease.epoch()

    lease._clock = look
    with ThreadPoolExecutor(8) as threads:
        epochs = list(threads.map(notice, range(8)))

    assert (epochs, lease.losses) == ([2] * 8, 1)


def test_many_threads_lose_each_epoch_once_and_hear_of_it_once(lease, clock):
    """
    Publisher, replies and heart use one lease from their own threads.
    """
    told = []

    def live(_):
        for _ in range(2000):
            epoch = lease.epoch()
            over = lease.heartbeat_published(epoch, clock.now)
            if over:
                told.append(over)
            lease.declare_lost(epoch)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(live, range(8)))

    assert lease.losses == lease.epoch() - 1
    assert len(told) == len(set(told))
    assert told

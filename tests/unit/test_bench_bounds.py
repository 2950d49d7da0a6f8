"""
The arithmetic of the cost model, without measuring anything.
"""

import pytest

from tests.bench import bounds
from tests.bench.bounds import Batching, Costs, House

COSTS = Costs(worker=20.0, server=8.0, publisher=10.0)


def test_the_scarcest_resource_comes_first():
    found = bounds.limits(COSTS, House(publishers=1))

    assert [limit.what for limit in found] == ["replicas", "publishers", "Redis"]
    assert found[0].rate == 50_000


def test_processes_that_share_cores_add_up():
    alone = bounds.limits(COSTS, House(publishers=1))[0]
    first = bounds.limits(COSTS, House(publishers=1, cores=1))[0]

    assert alone.what == "replicas"
    assert first == ("cores", pytest.approx(1e6 / 38))


def test_the_busiest_replica_decides_not_the_mean_one():
    two = bounds.limits(COSTS, House(replicas=2, lanes_share=0.75))[0]

    assert two == ("replicas", pytest.approx(50_000 / 0.75))


def test_more_lanes_a_replica_are_shared_out_more_evenly():
    shares = [bounds.busiest_replica(4, 4 * lanes) for lanes in (1, 4, 16)]

    assert shares == sorted(shares, reverse=True)
    assert 0.25 < shares[-1] < shares[0] <= 1.0


def test_slots_are_counted_as_a_cluster_shares_them_out():
    """
    {3} has slot 1584 and {0} 13907 of 16384: the first and the last of three.
    """
    assert bounds.busiest_server(1, 16) == 1.0
    assert 1 / 3 <= bounds.busiest_server(3, 64) < 0.5


def test_batching_goes_through_both_measured_points():
    few, many = Costs(60.0, 40.0, 50.0), Costs(30.0, 20.0, 45.0)

    line = Batching.through(many, 50, few, 5)

    assert line.at(50) == pytest.approx(many)
    assert line.at(5) == pytest.approx(few)
    assert line.at(25).worker < 60


def test_noise_never_makes_a_larger_batch_dearer():
    line = Batching.through(Costs(30.0, 20.0, 45.0), 50, Costs(29.0, 21.0, 45.0), 5)

    assert line.batch.worker == 0
    assert line.at(500).server <= line.at(5).server


def test_a_batch_that_is_enough_costs_a_tenth_more_than_an_endless_one():
    line = Batching(Costs(10.0, 5.0, 5.0), Costs(50.0, 20.0, 0.0))

    assert line.at(line.enough()).worker == pytest.approx(11.0)


def test_waiting_requests_are_spread_over_the_lanes():
    assert bounds.commands_a_commit(1000, 16, 0.5) == pytest.approx(31.25)
    assert bounds.commands_a_commit(10, 64, 0.5) == 1.0

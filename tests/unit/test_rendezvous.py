"""
Which replica should have which lane: agreed without talking to each other.
"""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from everbus.gateway.session_manager import lane_owner

LANES = range(16)
names = st.sets(st.text("abcdef0123456789-", min_size=1, max_size=12), min_size=2)


@given(names, st.randoms())
def test_all_replicas_compute_the_same_owners_from_the_same_list(replicas, random):
    """
    In whatever order each of them was told of the living.
    """
    shuffled = sorted(replicas)
    random.shuffle(shuffled)

    told = [lane_owner(lane, shuffled) for lane in LANES]

    assert told == [lane_owner(lane, sorted(replicas)) for lane in LANES]


@given(names, st.data())
def test_only_the_lanes_of_the_dead_one_move(replicas, data):
    dead = data.draw(st.sampled_from(sorted(replicas)))

    before = {lane: lane_owner(lane, replicas) for lane in LANES}
    after = {lane: lane_owner(lane, replicas - {dead}) for lane in LANES}

    assert all(after[lane] == before[lane] for lane in LANES if before[lane] != dead)
    assert dead not in after.values()


@given(names, st.text("xyz", min_size=1))
def test_a_newcomer_takes_lanes_for_itself_only(replicas, newcomer):
    before = {lane: lane_owner(lane, replicas) for lane in LANES}
    after = {lane: lane_owner(lane, replicas | {newcomer}) for lane in LANES}

    assert all(after[lane] in (before[lane], newcomer) for lane in LANES)


def test_the_lanes_are_spread_over_all_replicas():
    """
    3,000 lanes over three: each has its third, give or take a tenth.
    """
    share = Counter(lane_owner(lane, ("m1", "m2", "m3")) for lane in range(3000))

    assert all(900 < count < 1100 for count in share.values())


def test_without_replicas_a_lane_has_no_owner():
    assert lane_owner(0, ()) is None

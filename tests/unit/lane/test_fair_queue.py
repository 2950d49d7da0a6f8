"""
Shares of a batch: by commands and bytes, and whole batches for a MAD that is alone.
"""

from collections import Counter

from everbus.bus.keys import GATEWAY
from everbus.gateway.lane.delivery import Entry, Undecodable
from everbus.gateway.lane.intake import (
    ALONE,
    COMMAND_COST,
    QUANTUM,
    SHARED,
    SHARED_S,
    FairQueue,
)

TROUBLE = None


def commands(mad, count, size=100):
    return [
        Undecodable(Entry(mad, f"{n}-0"), 0, b"x" * size, TROUBLE) for n in range(count)
    ]


def a_queue(*groups):
    now = [0.0]
    queue = FairQueue(lambda: now[0])
    for group in groups:
        queue.extend(group)
    return queue, now


def taken(queue, most=256, most_bytes=8 << 20):
    return Counter(one.entry.mad for one in queue.take(most, most_bytes))


def test_a_mad_alone_fills_whole_batches():
    queue, _ = a_queue(commands("flood", 300))

    assert taken(queue) == {"flood": 256}
    assert queue.read_bound is ALONE


def test_a_flood_takes_its_share_of_a_batch_and_no_more():
    queue, _ = a_queue(commands("flood", 3000), commands("ada", 1))

    assert taken(queue) == {"flood": QUANTUM // (COMMAND_COST + 100), "ada": 1}
    assert queue.read_bound is SHARED


def test_a_share_counts_bytes():
    """
    A large command waits until its MAD has saved enough; small ones pass.
    """
    large = commands("flood", 9, size=200_000)
    queue, _ = a_queue(large, commands("ada", 100))

    assert taken(queue).keys() == {"ada"}
    assert taken(queue)["flood"] == 1


def test_a_command_beyond_all_shares_comes_as_soon_as_nothing_else_does():
    queue, _ = a_queue(commands("flood", 1, size=20 << 20), commands("ada", 1))

    assert taken(queue) == {"ada": 1}
    queue.extend(commands("bea", 0))
    assert taken(queue) == {"flood": 1}


def test_nobody_is_always_last():
    groups = [commands(name, 100) for name in ("a", "b", "c")]
    queue, _ = a_queue(*groups)
    total = Counter()
    for _ in range(6):
        total += taken(queue, most=40)

    assert max(total.values()) - min(total.values()) <= 40


def test_commands_of_a_mad_stay_in_order_across_batches():
    queue, _ = a_queue(commands("flood", 200), commands("ada", 50))
    got = []
    while queue:
        got += [
            int(one.entry.id[:-2])
            for one in queue.take(64, 1 << 20)
            if one.entry.mad == "flood"
        ]

    assert got == [*range(200)]


def test_what_waited_goes_before_the_others_of_its_mad():
    queue, _ = a_queue(commands("ada", 2))
    first, second = queue.take(2, 1 << 20)
    queue.extend(commands("ada", 3))
    queue.put_back([first, second])

    assert queue.take(2, 1 << 20) == [first, second]
    assert len(queue) == 3


def test_the_lane_is_shared_for_a_while_after_the_others_last_command():
    queue, now = a_queue(
        commands("flood", 1), commands("ada", 1), commands("flood", 500)
    )
    queue.take(256, 1 << 20)

    assert queue.shared
    now[0] = SHARED_S + 0.1
    assert not queue.shared
    assert taken(queue) == {"flood": 256}


def test_the_gateways_own_commands_do_not_shorten_batches():
    queue, _ = a_queue(commands("flood", 10), commands(GATEWAY, 1))
    queue.take(256, 1 << 20)
    queue.extend(commands("flood", 300))

    assert not queue.shared


def test_a_suspect_comes_alone():
    queue, _ = a_queue(commands("ada", 3), commands("bea", 2))
    suspect = queue.queues["ada"][1]
    suspect.suspect = True
    batches = []
    while queue:
        batches.append(queue.take(256, 1 << 20))

    assert [suspect] in batches


def test_a_batch_ends_before_the_command_that_exceeds_its_bytes():
    queue, _ = a_queue(commands("ada", 10, size=400))

    assert taken(queue, most_bytes=1000) == {"ada": 2}
    assert taken(queue, most_bytes=100) == {"ada": 1}

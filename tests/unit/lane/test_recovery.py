"""
The opening of a lane and the replay of pending commands, without a server.
"""

import pytest

from everbus.gateway.lane.hot_epoch import HotEpochs
from everbus.gateway.lane.quarantine import Quarantine
from everbus.gateway.lane.recovery import LaneMemory, Recovery, backoff_s
from tests.builders import a_session
from tests.lane_parts import (
    NOW,
    REPLICATION,
    FakeWire,
    a_decider,
    an_append,
    an_update,
    delivered,
)


class Opening:
    """
    A lane that opens on a server which holds nothing.
    """

    def __init__(self, *histories):
        # One round of marks, then no session, window or reply is known.
        self.histories = list(histories)
        self.wire = FakeWire(
            INFO=REPLICATION,
            lineage=[3, 77, 0],
            TIME=[b"1790000000", b"5000"],
            GET=None,
            HMGET=self._marks_or_nothing,
            LRANGE=[],
            MGET=lambda command: [None] * (len(command) - 1),
            HGETALL=[],
        )
        epochs = HotEpochs(self.wire, 0, 3_600_000, tiers=False)
        self.memory = LaneMemory.of(a_decider(), self.wire, 0, epochs)
        quarantine = Quarantine(self.wire, 0, "one")
        self.recovery = Recovery(self.wire, self.memory, epochs, quarantine)

    def _marks_or_nothing(self, command):
        fields = len(command) - 2
        if self.histories and fields == len(self.histories):
            histories, self.histories = self.histories, []
            return histories
        return [None] * fields


async def test_an_opening_lane_forgets_all_and_takes_a_new_epoch():
    opening = Opening()
    memory = opening.memory
    memory.decider.cache.sessions["s1"] = a_session()
    memory.queue.append(an_update())
    memory.waiting.block(an_update())

    now = await opening.recovery.begin()

    assert now.ms == NOW.ms + 5
    assert opening.wire.opened == 1
    assert not memory.decider.cache.sessions
    assert not memory.queue
    assert not memory.waiting.queues
    assert memory.lookup.hot_epoch[:4] == (77, 3_600_000, False, 3)


async def test_pending_commands_are_suspects_and_keep_their_order():
    opening = Opening(None, None)
    pending = [an_update(1), an_update(2)]

    await opening.recovery.enqueue(pending, NOW)

    assert list(opening.memory.queue) == pending
    assert all(one.suspect for one in pending)


async def test_what_an_owner_died_of_waits_behind_all_others():
    """
    It delays no session but its own, and its session's later commands stay behind it.
    """
    opening = Opening(b"two#0", None, None)
    killer, behind = an_update(1), an_update(2)
    other = an_update(3, session="s2")

    await opening.recovery.enqueue([killer, behind, other], NOW)

    assert list(opening.memory.queue) == [other]
    assert list(opening.memory.waiting.queues["s1"]) == [killer, behind]


async def test_a_pending_cancellation_is_noted_before_its_command_is_decided():
    opening = Opening(None, None)
    append = an_append(1)
    cancel = delivered(
        "request.cancel", 2, session="", body={"command_id": append.envelope.id}
    )

    await opening.recovery.enqueue([append, cancel], NOW)

    assert opening.memory.decider.revocation.cancels(append)


async def test_publishers_are_pruned_once_an_hour():
    opening = Opening()

    for _ in range(2):
        await opening.recovery.prune(NOW)

    assert opening.wire.words() == ["HGETALL"] * 2  # publishers and fences, once


@pytest.mark.parametrize(("attempts", "seconds"), [(1, 0.1), (2, 0.2), (4, 0.8)])
def test_the_next_try_waits_twice_as_long(attempts, seconds):
    update = an_update()
    update.attempts = ["failed"] * attempts

    assert backoff_s(update) == pytest.approx(seconds)

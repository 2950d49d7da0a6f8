"""
Fences: which epochs of an instance are over, and since when.
"""

import pytest

from everbus.bus.messages import check_command_id, unpack
from everbus.gateway.lane.fencing import (
    MAX_FENCES,
    Fence,
    InstanceLost,
    fence_against,
    follow_ups,
    next_chunk,
    pack_fences,
    parse_fences,
    raised,
)
from everbus.gateway.store.attachments import attachment_in
from everbus.handlers.commands import Attachment, LostParticipant

LOST = InstanceLost(mad="bo", instance="a" * 32, epoch=3)
SESSION = "s" * 64


@pytest.mark.parametrize(
    ("epoch", "arrived_ms", "refused"),
    [
        (1, 999, False),
        (1, 1000, False),
        (1, 1001, True),
        (0, 1001, True),
        (2, 1500, False),
        (2, 2001, True),
        (3, 9000, False),
    ],
)
def test_a_command_counts_if_its_epoch_goes_on_or_if_it_came_before(
    epoch, arrived_ms, refused
):
    fences = (Fence(1, 1000), Fence(2, 2000))

    assert (fence_against(fences, epoch, arrived_ms) is not None) == refused


def test_a_fence_is_raised_once_however_often_it_is_told():
    once = raised((), 1, 1000)

    assert raised(once, 1, 5000) == once
    assert raised(raised(once, 2, 2000), 1, 5000) == (Fence(1, 1000), Fence(2, 2000))


def test_only_the_newest_fences_are_kept():
    fences = ()
    for epoch in range(1, 2 * MAX_FENCES):
        fences = raised(fences, epoch, epoch * 1000)

    assert len(fences) == MAX_FENCES
    assert fences[-1] == Fence(2 * MAX_FENCES - 1, (2 * MAX_FENCES - 1) * 1000)


def test_fences_survive_their_record():
    fences = (Fence(1, 1000), Fence(7, 2**50))

    assert parse_fences(pack_fences(fences).encode()) == fences


def test_an_attachment_is_found_by_either_of_its_members():
    one = Attachment("bo-2", "i1", "s.1_x", 12)

    assert {attachment_in(member.encode()) for member in one.members} == {one}


def test_a_follow_up_says_the_same_under_the_same_id_each_time():
    found = [Attachment("bo", LOST.instance, SESSION, 3)]

    [first], [again] = follow_ups(LOST, found), follow_ups(LOST, found)

    assert first == again
    assert check_command_id(first.id) == first.id
    assert (first.kind, first.session) == ("participant.lost", SESSION)
    assert unpack(first.body, LostParticipant) == LostParticipant(
        mad="bo", instance=LOST.instance, epoch=3
    )


def test_the_next_chunk_begins_behind_the_last_one():
    last = Attachment("bo", LOST.instance, SESSION, 3)

    following = next_chunk(LOST, last)

    assert check_command_id(following.id) == following.id
    assert unpack(following.body, InstanceLost).after == last.members[0]

"""
Cancelled and fenced commands, without a server.
"""

import pytest

from everbus.bus.errors import Cancelled, Superseded
from everbus.gateway.lane.fencing import CHUNK, Fence, InstanceLost
from everbus.gateway.lane.revocation import cancelled_by, check_fences
from everbus.handlers.commands import Attachment
from tests.builders import sealed_grant
from tests.lane_parts import (
    ARRIVED_MS,
    SECRET,
    a_batch,
    a_decider,
    an_update,
    delivered,
)


def a_cancel(of="i1.0.1", **fields):
    return delivered("request.cancel", 9, session="", body={"command_id": of}, **fields)


def test_a_cancellation_names_the_command_on_its_own_ingress():
    assert cancelled_by(a_cancel("i1.0.4")) == "ada:i1.0.4"


def test_a_noted_cancellation_refuses_its_command_until_it_is_settled():
    revocation, update = a_decider().revocation, an_update()
    cancel = a_cancel()
    revocation.note_cancels([cancel])

    assert revocation.cancels(update)
    assert not revocation.cancels(an_update(2))
    with pytest.raises(Cancelled):
        revocation.check_cancelled(update, revocation._sender_of(update))

    revocation.settle_cancel(cancel)
    assert not revocation.cancels(update)


def test_a_cancellation_by_another_principal_revokes_nothing():
    revocation = a_decider().revocation
    eve = sealed_grant(SECRET, "eve", "admin", mad="ada", instance="i1")

    revocation.note_cancels([a_cancel(grant=eve)])

    assert not revocation.cancels(an_update())
    revocation.check_cancelled(an_update(), revocation._sender_of(an_update()))


def test_a_cancellation_without_a_grant_is_not_noted():
    revocation = a_decider().revocation

    revocation.note_cancels([a_cancel(grant=b"")])

    assert revocation.cancelled == {}


def test_a_disturbance_forgets_the_cancellations():
    decider = a_decider()
    decider.revocation.note_cancels([a_cancel()])

    decider.forget()

    assert decider.revocation.cancelled == {}


@pytest.mark.parametrize(
    ("epoch", "since_ms", "refused"),
    [
        (3, ARRIVED_MS - 1, True),
        (4, ARRIVED_MS - 1, True),
        (2, ARRIVED_MS - 1, False),
        (3, ARRIVED_MS, False),
    ],
)
def test_a_fence_turns_away_its_epochs_from_its_time_on(epoch, since_ms, refused):
    update = an_update(epoch=3)

    if refused:
        with pytest.raises(Superseded, match="join again"):
            check_fences((Fence(epoch, since_ms),), update)
    else:
        check_fences((Fence(epoch, since_ms),), update)


def a_loss(*attached: Attachment, left: bool = False):
    body = {"mad": "ada", "instance": "i1", "epoch": 3, "left": left}
    told = delivered("instance.lost", session="", body=body)
    told.attached = attached
    decider, batch = a_decider(), a_batch()
    window = decider.cache.observe(an_update())
    lost = InstanceLost(mad="ada", instance="i1", epoch=3, left=left)

    decider.revocation.settle_loss(told, lost, batch)

    return window, batch.attachments


def an_attachment(n=1, epoch=3):
    return Attachment("ada", "i1", f"s{n}", epoch)


def test_a_lost_instance_is_fenced_and_its_sessions_hear_of_it():
    window, staged = a_loss(an_attachment(1), an_attachment(2), an_attachment(3, 4))

    assert window.fences == (Fence(3, ARRIVED_MS),)
    assert len(staged._following) == 2


def test_an_instance_that_left_is_not_fenced():
    window, staged = a_loss(an_attachment(), left=True)

    assert window.fences == ()
    assert staged._following == []
    assert staged._moves == {an_attachment(): False}


def test_a_full_chunk_of_sessions_is_followed_by_the_next_one():
    _, staged = a_loss(*map(an_attachment, range(CHUNK)))

    assert len(staged._following) == CHUNK + 1

"""
Revocation: commands that their sender cancelled, or that a lost instance sent.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress

from everbus.bus.errors import Cancelled, Rejection, Superseded
from everbus.gateway.identity.principal import Principal
from everbus.gateway.lane.cache import LaneCache, asked_of
from everbus.gateway.lane.commit import Batch
from everbus.gateway.lane.delivery import Delivery
from everbus.gateway.lane.fencing import (
    CHUNK,
    Fences,
    InstanceLost,
    fence_against,
    follow_ups,
    next_chunk,
    pack_fences,
    publisher_of,
    raised,
)
from everbus.gateway.lane.sequence import ProducerWindow


class Revocation:
    """
    The cancellations and fences of one lane.

    Args:
        cache: holds the fences of the publishers.
        sender_of: finds the sender; raises Rejection if nobody knows.

    Attributes:
        cancelled: `<mad>:<command id>` → tenant and name of the canceller.
    """

    def __init__(
        self, cache: LaneCache, sender_of: Callable[[Delivery], Principal]
    ) -> None:
        self._cache = cache
        self._sender_of = sender_of
        self.cancelled: dict[str, tuple[str, str]] = {}

    def check_cancelled(self, delivery: Delivery, sender: Principal) -> None:
        """
        Let *delivery* pass unless its sender cancelled it.

        Raises:
            Cancelled: the sender cancelled it.
        """
        if self.cancelled.get(delivery.command) == _identity(sender):
            raise Cancelled("cancelled by its sender before it was applied")

    def note_cancels(self, cancels: Iterable[Delivery]) -> None:
        """
        Note which commands *cancels* revoke, before any of them is decided.

        A command that waits, even one read together with its cancellation, is then
        not applied any more. Only its own sender can cancel it.
        """
        for cancel in cancels:
            with suppress(Rejection):  # the decision refuses it
                by = _identity(self._sender_of(cancel))
                self.cancelled[cancelled_by(cancel)] = by

    def cancels(self, delivery: Delivery) -> bool:
        """
        Whether the sender of *delivery* cancelled it.
        """
        if delivery.command not in self.cancelled:
            return False
        with suppress(Rejection):
            by = _identity(self._sender_of(delivery))
            return self.cancelled[delivery.command] == by
        return False

    def settle_cancel(self, cancel: Delivery) -> None:
        """
        Forget a cancellation: its command is decided.
        """
        self.cancelled.pop(cancelled_by(cancel), None)

    def settle_loss(self, delivery: Delivery, lost: InstanceLost, batch: Batch) -> None:
        """
        Fence a lost instance from now on, and report the loss to its sessions.
        """
        staged = batch.attachments
        over = [one for one in delivery.attached if one.epoch <= lost.epoch]
        if lost.left:
            staged.detach(over)
        else:
            self._fence(publisher_of(lost), lost.epoch, delivery, batch)
            staged.follow(follow_ups(lost, over))
        if len(delivery.attached) == CHUNK:
            staged.follow([next_chunk(lost, delivery.attached[-1])])

    def forget(self) -> None:
        """
        Drop all cancellations; the pending entries bring them again.
        """
        self.cancelled.clear()

    def _fence(
        self, publisher: str, epoch: int, delivery: Delivery, batch: Batch
    ) -> None:
        window: ProducerWindow | None = self._cache.windows.get(publisher)
        before: Fences = (
            self._cache.fences.get(publisher, ()) if window is None else window.fences
        )
        fences = raised(before, epoch, delivery.entry.arrived_ms)
        if window is not None:
            window.fences = fences
        batch.attachments.fence(publisher, pack_fences(fences))


def check_fences(fences: Fences, delivery: Delivery) -> None:
    """
    Let *delivery* pass unless its instance was declared lost before it arrived.

    Raises:
        Superseded: the instance must join again.
    """
    epoch = delivery.envelope.epoch
    fence = fence_against(fences, epoch, delivery.entry.arrived_ms)
    if fence is not None:
        raise Superseded(
            f"this instance was declared lost (epoch {fence.epoch}) before the "
            "command came; join again, then decide anew",
            epoch=fence.epoch,
        )


def cancelled_by(cancel: Delivery) -> str:
    """
    `<mad>:<command id>` of the command that the cancellation is about.
    """
    return f"{cancel.entry.mad}:{asked_of(cancel)}"


def _identity(principal: Principal) -> tuple[str, str]:
    return principal.tenant, principal.name

"""
Whether a command still stands: not taken back, and not sent by a lost instance.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress

from bus.errors import Cancelled, Rejection, Superseded
from bus.messages import Envelope
from gateway.batch import Batch
from gateway.delivery import CANCEL_KIND, Work
from gateway.fencing import (
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
from gateway.identity.principal import Principal
from gateway.knowledge import Knowledge, asked_of
from gateway.progress import Progress


class Standing:
    """
    The cancellations and fences of one lane.

    Args:
        known: where the fences of the publishers are.
        principal_of: who asks; raises Rejection if nobody knows.
    """

    def __init__(
        self, known: Knowledge, principal_of: Callable[[Work, Envelope], Principal]
    ) -> None:
        self._known = known
        self._principal_of = principal_of
        # `<mad>:<command id>` → tenant and name of who takes it back.
        self._cancelled: dict[str, tuple[str, str]] = {}

    def check(self, work: Work, envelope: Envelope, principal: Principal) -> None:
        """
        Let *work* pass if it still stands.

        Raises:
            Cancelled: its principal has taken it back.
            Superseded: its instance was declared lost before it came.
        """
        if self._cancelled and self._cancelled.get(work.command) == _whose(principal):
            raise Cancelled("cancelled by its sender before it was applied")
        known: Progress | None = self._known.progress.get(work.publisher or "")
        if known is None or not known.fences:
            return
        fence = fence_against(known.fences, envelope.epoch, work.entry.arrived_ms)
        if fence is not None:
            raise Superseded(
                f"this instance was declared lost (epoch {fence.epoch}) before the "
                "command came; join again, then decide anew",
                epoch=fence.epoch,
            )

    def note_cancels(self, works: Iterable[Work]) -> None:
        """
        Note which commands *works* cancel, before any of them is judged.

        A command that waits, even one read together with its cancellation, is then
        not applied any more. Only whoever asked for it can cancel it.
        """
        for work in works:
            envelope = work.envelope
            if envelope is None or envelope.kind != CANCEL_KIND:
                continue
            with suppress(Rejection):  # it will be refused when it is judged
                by = _whose(self._principal_of(work, envelope))
                self._cancelled[cancelled_by(work)] = by

    def cancels(self, work: Work) -> bool:
        """
        Whether *work* was taken back.
        """
        if work.envelope is None or work.command not in self._cancelled:
            return False
        with suppress(Rejection):
            by = _whose(self._principal_of(work, work.envelope))
            return self._cancelled[work.command] == by
        return False

    def settle_cancel(self, work: Work) -> None:
        """
        Forget the cancellation *work*: what it is about has been judged.
        """
        self._cancelled.pop(cancelled_by(work), None)

    def settle_loss(self, work: Work, lost: InstanceLost, batch: Batch) -> None:
        """
        Let nothing count any more that a lost instance sends from now on, and tell
        the sessions that it is in.
        """
        where = batch.whereabouts
        over = [one for one in work.attached if one.epoch <= lost.epoch]
        if lost.left:
            where.detach(over)
        else:
            self._fence(publisher_of(lost), lost.epoch, work, batch)
            where.follow(follow_ups(lost, over))
        if len(work.attached) == CHUNK:
            where.follow([next_chunk(lost, work.attached[-1])])

    def forget(self) -> None:
        """
        Drop all cancellations; what is pending tells of them again.
        """
        self._cancelled.clear()

    def _fence(self, publisher: str, epoch: int, work: Work, batch: Batch) -> None:
        known: Progress | None = self._known.progress.get(publisher)
        before: Fences = (
            self._known.fences.get(publisher, ()) if known is None else known.fences
        )
        fences = raised(before, epoch, work.entry.arrived_ms)
        if known is not None:
            known.fences = fences
        batch.whereabouts.fence(publisher, pack_fences(fences))


def cancelled_by(work: Work) -> str:
    """
    `<mad>:<command id>` of the command that the cancellation *work* takes back.
    """
    return f"{work.entry.mad}:{asked_of(work)}"


def _whose(principal: Principal) -> tuple[str, str]:
    return principal.tenant, principal.name

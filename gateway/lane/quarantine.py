"""
Quarantine: commands that may have killed an owner are tried alone, and rarely.

All commands that were pending at an owner's end go into quarantine. Before the trial of
a command, a mark names the replica that tries it; if the trial kills the replica, the
next owner finds the mark. So every death counts for the one command under trial.
"""

from collections.abc import Sequence

from everbus.gateway.lane.connection import LaneConnection, LaneLost
from everbus.gateway.lane.delivery import Received
from everbus.gateway.store import key_names
from everbus.gateway.store.scripts import script

HISTORY_BYTES = 2_000


class Quarantine:
    """
    The marks of one partition, as its present owner reads and writes them.
    """

    def __init__(self, wire: LaneConnection, partition: int, incarnation: str) -> None:
        self._wire = wire
        self._partition = partition
        self._incarnation = incarnation
        self._generation = 0

    def fail_trial(self) -> None:
        """
        Count the trial under way as failed: the lane broke over it.
        """
        self._generation += 1

    async def recognise(self, pending: Sequence[Received]) -> None:
        """
        Put *pending* into quarantine, each command with the deaths that it caused.

        Raises:
            WireFailed: the connection broke.
        """
        histories = await self._wire.call(
            "HMGET",
            key_names.attempts(self._partition),
            *(received.name for received in pending),
        )
        for received, history in zip(pending, histories, strict=True):
            received.suspect = True
            received.attempts = self._deaths(history)

    async def mark(self, suspect: Received) -> None:
        """
        Note that we are about to try *suspect*.

        Raises:
            LaneLost: the lane has another owner.
            WireFailed: the connection broke.
        """
        keys = [key_names.owner(self._partition), key_names.attempts(self._partition)]
        arguments = (self._wire.owner, suspect.name, self._trier, HISTORY_BYTES)
        reply = await self._wire.call(*script("mark", keys, *arguments))
        if isinstance(reply, list):
            raise LaneLost

    @property
    def _trier(self) -> str:
        return f"{self._incarnation}#{self._generation}"

    def _deaths(self, history: bytes | None) -> list[str]:
        """
        One line for each trier that noted a trial and never noted its end.

        Our own present generation does not count: a broken connection kills nobody.
        """
        tried_by = dict.fromkeys((history or b"").decode(errors="replace").split())
        tried_by.pop(self._trier, None)
        died = [f"{trier} died while trying it alone" for trier in tried_by]

        return ["an owner died with it in a batch", *died] if died else []

"""
Commands that an owner may have died of: tried alone, and only so often.

Whatever was pending when an owner ended is suspect. Before a suspect is tried, a
mark says by whom; if the trial kills the replica, the mark is what the next one
finds. So every death is laid to the one command that was being tried.
"""

from collections.abc import Sequence

from bus.wire import Wire
from gateway.delivery import Work
from gateway.errors import Superseded
from gateway.store import names
from gateway.store.scripts import script

HISTORY_BYTES = 2_000


class Suspects:
    """
    The marks of one partition, as its present owner reads and writes them.
    """

    def __init__(
        self, wire: Wire, partition: int, owner: str, incarnation: str
    ) -> None:
        self._wire = wire
        self._partition = partition
        self._owner = owner
        self._incarnation = incarnation
        self._life = 0

    def begin_life(self) -> None:
        """
        Let the trial that was under way count as failed: the lane broke over it.
        """
        self._life += 1

    async def recognise(self, pending: Sequence[Work]) -> None:
        """
        Make *pending* suspects, each with the deaths that are laid to it.

        Raises:
            WireFailed: the connection broke.
        """
        histories = await self._wire.call(
            "HMGET", names.attempts(self._partition), *(work.name for work in pending)
        )
        for work, history in zip(pending, histories, strict=True):
            work.suspect = True
            work.attempts = self._deaths(history)

    async def mark(self, work: Work) -> None:
        """
        Note that *work* is about to be tried by us.

        Raises:
            Superseded: the lane has another owner.
            WireFailed: the connection broke.
        """
        keys = [names.owner(self._partition), names.attempts(self._partition)]
        arguments = (self._owner, work.name, self._trier, HISTORY_BYTES)
        reply = await self._wire.call(*script("mark", keys, *arguments))
        if isinstance(reply, list):
            raise Superseded

    @property
    def _trier(self) -> str:
        return f"{self._incarnation}#{self._life}"

    def _deaths(self, history: bytes | None) -> list[str]:
        """
        One line for each life that noted a trial and never noted its end.

        Our own present life does not count: a broken connection kills nobody.
        """
        tried_by = dict.fromkeys((history or b"").decode(errors="replace").split())
        tried_by.pop(self._trier, None)
        died = [f"{trier} died while trying it alone" for trier in tried_by]

        return ["an owner died with it in a batch", *died] if died else []

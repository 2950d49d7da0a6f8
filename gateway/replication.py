"""
Replies that wait for the bus's replicas: durability level `replicated`.

WAIT counts the replicas that have what this very connection wrote, so it is written
right behind the commit. What it says is told with the next commit; until then the
entries stay pending, so that no crash leaves a caller without an answer.
"""

from typing import Any, NamedTuple

from bus.codec import pack
from bus.errors import Unavailable
from bus.messages import Reply
from bus.wire import Command
from gateway.batch import TO_STREAM, Batch
from gateway.delivery import Work


class Replicas(NamedTuple):
    """
    How many replicas must have a command, and how long they are waited for.
    """

    wanted: int = 1
    timeout_ms: int = 1_000


class Replication:
    """
    The commands of one lane that were committed and wait to be replied to.
    """

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        self._told: list[tuple[Work, bytes]] = []

    @property
    def timeout_s(self) -> float:
        """
        How long the `command` may take.
        """
        return self._replicas.timeout_ms / 1000

    def command(self) -> Command:
        """
        What has to be written right behind a commit.
        """
        return ("WAIT", self._replicas.wanted, self._replicas.timeout_ms)

    def note(self, batch: Batch, reply: Any) -> None:
        """
        Keep what the callers in *batch* are told, by the reply to `command`.
        """
        have = reply if isinstance(reply, int) else 0
        enough = have >= self._replicas.wanted
        for work, packed in batch.replicating:
            self._told.append((work, packed if enough else self._refusal(work, have)))

    def stage(self, batch: Batch) -> None:
        """
        Stage the replies, and that their commands are over.
        """
        for work, packed in self._told:
            batch.reply(work, packed, TO_STREAM)
            batch.release(work)
        self._told.clear()

    def clear(self) -> None:
        """
        Forget all; what waits is still pending on its stream.
        """
        self._told.clear()

    def _refusal(self, work: Work, have: int) -> bytes:
        error = Unavailable(
            f"applied, but only {have} of {self._replicas.wanted} replicas of the bus "
            "have it so far; do not send it again as a new command",
            applied=True,
            replicas=have,
        )
        return pack(
            Reply(
                id=work.envelope.id if work.envelope is not None else "",
                code=error.code,
                message=error.message,
                details=error.details,
            )
        )

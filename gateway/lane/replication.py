"""
Replies that wait for the bus's replicas: durability level `replicated`.

WAIT blocks its connection, so it runs aside on one of its own: the lane goes on while
replicas are slow or away. That connection writes a mark behind the commit, and WAIT
counts the replicas that have the mark. It proves the commit only on the same server
process, so both connections tell its run_id. The next commit gives the replies; until
then the entries stay pending, so that no crash leaves a caller without an answer.
"""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

from everbus.bus.cluster_wire import wire_to
from everbus.bus.errors import EverbusError, Unavailable
from everbus.bus.messages import Reply, pack
from everbus.bus.wire import EXCHANGE_TIMEOUT_S, Command
from everbus.gateway.lane.commit import TO_STREAM, Batch
from everbus.gateway.lane.delivery import Delivery
from everbus.gateway.store import key_names

MARK_TTL_S = 60
SERVER: Command = ("INFO", "server")


class Replicas(NamedTuple):
    """
    Number of replicas that must have a command, and the time limit of the wait.
    """

    wanted: int = 1
    timeout_ms: int = 1_000


class CommittedBatch(NamedTuple):
    """
    The callers of one commit, and the server process that has it.
    """

    run_id: bytes
    replicating: list[tuple[Delivery, bytes]]


class Replication:
    """
    The committed commands of one lane that still need their reply.

    Args:
        nudge: called when there are replies for the next commit.

    Attributes:
        replies: their replies, for the next commit.
    """

    def __init__(
        self, redis_url: str, number: int, replicas: Replicas, nudge: Callable[[], None]
    ) -> None:
        self._replicas = replicas
        self._nudge = nudge
        self._mark = key_names.replication_mark(number)
        # On a Cluster: the node of the lane's own slot.
        name = f"everbus-lane-{number}-replicas"
        self._wire = wire_to(redis_url, name=name, at=self._mark)
        self._committed: list[CommittedBatch] = []
        self._waiting: asyncio.Task[None] | None = None
        self.replies: list[tuple[Delivery, bytes]] = []

    def note(self, batch: Batch, server: Any) -> None:
        """
        Wait aside for the callers in *batch*; *server* is the reply to SERVER.
        """
        self._committed.append(CommittedBatch(_run_id(server), batch.replicating))
        if self._waiting is None:
            self._waiting = asyncio.create_task(self._wait())

    def forget(self) -> None:
        """
        Forget all callers: their entries are pending and will be replayed.
        """
        self._committed.clear()
        self.replies.clear()
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.cancel()

    async def close(self) -> None:
        """
        Forget all callers and close the connection.
        """
        self.forget()
        await self._wire.close()

    async def _wait(self) -> None:
        while self._committed:
            some, self._committed = self._committed, []
            run_id, have = await self._replicas_have_it()
            for batch in some:
                same = batch.run_id == run_id
                self._answer(batch, have if same and run_id else 0)
            self._nudge()
        self._waiting = None

    async def _replicas_have_it(self) -> tuple[bytes, int]:
        """
        The server process, and the number of replicas that have all written so far.
        """
        wanted, timeout_ms = self._replicas
        commands: list[Command] = [
            SERVER,
            ("SET", self._mark, "", "EX", MARK_TTL_S),
            ("WAIT", wanted, timeout_ms),
        ]
        patience_s = EXCHANGE_TIMEOUT_S + timeout_ms / 1000
        try:
            server, marked, have = await self._wire.exchange(
                commands, timeout_s=patience_s
            )
        except EverbusError:
            return b"", 0
        # Without the mark WAIT would count for an earlier one.
        return _run_id(server), have if marked == b"OK" and type(have) is int else 0

    def _answer(self, batch: CommittedBatch, have: int) -> None:
        enough = have >= self._replicas.wanted
        for delivery, packed in batch.replicating:
            answer = packed if enough else self._refusal(delivery, have)
            self.replies.append((delivery, answer))

    def stage(self, batch: Batch) -> None:
        """
        Stage the replies, and the end of their commands.
        """
        for delivery, packed in self.replies:
            batch.reply(delivery, packed, TO_STREAM)
            batch.release(delivery)
        self.replies.clear()

    def _refusal(self, delivery: Delivery, have: int) -> bytes:
        error = Unavailable(
            f"applied, but only {have} of {self._replicas.wanted} replicas of the bus "
            "have it so far; do not send it again as a new command",
            applied=True,
            replicas=have,
        )
        return pack(
            Reply(
                id=delivery.envelope.id,
                code=error.code,
                message=error.message,
                details=error.details,
            )
        )


def _run_id(server: Any) -> bytes:
    """
    The id of the server process in a reply to SERVER; empty in any other reply.
    """
    if not isinstance(server, bytes):
        return b""
    return server.partition(b"run_id:")[2].partition(b"\r")[0]

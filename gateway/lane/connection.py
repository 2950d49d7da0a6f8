"""
The connection of a lane, and the epoch that each connection has of its own.

A connection that was given up may still deliver what it carries: late, in part, or
twice. Under the epoch of the next connection, no script of it has an effect any more.
The errors that end a lane or make it begin anew are here too; no caller sees them.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from redis.exceptions import ResponseError

from everbus.bus.errors import Unavailable
from everbus.bus.server_errors import error_word, refusal
from everbus.bus.wire import EXCHANGE_TIMEOUT_S, Command, Wire, WireFailed
from everbus.gateway.store import key_names
from everbus.gateway.store.scripts import load_command, script


class LaneLost(Exception):
    """
    The lane has another owner: nothing more may be read or committed.
    """


class Disturbed(Unavailable):
    """
    Something the lane relied on changed; it must read the pending entries anew.
    """

    @property
    def cause(self) -> str:
        """
        Stable word for logs and metrics.
        """
        return str(self.details.get("cause", self.code))


class Unreadable(Unavailable):
    """
    The hot tier has something that nobody can read, until an operator mends it.

    Attributes:
        cause: stable word for dead letters.
    """

    cause: ClassVar[str]


class UndecodableSession(Unreadable):
    """
    Nobody can read the session's hot copy, and no other tier holds the session.
    """

    cause = "undecodable_session"


class UndecodableRecord(Unreadable):
    """
    Nobody can read the sender's numbers: whether its command was applied before, too.
    """

    cause = "undecodable_record"


def check_fenced(reply: Any) -> list[Any]:
    """
    The reply of a script that the lane's epoch fences, if the fence let it pass.

    Raises:
        LaneLost: the lane has another owner; nothing was written.
        Disturbed: the server forgot its scripts; nothing was written.
        Exception: any other error reply, as `refusal` has it.
    """
    if isinstance(reply, ResponseError):
        if error_word(reply) == "NOSCRIPT":
            raise Disturbed("the server forgot its scripts", cause="noscript")
        raise refusal(reply)
    if reply[0] == b"superseded":
        raise LaneLost
    answer: list[Any] = reply

    return answer


class LaneConnection(Wire):
    """
    A connection on which one lane exchanges batches; it inherits `call` from Wire.

    It never connects by itself: a connection without an epoch of its own could do
    what the one before it may still do as well.

    Attributes:
        owner: the value of the lane's owner key under this connection's epoch; every
            fenced script carries it.
    """

    def __init__(self, wire: Wire, lane: int | str, owner: str) -> None:
        self.owner = owner
        self._wire = wire
        self._keys = [key_names.owner(lane), key_names.epoch(lane)]
        epoch, _, self._holder = owner.partition(":")
        self._proposed = int(epoch)

    @property
    def connected(self) -> bool:
        """
        Whether the last exchange left a usable connection.
        """
        return self._wire.connected

    async def reopen(self) -> None:
        """
        Give up the connection, if there is one, and connect anew under a new epoch.

        What the connection before took is in the pending lists from now on; nothing
        comes to them behind the caller's back.

        Raises:
            LaneLost: the lane has another owner.
            WireFailed: the connection broke.
        """
        await self._wire.close()
        self._proposed += 1
        reopen = script("reopen", self._keys, self._proposed, self._holder)
        # Loaded each time: the server may be another one by now.
        _, reply = await self._wire.exchange([load_command("reopen"), reopen])
        check_fenced(reply)
        self.owner = f"{self._proposed}:{self._holder}"

    async def exchange(
        self, commands: Sequence[Command], *, timeout_s: float = EXCHANGE_TIMEOUT_S
    ) -> list[Any]:
        """
        Send *commands* with one write; return the replies as `Wire.exchange` does.

        Raises:
            WireFailed: the connection broke, or was given up before.
        """
        if not self._wire.connected:
            raise WireFailed("the lane's connection was given up; it must be reopened")
        return await self._wire.exchange(commands, timeout_s=timeout_s)

    async def close(self) -> None:
        """
        Close the connection, if there is one; never raises.
        """
        await self._wire.close()

"""
Parts of a lane without a server: commands as delivered, and a wire that is scripted.
"""

from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import ResponseError

from everbus.bus.messages import pack_envelope
from everbus.bus.wire import Command
from everbus.gateway.identity.grants import Grants, derived_key
from everbus.gateway.identity.policy import Policy
from everbus.gateway.lane.commit import Batch, BatchLimits
from everbus.gateway.lane.connection import LaneConnection
from everbus.gateway.lane.decision import Decider
from everbus.gateway.lane.delivery import KINDS, Delivery, Now, received_in
from everbus.gateway.store import scripts
from tests.builders import an_envelope, sealed_grant

SECRET = "a-secret-of-at-least-thirty-two-bytes"
NOW = Now.at(1_790_000_000_000)
ARRIVED_MS = NOW.ms - 1000
GRANT = sealed_grant(SECRET, "ada", "admin", mad="ada", instance="i1")
OWNER = "7:one/life"
# What a server says that follows nobody.
REPLICATION = b"role:master\r\nmaster_replid2:" + b"0" * 40 + b"\r\n"
_NAMES = {sha: name for name, sha in scripts._SHAS.items()}


def packed(kind: str, n: int = 1, **fields: Any) -> bytes:
    known = {"id": f"i1.0.{n}", "grant": GRANT, "reply": True, "session": "s1"}
    return pack_envelope(an_envelope(kind, **known | fields))


def delivered(kind: str, n: int = 1, **fields: Any) -> Delivery:
    """
    The command *n* of the MAD ada's instance i1, in an entry of its own.
    """
    entry = [b"c", packed(kind, n, **fields)]
    [one] = received_in("ada", f"{ARRIVED_MS}-{n}", entry, 0, 1)
    assert isinstance(one, Delivery)

    return one


def an_update(n: int = 1, **fields: Any) -> Delivery:
    return delivered("session.update", n, body={"patch": {"tags": ["x"]}}, **fields)


def an_append(n: int = 1, **fields: Any) -> Delivery:
    known = {"reply": False, "body": {"entry": "hi"}}
    return delivered("timeline.append", n, **known | fields)


def a_decider(**options: Any) -> Decider:
    return Decider(Grants(derived_key(SECRET)), Policy(KINDS), **options)


def a_batch() -> Batch:
    return Batch(0, BatchLimits(), NOW)


Answer = Any | Callable[[Command], Any]


class FakeWire(LaneConnection):
    """
    Answers by the first word of a command, or by the name of its script.

    An answer is a value, a function of the command, or an error to raise.

    Attributes:
        sent: the commands so far, scripts by name.
    """

    def __init__(self, **answers: Answer) -> None:
        self.owner = OWNER
        self.answers = answers
        self.sent: list[Command] = []
        self.opened = 0
        self._open = True

    @property
    def connected(self) -> bool:
        return self._open

    async def reopen(self) -> None:
        self.opened += 1
        self._open = True

    async def close(self) -> None:
        self._open = False

    async def exchange(
        self, commands: Sequence[Command], *, timeout_s: float = 0.0
    ) -> list[Any]:
        return [self._answer(command) for command in commands]

    def words(self) -> list[str]:
        return [str(command[0]) for command in self.sent]

    def _answer(self, command: Command) -> Any:
        if command[0] == "EVALSHA":
            command = (_NAMES[str(command[1])], *command[3:])
        if command[0] == "groups":
            return self._groups(command[1:])
        if command[0] == "claim" and "claim" not in self.answers:
            return [0, b""] * ((len(command) - 7) // 3)
        self.sent.append(command)
        answer = self.answers.get(str(command[0]))
        if isinstance(answer, Exception) and not isinstance(answer, ResponseError):
            raise answer
        return answer(command) if callable(answer) else answer

    def _groups(self, arguments: Sequence[Any]) -> list[int]:
        """
        As the script: the groups one by one, those that exist are no error.
        """
        streams = len(arguments) // 2
        group, *starts = arguments[streams:]
        made = [
            self._answer(("XGROUP", "CREATE", stream, group, start, "MKSTREAM"))
            for stream, start in zip(arguments[:streams], starts, strict=True)
        ]
        return [0 if isinstance(reply, ResponseError) else 1 for reply in made]

"""
Faults on demand for the next commands of the MADs on a bus in memory.

A fault happens on the way to the lanes or on the way back, as in production, so the
code under test meets it through the unchanged SDK.
"""

from collections.abc import Callable, Sequence

import msgspec

from everbus.bus import keys
from everbus.bus.errors import ERRORS, EverbusError, Invalid
from everbus.bus.messages import (
    COMMAND_FIELD,
    Envelope,
    Reply,
    pack,
    unpack,
    unpack_envelope,
    unpack_reply,
)
from everbus.gateway.lane.delivery import KINDS

_WAKE = b"eb:wake:"


class Fault(msgspec.Struct):
    """
    One planned fault, for the next *left* commands that fit.

    Attributes:
        code: error code for the sender; empty: no reply at all.
        kind: only commands of this kind; empty: of any that wants a reply.
        mad: only commands of this MAD; empty: of any.
        applied: whether the lane still applies the command.
        details: fields of the error.
    """

    code: str
    kind: str = ""
    mad: str = ""
    applied: bool = False
    left: int = 1
    details: dict[str, object] = {}

    def fits(self, envelope: Envelope, mad: str) -> bool:
        """
        Whether this command fits.
        """
        return (
            self.left > 0
            and envelope.reply
            and self.kind in ("", envelope.kind)
            and self.mad in ("", mad)
        )


class FaultPlan:
    """
    The faults that have not happened yet, the oldest first.

    Args:
        tell: publishes a message on a channel.
        drop: removes a key.
    """

    def __init__(
        self, tell: Callable[[str, bytes], None], drop: Callable[[str], None]
    ) -> None:
        self._tell = tell
        self._drop = drop
        self._faults: list[Fault] = []
        # Command id → the fault of its reply, and the reply's stream.
        self._befallen: dict[str, tuple[Fault, str]] = {}

    def add(self, fault: Fault) -> None:
        """
        Plan *fault*.

        Raises:
            Invalid: no error has its code, or no command is of its kind.
        """
        if fault.code and fault.code not in ERRORS:
            known = ", ".join(sorted(ERRORS))
            raise Invalid(f"no error has the code {fault.code!r}; one of {known}")
        if fault.kind and fault.kind not in KINDS:
            known = ", ".join(sorted(KINDS))
            raise Invalid(f"no command is of the kind {fault.kind!r}; one of {known}")
        self._faults.append(fault)

    @property
    def left(self) -> int:
        """
        How many commands planned faults still wait for.
        """
        return sum(fault.left for fault in self._faults)

    def on_command(self, mad: str, words: list[bytes]) -> list[bytes]:
        """
        The XADD to the ingress of *mad* without its lost commands; has no fields if
        all are lost.
        """
        if not self._faults:
            return words
        kept: list[bytes] = words[:2]
        rest = words[2:]
        while rest and rest[0] != COMMAND_FIELD:
            kept.append(rest.pop(0))
        for packed in rest[1::2]:
            envelope = unpack_envelope(packed)
            fault = self._find(envelope, mad)
            if fault is None or self._strike(fault, envelope, mad, words[1]):
                kept += (COMMAND_FIELD, packed)

        return kept

    def on_message(self, channel: bytes, message: bytes) -> bytes:
        """
        The *message* for subscribers of *channel*, with faults applied.
        """
        if not self._befallen or not channel.startswith(_WAKE):
            return message
        carried = unpack(message, list)

        return pack([one for one in map(self._replaced, carried) if one is not None])

    def _find(self, envelope: Envelope, mad: str) -> Fault | None:
        return next((f for f in self._faults if f.fits(envelope, mad)), None)

    def _strike(
        self, fault: Fault, envelope: Envelope, mad: str, ingress: bytes
    ) -> bool:
        """
        Let *fault* happen; whether the command goes on to its lane.
        """
        fault.left -= 1
        if fault.left <= 0:
            self._faults.remove(fault)
        if fault.applied:
            partition = int(ingress.partition(b"{")[2].partition(b"}")[0])
            stream = keys.reply(partition, mad, envelope.id, envelope.wake)
            self._befallen[envelope.id] = (fault, stream)
        elif fault.code:
            instance = envelope.wake or envelope.id.partition(".")[0]
            refusal = _refusal(fault, envelope.id)
            self._tell(keys.wake(mad, instance), pack([pack(refusal)]))

        return fault.applied

    def _replaced(self, carried: object) -> object:
        """
        The replacement of a carried reply; None: nothing.
        """
        identifier = carried
        if isinstance(carried, bytes):
            identifier = unpack_reply(carried).id
        if not isinstance(identifier, str) or identifier not in self._befallen:
            return carried
        fault, stream = self._befallen.pop(identifier)
        self._drop(stream)

        return pack(_refusal(fault, identifier)) if fault.code else None


def _refusal(fault: Fault, identifier: str) -> Reply:
    kind: type[EverbusError] = ERRORS[fault.code]
    details = {"command_id": identifier} if fault.code == "timeout" else {}

    return Reply(
        id=identifier,
        code=fault.code,
        message=f"{kind.__name__}, as the test wants it",
        details=details | fault.details,
    )


def fields_in(words: Sequence[bytes]) -> bool:
    """
    Whether an XADD has any field to add.
    """
    return COMMAND_FIELD in words

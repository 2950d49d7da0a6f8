"""
One command that waits to be on the bus.
"""

import msgspec

from bus.codec import pack, pack_envelope
from bus.messages import MAX_COMMAND_BYTES, Envelope

# Below this a request's remaining time is not worth packing it again.
DEADLINE_GRAIN_S = 0.05
# Under this epoch a process sends what an earlier one left on disk. No lease gets
# that far, so the loss of the earlier one, whichever its epoch was, refuses none.
AFTERLIFE = 2**31
# What a grant may take; those of today take half of it.
GRANT_BYTES = 512
# A smaller command keeps within the limit whatever its epoch and its grant add.
SURELY_FITS_BYTES = MAX_COMMAND_BYTES - GRANT_BYTES - 32


class Outgoing:
    """
    One command, packed when it is published.

    Attributes:
        attempted_s: unix seconds when it was first written, so that it may have
            arrived; 0.0 if it never was.
        row: its row in the spool; 0 if it has none.
        row_bytes: size of the command in that row.
        marked: whether the spool holds it for attempted.
        size: bytes on the wire, more or less.
    """

    __slots__ = (
        "_epoch",
        "_grant",
        "_packed",
        "_signed",
        "attempted_s",
        "envelope",
        "expires_at",
        "marked",
        "row",
        "row_bytes",
        "size",
    )

    def __init__(
        self,
        envelope: Envelope,
        expires_at: float | None = None,
        *,
        signed: bool = False,
    ) -> None:
        """
        Pack it; *signed* means that its grant is for it alone and has to stay.
        """
        self.envelope = envelope
        self.expires_at = expires_at
        self.attempted_s = 0.0
        self.row = 0
        self.row_bytes = 0
        self.marked = True
        self._epoch = envelope.epoch
        self._grant = envelope.grant
        self._signed = signed
        self._packed = pack(envelope)
        self.size = len(self._packed)

    @property
    def attempted(self) -> bool:
        """
        Whether it was ever written.
        """
        return self.attempted_s > 0.0

    def check_size(self) -> None:
        """
        Accept it if it keeps within the limit, under any epoch and grant.

        Raises:
            TooLarge: it exceeds MAX_COMMAND_BYTES.
        """
        epoch = AFTERLIFE if self.envelope.epoch else 0
        grant = self.envelope.grant if self._signed else bytes(GRANT_BYTES)
        pack_envelope(msgspec.structs.replace(self.envelope, epoch=epoch, grant=grant))

    def packed(self, now: float, epoch: int, grant: bytes = b"") -> bytes:
        """
        The wire form, under *epoch*, and under *grant* unless it is signed; a request's
        deadline is what is left of its time at *now*.

        A request whose caller has given up still travels, since its number must
        not be missing, but with no time left: it is answered and not applied.
        """
        if self._signed:
            grant = self._grant
        if self._epoch != epoch or self._grant != grant:
            self._stamp(epoch, grant)
        if self.expires_at is None:
            return self._packed
        left_ms = max(0, int((self.expires_at - now) * 1000))
        told_ms = self.envelope.deadline_ms or 0
        if left_ms > 0 and told_ms - left_ms <= DEADLINE_GRAIN_S * 1000:
            return self._packed
        return pack(msgspec.structs.replace(self.envelope, deadline_ms=left_ms))

    def _stamp(self, epoch: int, grant: bytes) -> None:
        if self._epoch != AFTERLIFE:
            self._epoch = epoch
        self._grant = grant
        self.envelope = msgspec.structs.replace(
            self.envelope, epoch=self._epoch, grant=self._grant
        )
        self._packed = pack(self.envelope)

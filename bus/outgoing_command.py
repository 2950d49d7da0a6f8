"""
One command before it is on the bus.
"""

import msgspec

from everbus.bus.messages import MAX_COMMAND_BYTES, Envelope, pack, pack_envelope

# A smaller change of the remaining time is not worth a second encoding.
DEADLINE_GRAIN_S = 0.05
# Epoch of commands that an earlier process left on disk. No lease counts that far, so
# the loss of the earlier process, whatever its epoch, refuses none of them.
INHERITED_EPOCH = 2**31
# Largest grant; today's grants take half of it.
GRANT_BYTES = 1536
# A smaller command stays within the limit with any epoch and grant.
SURELY_FITS_BYTES = MAX_COMMAND_BYTES - GRANT_BYTES - 32


class OutgoingCommand:
    """
    One command, encoded when it is published.

    Attributes:
        again: whether it was written more than once, so it may have arrived before.
        attempted_s: unix seconds of the first write, since when it may have arrived;
            0.0 if it was never written.
        row: its row in the spool; 0 without one.
        row_bytes: size of the command in that row.
        instance: the publisher instance that counts it.
        n: its number in that count and its partition; 0 for a free id.
        marked: whether the spool records it as attempted.
        size: approximate bytes on the wire.
    """

    __slots__ = (
        "_epoch",
        "_grant",
        "_packed",
        "_signed",
        "again",
        "attempted_s",
        "envelope",
        "expires_at",
        "instance",
        "marked",
        "n",
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
        Encode it; a *signed* command keeps its grant, which is for it alone.
        """
        self.envelope = envelope
        self.expires_at = expires_at
        self.again = False
        self.attempted_s = 0.0
        self.row = 0
        self.row_bytes = 0
        self.marked = True
        self.instance = ""
        self.n = 0
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
        Accept the command if it stays within the limit under any epoch and grant.

        Raises:
            TooLarge: it exceeds MAX_COMMAND_BYTES.
        """
        epoch = INHERITED_EPOCH if self.envelope.epoch else 0
        grant = self.envelope.grant if self._signed else bytes(GRANT_BYTES)
        pack_envelope(msgspec.structs.replace(self.envelope, epoch=epoch, grant=grant))

    def packed(self, now: float, epoch: int, grant: bytes = b"") -> bytes:
        """
        The wire form with *epoch*, and with *grant* unless it is signed; a request's
        deadline is its remaining time at *now*.

        A request whose caller has given up is still sent, since its number must not
        be missing, but with no time left: it is answered and not applied.
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
        if self._epoch != INHERITED_EPOCH:
            self._epoch = epoch
        self._grant = grant
        self.envelope = msgspec.structs.replace(
            self.envelope, epoch=self._epoch, grant=self._grant
        )
        self._packed = pack(self.envelope)

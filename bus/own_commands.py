"""
Commands without a reply under ids of the caller's own, until they are known as settled.

They have no number that a manager could tell as settled. So each is sent once more,
with a reply: the ledger gives the first reply if the first one arrived, and if the
bus lost it, the second one has its effect.
"""

import msgspec

from everbus.bus.errors import Invalid, Overloaded
from everbus.bus.messages import Envelope

MAX_COMMANDS = 10_000
MAX_BYTES = 8 * 1024 * 1024


class OwnCommands:
    """
    The commands of one client, in the order in which they were published.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Envelope, int]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def crowded(self) -> bool:
        """
        Whether half of the room is taken.
        """
        return 2 * len(self._kept) > MAX_COMMANDS or 2 * self._bytes > MAX_BYTES

    def check(self, command_id: str) -> None:
        """
        Accept a command under *command_id*.

        Raises:
            Invalid: one is kept under this id; its body may be another one.
            Overloaded: MAX_COMMANDS or MAX_BYTES are kept.
        """
        if command_id in self._kept:
            raise Invalid(
                f"a command under {command_id} may not be settled yet; await "
                "flush(settled=True) first",
                field="command_id",
            )
        if len(self._kept) >= MAX_COMMANDS or self._bytes >= MAX_BYTES:
            raise Overloaded(
                f"{len(self._kept)} commands ({self._bytes} bytes) under ids of your "
                f"own may not be settled; the limit is {MAX_COMMANDS} ({MAX_BYTES} "
                "bytes). Await flush(settled=True) before you go on",
                waiting=len(self._kept),
                limit=MAX_COMMANDS,
            )

    def keep(self, envelope: Envelope, partition: int) -> None:
        """
        Keep a command that is on its way to the bus.
        """
        self._kept[envelope.id] = (envelope, partition)
        self._bytes += len(envelope.body)

    def some(self, most: int) -> list[tuple[Envelope, int]]:
        """
        The first *most* of them, as they are to be sent once more.
        """
        first = list(self._kept.values())[:most]

        return [
            (msgspec.structs.replace(envelope, reply=True), partition)
            for envelope, partition in first
        ]

    def settled(self, command_id: str) -> None:
        """
        Forget a command; it may be unknown.
        """
        kept = self._kept.pop(command_id, None)
        if kept is not None:
            self._bytes -= len(kept[0].body)

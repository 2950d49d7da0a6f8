"""
Instances that come into sessions and leave them, staged until the commit.
"""

from collections.abc import Iterable, Sequence

from everbus.bus.messages import COMMAND_FIELD, Envelope, pack_envelope
from everbus.bus.wire import Argument
from everbus.gateway.lane.delivery import MAX_ENTRY_COMMANDS, Delivery
from everbus.handlers.commands import (
    AddParticipant,
    Attachment,
    Command,
    DeleteSession,
    LostParticipant,
    RemoveParticipant,
)
from everbus.handlers.participants import is_over

# The kinds that attach or detach instances.
MOVING = frozenset(
    {"participant.add", "participant.remove", "participant.lost", "session.delete"}
)


class Attachments:
    """
    Staged attachments, fences and commands that follow from them.
    """

    def __init__(self) -> None:
        self._moves: dict[Attachment, bool] = {}
        self._fences: dict[str, str] = {}
        self._following: list[bytes] = []

    def __bool__(self) -> bool:
        return bool(self._moves or self._fences or self._following)

    def attach(self, attachment: Attachment) -> None:
        """
        Stage that an instance is in a session.
        """
        self._moves[attachment] = True

    def detach(self, attachments: Iterable[Attachment]) -> None:
        """
        Stage that instances left their sessions.
        """
        self._moves |= dict.fromkeys(attachments, False)

    def now(self, loaded: Sequence[Attachment], session: str) -> tuple[Attachment, ...]:
        """
        The instances in *session*, given those *loaded* for the batch.
        """
        if not self._moves:
            return tuple(loaded)
        kept = dict.fromkeys(one for one in loaded if self._moves.get(one, True))
        come = (one for one, comes in self._moves.items() if comes)
        kept |= dict.fromkeys(one for one in come if one.session == session)

        return tuple(kept)

    def fence(self, publisher: str, fences: str) -> None:
        """
        Stage the fenced epochs of a publisher.
        """
        self._fences[publisher] = fences

    def follow(self, commands: Iterable[Envelope]) -> None:
        """
        Stage commands that the gateway publishes itself, in the same commit.
        """
        self._following += map(pack_envelope, commands)

    def settle(self, delivery: Delivery, command: Command) -> None:
        """
        Stage the attachments that an applied command makes or ends.
        """
        epoch, body = delivery.envelope.epoch, command.body
        if isinstance(body, AddParticipant):
            # A MAD that adds itself by a leased instance comes in with it; one that
            # another adds has no instance there yet.
            if epoch and delivery.ordinal and body.mad == command.mad:
                instance = delivery.ordinal.instance
                self.attach(Attachment(body.mad, instance, delivery.session, epoch))
        elif isinstance(body, RemoveParticipant):
            self.detach(one for one in command.attached if one.mad == body.mad)
        elif isinstance(body, LostParticipant):
            self.detach(one for one in command.attached if is_over(one, body))
        elif isinstance(body, DeleteSession):
            self.detach(command.attached)

    def arguments(self) -> list[Argument]:
        """
        The attachments' part of the commit script's arguments.
        """
        come = [m for one, comes in self._moves.items() if comes for m in one.members]
        gone = [
            m for one, comes in self._moves.items() if not comes for m in one.members
        ]
        arguments: list[Argument] = [len(come), *come, len(gone), *gone]
        arguments.append(2 * len(self._fences))
        for publisher, fences in self._fences.items():
            arguments += (publisher, fences)
        entries = [
            self._following[first : first + MAX_ENTRY_COMMANDS]
            for first in range(0, len(self._following), MAX_ENTRY_COMMANDS)
        ]
        arguments.append(len(entries))
        for entry in entries:
            arguments.append(2 * len(entry))
            for packed in entry:
                arguments += (COMMAND_FIELD, packed)
        return arguments

"""
Which instances come into sessions and leave them, until that is committed.
"""

from collections.abc import Iterable, Sequence

from bus.codec import COMMAND_FIELD, pack_envelope
from bus.messages import Envelope
from bus.wire import Argument
from gateway.delivery import MAX_ENTRY_COMMANDS, Work
from handlers.commands import (
    AddParticipant,
    Attachment,
    Command,
    DeleteSession,
    LostParticipant,
    RemoveParticipant,
)
from handlers.participants import is_over

# The kinds by which an instance comes into a session or leaves it.
MOVING = frozenset(
    {"participant.add", "participant.remove", "participant.lost", "session.delete"}
)


class Whereabouts:
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
        Stage that instances are in their sessions no longer.
        """
        self._moves |= dict.fromkeys(attachments, False)

    def now(self, loaded: Sequence[Attachment], session: str) -> tuple[Attachment, ...]:
        """
        Who is in *session*, given who was when the batch was *loaded*.
        """
        if not self._moves:
            return tuple(loaded)
        kept = dict.fromkeys(one for one in loaded if self._moves.get(one, True))
        come = (one for one, comes in self._moves.items() if comes)
        kept |= dict.fromkeys(one for one in come if one.session == session)

        return tuple(kept)

    def fence(self, publisher: str, fences: str) -> None:
        """
        Stage which epochs of a publisher are over.
        """
        self._fences[publisher] = fences

    def follow(self, commands: Iterable[Envelope]) -> None:
        """
        Stage commands that the gateway gives itself, in the same step.
        """
        self._following += map(pack_envelope, commands)

    def settle(self, work: Work, command: Command) -> None:
        """
        Stage what a command that is applied means for who is where.
        """
        envelope, body = work.envelope, command.body
        if isinstance(body, AddParticipant):
            # Who lets itself in by a leased instance comes in; who is let in by
            # another has no instance there yet.
            if envelope and envelope.epoch and work.ordinal and body.mad == command.mad:
                instance = work.ordinal.instance
                self.attach(
                    Attachment(body.mad, instance, envelope.session, envelope.epoch)
                )
        elif isinstance(body, RemoveParticipant):
            self.detach(one for one in command.attached if one.mad == body.mad)
        elif isinstance(body, LostParticipant):
            self.detach(one for one in command.attached if is_over(one, body))
        elif isinstance(body, DeleteSession):
            self.detach(command.attached)

    def arguments(self) -> list[Argument]:
        """
        Their part of the commit script's arguments.
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

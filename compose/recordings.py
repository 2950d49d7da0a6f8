"""
Recorded conversations: one JSON object per line, all checked before the replay.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from everbus.bus.errors import Invalid, Rejection
from everbus.bus.messages import (
    MAX_COMMAND_BYTES,
    check_json,
    check_name,
    check_session_id,
    pack,
)
from everbus.bus.principal_names import check_short_name
from everbus.compose.exit_codes import USAGE, Failed

MAX_ROLES = 32  # each is a MAD, and a MAD holds three connections
MAX_MESSAGE_BYTES = MAX_COMMAND_BYTES - 16 * 1024  # envelope and token travel too
_WANTED = '{"conversation_id": "c1", "user_id": "ada", "messages": [{"role": "user"}]}'

Message = dict[str, Any]  # JSON values


class Run(msgspec.Struct, frozen=True):
    """
    Successive messages of one role.
    """

    role: str
    messages: tuple[Message, ...]


class Recording(msgspec.Struct, frozen=True):
    """
    One conversation, and the session of its replay.
    """

    conversation_id: str
    user_id: str
    session_id: str
    messages: tuple[Message, ...]

    @property
    def roles(self) -> list[str]:
        """
        The roles, in the order of their first messages.
        """
        return list(dict.fromkeys(message["role"] for message in self.messages))

    def runs(self) -> Iterator[Run]:
        """
        The messages in order, split where the role changes.
        """
        for role, messages in groupby(self.messages, lambda message: message["role"]):
            yield Run(role, tuple(messages))


class _Line(msgspec.Struct, frozen=True):
    conversation_id: str
    user_id: str
    messages: tuple[Message, ...]


def roles_of(recordings: Sequence[Recording]) -> list[str]:
    """
    The roles in *recordings*.
    """
    return list(dict.fromkeys(r for recording in recordings for r in recording.roles))


def read_recordings(
    path: Path, suffix: str, limit: int | None = None
) -> list[Recording]:
    """
    The first *limit* conversations in the file *path*.

    Args:
        suffix: a session's id is `<conversation_id>-<suffix>`.

    Raises:
        Failed: the file cannot be read, or a line is no conversation; it names the
            line and the reason.
    """
    recordings: dict[str, Recording] = {}
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if len(recordings) == limit:
                    break
                if line.strip():
                    recording = _recording(f"{path}, line {number}", line, suffix)
                    _check_new(f"{path}, line {number}", recording, recordings)
                    recordings[recording.conversation_id] = recording
    except OSError as error:
        raise Failed(
            f"{path}: {error.strerror}; wanted a readable file", USAGE
        ) from error
    found = list(recordings.values())
    _check_all(path, found)

    return found


def _recording(where: str, line: bytes, suffix: str) -> Recording:
    try:
        read = msgspec.json.decode(line, type=_Line)
        recording = Recording(
            read.conversation_id,
            check_name(read.user_id, "user_id"),
            check_session_id(f"{read.conversation_id}-{suffix}"),
            read.messages,
        )
        _check_messages(recording.messages)
    except (
        msgspec.MsgspecError,
        UnicodeDecodeError,
        RecursionError,
        Rejection,
    ) as error:
        raise Failed(
            f"{where}: {error}. Correct or delete the line; wanted is {_WANTED}", USAGE
        ) from error
    return recording


def _check_messages(messages: Sequence[Message]) -> None:
    if not messages:
        raise Invalid("messages is empty", field="messages")
    for n, message in enumerate(messages):
        field = f"messages[{n}]"
        check_short_name(message.get("role", ""), f"{field}.role")
        check_json(message, field)
        size = len(pack(message))
        if size > MAX_MESSAGE_BYTES:
            raise Invalid(
                f"{field} is {size} bytes; at most {MAX_MESSAGE_BYTES}", field=field
            )


def _check_new(where: str, recording: Recording, known: dict[str, Recording]) -> None:
    if recording.conversation_id in known:
        raise Failed(
            f"{where}: conversation_id {recording.conversation_id!r} stands twice; "
            "give each conversation its own",
            USAGE,
        )


def _check_all(path: Path, recordings: Sequence[Recording]) -> None:
    roles = roles_of(recordings)
    if not recordings:
        raise Failed(
            f"{path}: no conversation in it; wanted lines like {_WANTED}", USAGE
        )
    if len(roles) > MAX_ROLES:
        raise Failed(
            f"{path}: {len(roles)} roles, one MAD each; at most {MAX_ROLES}. "
            "Split the file",
            USAGE,
        )

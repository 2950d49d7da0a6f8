"""
The call for turns: entries and a patch of one session, all or nothing.
"""

from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Mapping
from itertools import islice
from types import TracebackType
from typing import Any

import msgspec

from everbus.bus.arguments import MAX_VALUE_BYTES, check_integer, check_patch, invalid
from everbus.bus.errors import Invalid
from everbus.bus.mad_calls import DEFAULT_TIMEOUT_S, MadCalls, without_none
from everbus.bus.messages import (
    CommittedTurn,
    Durability,
    check_json,
    check_turn,
    pack,
    unpack,
)
from everbus.bus.quotation import quoted

# Takes entries and, if there is one, a patch to the managers.
Send = Callable[[list[msgspec.Raw], msgspec.Raw | None], Awaitable[CommittedTurn]]


class _Draft:
    """
    What a turn holds before it is sent; apart, so that no turn refers to itself.
    """

    __slots__ = ("committed", "entries", "open", "patch")

    def __init__(self, entries: list[msgspec.Raw], patch: msgspec.Raw | None) -> None:
        self.entries = entries
        self.patch = patch
        self.open = True
        self.committed: CommittedTurn | None = None

    def check_open(self) -> None:
        if not self.open:
            raise Invalid(
                "this turn was sent or given up; begin another one", field="turn"
            )

    async def sent(self, send: Send) -> CommittedTurn:
        self.check_open()
        self.open = False
        self.committed = await send(self.entries, self.patch)

        return self.committed


class Turn(Coroutine[Any, Any, CommittedTurn]):
    """
    One turn before it is sent: await it, or fill it in a block.

    In `async with` it is sent at the end of the block, and not at all after an
    exception. It is one command, whatever is in it. A coroutine, so that tasks take it
    as any other call.
    """

    def __init__(
        self, entries: list[msgspec.Raw], patch: msgspec.Raw | None, send: Send
    ) -> None:
        self._draft = _Draft(entries, patch)
        self._sending = self._draft.sent(send)

    @property
    def committed(self) -> CommittedTurn | None:
        """
        The turn as it was committed; None before.
        """
        return self._draft.committed

    def append(self, entry: Any) -> None:
        """
        Add *entry* behind the others.

        Raises:
            Invalid: not a JSON value, or the turn was sent.
        """
        self._draft.check_open()
        check_json(entry, "entry")
        self._draft.entries.append(_as_it_is_now(entry))

    def update(self, patch: Mapping[str, Any]) -> None:
        """
        Give the turn its *patch*; a turn has one.

        Raises:
            Invalid: not a JSON object; or the turn has a patch, or was sent.
        """
        self._draft.check_open()
        if self._draft.patch is not None:
            raise Invalid(
                "the turn has a patch already; make one of both", field="patch"
            )
        self._draft.patch = _as_it_is_now(check_patch(patch))

    async def __aenter__(self) -> "Turn":
        self._draft.check_open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.close()
        elif self._draft.open:
            await self._sending

    def __await__(self) -> Generator[Any, Any, CommittedTurn]:
        self._draft.check_open()
        return self._sending.__await__()

    def send(self, value: Any, /) -> Any:
        """
        As of a coroutine.
        """
        return self._sending.send(value)

    def throw(self, *error: Any) -> Any:
        """
        As of a coroutine.
        """
        return self._sending.throw(*error)

    def close(self) -> None:
        """
        As of a coroutine: a turn that is not sent yet never is.
        """
        self._draft.open = False
        self._sending.close()


class TurnCalls(MadCalls):
    """
    Take turns in sessions.
    """

    def turn(
        self,
        session_id: str,
        entries: Iterable[Any] = (),
        patch: Mapping[str, Any] | None = None,
        *,
        expected_version: int | None = None,
        expected_last_seq: int | None = None,
        turn_id: str | None = None,
        command_id: str | None = None,
        durability: Durability = "hot",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Turn:
        """
        Append *entries* and merge *patch*, all or nothing; the version rises by one.

        `await mad.turn(…)`, or `async with mad.turn(…) as turn:` with `turn.append(…)`
        and `turn.update(…)`, which sends it at the end of the block. It is one command
        of about 256 KiB at most: a MAD that dies before it is sent leaves nothing.

        Args:
            entries: JSON values, in their order; 256 at most (the managers'
                EVERBUS_TURN_MAX_ENTRIES).
            patch: as of `update_session`.
            expected_version: the turn is refused unless the session has this version.
            expected_last_seq: the turn is refused unless this is the session's last
                seq; 0: the timeline is empty.
            turn_id: what the entries carry as `turn`, as a command's id; default: the
                id of this command.

        Raises:
            VersionConflict: it has another version or last seq; see
                `.current_version` and `.current_last_seq`.
            Invalid: no entries and no patch; or one is invalid.
            Forbidden: the principal may not change the session, or its ACL.
            TooLarge: too many entries or bytes, or as `update_session`.
        """
        # Here and not when it is awaited: so are all other calls refused.
        self._requests.check()
        conditions = without_none(
            expected_last_seq=None
            if expected_last_seq is None
            else check_integer(expected_last_seq, "expected_last_seq"),
            turn=None if turn_id is None else check_turn(turn_id),
        )

        async def send(
            appended: list[msgspec.Raw], merged: msgspec.Raw | None
        ) -> CommittedTurn:
            body: dict[str, Any] = {"entries": appended} if appended else {}
            if merged is not None:
                body["patch"] = merged
            reply = await self._ask(
                *("session.turn", session_id, body | conditions, timeout),
                expected_version,
                command_id=command_id,
                durability=durability,
            )
            committed: CommittedTurn = unpack(reply.body, CommittedTurn)

            return committed

        return Turn(
            _checked_entries(entries),
            None if patch is None else _as_it_is_now(check_patch(patch)),
            send,
        )


def _checked_entries(entries: Iterable[Any]) -> list[msgspec.Raw]:
    # Text and objects are iterable as well, and are one entry each.
    if isinstance(entries, str | bytes | Mapping) or not isinstance(entries, Iterable):
        raise invalid("entries", f"is {quoted(entries)}; wanted a list of JSON values")
    # An iterator of somebody's own may have no end.
    listed = list(islice(entries, MAX_VALUE_BYTES + 1))
    for n, entry in enumerate(listed):
        check_json(entry, f"entries[{n}]")

    return [_as_it_is_now(entry) for entry in listed]


def _as_it_is_now(value: Any) -> msgspec.Raw:
    """
    The checked value, encoded: the caller may use its object for the next entry.
    """
    return msgspec.Raw(pack(value))

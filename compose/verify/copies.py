"""
Hot against warm against cold: whether the copies of one session agree.

Reads only, while the bus goes on. A hot copy moves between two reads, so a difference
counts only if it is still there when both were read again.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from everbus.bus.errors import EverbusError
from everbus.bus.messages import Session, TimelineEntry, unpack
from everbus.compose.verify.commits import CommandIds
from everbus.compose.verify.sequences import Numbering
from everbus.compose.verify.violations import Kind, Violation, Violations
from everbus.gateway.sealing.cipher import SealBroken
from everbus.gateway.store.cold.archives import Archives
from everbus.gateway.store.cold.manifest import Manifest
from everbus.gateway.store.hot_copy import Found
from everbus.gateway.store.tiers import Corrupted, WarmSession
from everbus.gateway.store.warm_roles import WarmSessions
from everbus.handlers.history import state_of

PAGE = 1000
# Reads of a session whose copies differ, before the difference counts.
TRIES = 3


class HotCopy(NamedTuple):
    """
    A session in Redis.

    Attributes:
        found: what its keys say; `Found(None)` if it is not hot.
        durable: the version and the seq that MongoDB is said to hold.
        refused: whether MongoDB refused some of it: known, and in the dead letters.
        damage: why it cannot be decoded; empty: it can.
        tombstone: whether its deletion is noted.
    """

    found: Found = Found(None)
    durable: tuple[int, int] = (0, 0)
    refused: bool = False
    damage: str = ""
    tombstone: bool = False


ReadHot = Callable[[str], Awaitable[HotCopy]]
OpenEntries = Callable[[str, datetime, Sequence[bytes]], list[bytes]]
# Whether the producers' records say that a command is settled; None: unknown.
IsSettled = Callable[[str], bool | None]


class _Difference(NamedTuple):
    kind: Kind
    number: int
    detail: str


class CopyCheck:
    """
    Checks sessions one by one, in memory that no session's length bounds but that of
    its command ids: one bit each.
    """

    def __init__(
        self,
        warm: WarmSessions,
        archives: Archives | None,
        hot: ReadHot,
        is_settled: IsSettled,
        violations: Violations,
        *,
        opened: OpenEntries | None = None,
    ) -> None:
        """
        *opened* opens sealed timeline entries; None without encryption.
        """
        self._opened = opened
        self._warm = warm
        self._archives = archives
        self._hot = hot
        self._is_settled = is_settled
        self._violations = violations

    async def check(self, session_id: str) -> bool:
        """
        Check one session; whether any tier has it.

        Raises:
            Unavailable: a tier is away.
        """
        try:
            return await self._check(session_id)
        except SealBroken as error:
            self._note(session_id, "damaged", f"MongoDB or archive: {error.message}")
        return True

    async def _check(self, session_id: str) -> bool:
        hot, warm, differences = await self._agreed(session_id)
        for one in differences:
            self._note(session_id, one.kind, one.detail, one.number)
        if warm is not None:
            await _WarmCheck(self, warm, hot).run()
        return warm is not None or hot.found.session is not None or bool(hot.damage)

    async def _agreed(
        self, session_id: str
    ) -> tuple[HotCopy, WarmSession | None, list[_Difference]]:
        """
        Both copies, and the differences that stay.
        """
        for _ in range(TRIES):
            # MongoDB may go on in between, and the hot copy is never behind it.
            warm = (await self._warm.sessions([session_id])).get(session_id)
            hot = await self._hot(session_id)
            differences = list(_differences(hot, warm))
            if not differences:
                break
        return hot, warm, differences

    def _note(
        self, session_id: str, kind: Kind, detail: str, number: int = 0, by: str = ""
    ) -> None:
        self._violations.note(Violation(kind, session_id, detail, number, by))


def _differences(hot: HotCopy, warm: WarmSession | None) -> Iterable[_Difference]:
    if hot.damage:
        yield _Difference("damaged", 0, f"the hot copy: {hot.damage}")
        return
    session = hot.found.session
    if session is None:
        return
    yield from _within_hot(hot, session)
    if warm is None and any(hot.durable):
        yield _Difference("lost", hot.durable[0], "said to be in MongoDB, and is not")
    elif warm is not None and warm.session.created_at == session.created_at:
        yield from _between(hot, session, warm.session)


def _within_hot(hot: HotCopy, session: Session) -> Iterable[_Difference]:
    version, seq = hot.durable
    if hot.tombstone:
        yield _Difference("unequal", session.version, "hot, and noted as deleted")
    if version > session.version or seq > session.last_seq:
        detail = f"durable up to {version}, {seq}, beyond {_place(session)}"
        yield _Difference("unequal", version, detail)


def _between(hot: HotCopy, session: Session, there: Session) -> Iterable[_Difference]:
    version, seq = hot.durable
    if there.version < version or there.last_seq < seq:
        detail = f"MongoDB is said to hold {version}, {seq} and holds {_place(there)}"
        yield _Difference("lost", version, detail)
    if there.version > session.version or there.last_seq > session.last_seq:
        detail = f"hot at {_place(session)}, MongoDB at {_place(there)}"
        yield _Difference("stale", there.version, detail)
    same = there.version == session.version and there.state == session.state
    if same and state_of(there) != state_of(session):
        fields = [n for n, v in state_of(session).items() if state_of(there)[n] != v]
        yield _Difference("unequal", there.version, f"hot and warm: {fields}")


def _place(session: Session) -> str:
    return f"version {session.version}, seq {session.last_seq}"


class _WarmCheck:
    """
    One session's history in MongoDB and in its archive.
    """

    def __init__(self, owner: CopyCheck, warm: WarmSession, hot: HotCopy) -> None:
        self._owner = owner
        self._tier = owner._warm  # noqa: SLF001 - one check in two classes
        self._session = warm.session
        self._document = warm
        self._tail = _by_seq(hot.found.session)
        # An append to a dormant session resumes it: one step, and one entry.
        self._changes = CommandIds()
        self._appends = CommandIds()
        self._latest = ("", "", 0)

    async def run(self) -> None:
        await self._versions()
        manifest = await self._archive()
        if self._session.state == "archived":
            return
        first = 1
        if manifest is not None and self._document.unrestored:
            first = manifest.last_seq + 1
        await self._entries(first)

    async def _versions(self) -> None:
        session, numbering, after = self._session, Numbering(), (0, 0)
        while True:
            events = await self._tier.events(
                session.id, session.created_at, after, PAGE
            )
            for event in events:
                if (event.version, event.notices) > (session.version, session.notices):
                    # A remnant of a dead branch, which nobody reads.
                    continue
                if event.patch is not None:
                    self._number(numbering, event.version, "version")
                self._command(self._changes, event.command_id, event.mad, event.version)
            if not events or events[-1].version >= session.version:
                break
            after = (events[-1].version, events[-1].notices)
        if numbering.last < session.version:
            self._missing("event", "version", numbering.last)

    async def _entries(self, first: int) -> None:
        session, numbering = self._session, Numbering(first - 1)
        while first <= session.last_seq:
            last = min(first + PAGE - 1, session.last_seq)
            where = (session.id, session.created_at, first, last)
            packed = await self._tier.entries(*where)
            found = [self._entry(numbering, one) for one in packed]
            entries = {entry.seq: entry for entry in found if entry is not None}
            for seq, (command, _) in (await self._tier.appended_by(*where)).items():
                self._append(entries.get(seq), command, seq)
            first = last + 1
        if numbering.last < session.last_seq:
            self._missing("entry", "seq", numbering.last)

    def _append(self, entry: TimelineEntry | None, command: str, seq: int) -> None:
        """
        Check the command of an entry. The neighbours in a turn have the same one; a
        turn that was taken twice shows by its change.
        """
        author, turn = ("", "") if entry is None else (entry.author, entry.turn)
        if not turn or self._latest != (command, author, seq - 1):
            self._command(self._appends, command, author, seq)
        self._latest = command, author, seq

    def _entry(self, numbering: Numbering, packed: bytes) -> TimelineEntry | None:
        try:
            entry: TimelineEntry = unpack(packed, TimelineEntry)
            packed = self._open(packed)
        except SealBroken as error:
            self._note("damaged", error.message, entry.seq)
        except msgspec.ValidationError as error:
            self._note("damaged", f"an entry after seq {numbering.last}: {error}")
            return None
        self._number(numbering, entry.seq, "seq")
        hot = self._tail.get(entry.seq)
        if hot is not None and bytes(hot) != bytes(packed):
            self._note("unequal", "the entry differs, hot and warm", entry.seq)
        return entry

    def _open(self, packed: bytes) -> bytes:
        opened = self._owner._opened  # noqa: SLF001
        if opened is None:
            return packed
        return opened(self._session.id, self._session.created_at, [packed])[0]

    def _number(self, numbering: Numbering, number: int, what: str) -> None:
        before = numbering.last
        kind = numbering.see(number)
        if kind is not None:
            self._note(kind, f"{what} {number} follows {before}", number)

    def _missing(self, what: str, number: str, last: int) -> None:
        self._note("gap", f"no {what} after {number} {last}", last)

    def _command(
        self, known: CommandIds, command_id: str, mad: str, number: int
    ) -> None:
        if not command_id:
            return
        if not known.add(command_id, mad):
            self._note("doubled", "two effects of one command", number, command_id)
        if self._owner._is_settled(command_id) is False:  # noqa: SLF001
            detail = "in MongoDB, and its producer's number is not settled"
            self._note("unequal", detail, number, command_id)

    async def _archive(self) -> Manifest | None:
        archives, document = self._owner._archives, self._document  # noqa: SLF001
        if not document.pointer:
            if self._session.state == "archived":
                self._note("lost", "archived, and nothing says where")
            return None
        if archives is None:
            return None
        try:
            return await self._verified(archives)
        except Corrupted as error:
            self._note("damaged", f"archive: {error.message}")
        except EverbusError as error:
            if error.code == "unavailable":
                raise
            self._note("lost", f"archive: {error.message}")
        return None

    async def _verified(self, archives: Archives) -> Manifest:
        session, document = self._session, self._document
        manifest = await archives.verify(
            document.pointer, session.id, session.created_at
        )
        for index in range(len(manifest.chunks)):
            await archives.verify_chunk(manifest, index)
        if manifest.last_seq != document.through:
            detail = f"the archive ends at {manifest.last_seq}, not {document.through}"
            self._note("unequal", detail, document.through)
        return manifest

    def _note(self, kind: Kind, detail: str, number: int = 0, by: str = "") -> None:
        self._owner._note(self._session.id, kind, detail, number, by)  # noqa: SLF001


def _by_seq(session: Session | None) -> dict[int, Any]:
    tail = session.recent_timeline if session is not None else ()
    return {unpack(bytes(one), TimelineEntry).seq: one for one in tail}

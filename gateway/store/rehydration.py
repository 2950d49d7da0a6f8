"""
Rehydration: loads sessions from the warm tier, and returns them from the cold one.

To return a session, a reader reads and verifies its archive, then swaps the stub in the
warm tier for the whole document, if the stub is unchanged. So one of many readers does
it, a late one does nothing, and a crash leaves the stub or the session. The archive
stays; its entries come back later, see `archiver`.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any

import msgspec
import structlog

from everbus.bus.errors import EverbusError, Unavailable
from everbus.bus.messages import Session, pack
from everbus.gateway.store.cold.archives import Archives
from everbus.gateway.store.cold.manifest import Manifest, corrupted
from everbus.gateway.store.cold.verified import alarm
from everbus.gateway.store.drain_wait import DrainWait
from everbus.gateway.store.hot_copy import Record
from everbus.gateway.store.tiers import WarmSession
from everbus.gateway.store.timeline import NO_VAULT, Opened, Timeline
from everbus.gateway.store.warm_roles import WarmTier
from everbus.handlers.outcomes import Event
from everbus.handlers.patches import HOT_BYTES, RECENT_ENTRIES, trimmed

log = structlog.get_logger()

# Each holds a document and a chunk in memory, and S3 is slow, not busy.
RETURNS_AT_ONCE = 8
TAILS_AT_ONCE = 16
# A stub changes under its reader if others return it, or archive it again.
TRIES = 5
# Entries are written before their document, so only a concurrent purge makes a reader
# wait.
TAIL_CATCH_UP_S = 1.0
# What the state may still grow by while it is hot, see `handlers.patches`.
_GROWTH_BYTES = 64

Loaded = Session | EverbusError | None
# Which stub: archived again, a session has other moves, or another pointer.
_Stub = tuple[str, str, int]


class Rehydration:
    """
    Loads sessions from the tiers below, ready to become hot.

    Args:
        now: the time, for the audit.
        fail: passed at "return_fetched" (verified, nothing changed yet) and
            "return_swapped" (the session is active again).
    """

    def __init__(
        self,
        warm: WarmTier,
        vault: Archives | None,
        timeline: Timeline,
        now: Callable[[], datetime],
        fail: Callable[[str], object],
    ) -> None:
        self._warm = warm
        self._vault = vault
        self._timeline = timeline
        self._now = now
        self._fail = fail
        self._tails = asyncio.Semaphore(TAILS_AT_ONCE)
        self._turns = asyncio.Semaphore(RETURNS_AT_ONCE)
        self._returning: dict[_Stub, asyncio.Task[Loaded]] = {}

    async def loaded(self, warm_session: WarmSession) -> Loaded:
        """
        The session with its recent timeline, packed, or the error.

        Concurrent calls for one stub return it once; that goes on when they are
        cancelled.
        """
        if warm_session.archival_status == "ACTIVE":
            return await _outcome(self._with_tail(warm_session), warm_session)
        stub = (warm_session.session.id, warm_session.pointer, warm_session.moves)
        task = self._returning.get(stub)
        if task is None:
            task = asyncio.create_task(
                _outcome(self._in_turn(warm_session), warm_session)
            )
            self._returning[stub] = task
            task.add_done_callback(lambda _: self._returning.pop(stub, None))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """
        Cancel returns in progress; each has happened or not.
        """
        tasks = list(self._returning.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _in_turn(self, stub: WarmSession) -> Session | None:
        async with self._turns:
            return await self._returned(stub)

    async def _returned(self, stub: WarmSession) -> Session | None:
        """
        The session of *stub*, made active by this reader or another.
        """
        for _ in range(TRIES):
            session = await self._swapped(stub)
            if session is not None:
                return session
            there = await self._warm.sessions([stub.session.id])
            warm_session = there.get(stub.session.id)
            if warm_session is None:
                return None
            if warm_session.archival_status == "ACTIVE":
                return await self._with_tail(warm_session)
            stub = warm_session
        raise Unavailable(
            f"session {stub.session.id} was archived anew {TRIES} times while it was "
            "to return; try again later"
        )

    async def _swapped(self, stub: WarmSession) -> Session | None:
        """
        Put the archived document in the place of *stub*; None if it has changed.
        """
        began = time.monotonic()
        archive, whole = await self._fetched(stub)
        # Read before anything changes: a damaged chunk keeps the stub a stub.
        session = await self._tailed(whole.session, archive)
        self._fail("return_fetched")
        # The audit first: written once by its id, however often it is tried.
        await self._warm.write([_audit(stub, self._now())])
        if not await self._warm.swap(stub, whole):
            return None
        self._fail("return_swapped")
        log.info(
            "session.rehydrated",
            session=session.id,
            version=session.version,
            entries=session.last_seq,
            archive_bytes=stub.bytes,
            duration_ms=round((time.monotonic() - began) * 1000, 1),
        )
        return session

    async def _fetched(self, stub: WarmSession) -> tuple[Opened, WarmSession]:
        """
        The stub's archive and the new warm session, verified.

        Raises:
            Corrupted: the archive is damaged, or belongs to another session.
        """
        if self._vault is None:
            raise Unavailable(
                f"session {stub.session.id} is in the cold tier, and {NO_VAULT}"
            )
        manifest = await self._vault.open(
            stub.pointer, stub.session.id, stub.session.created_at
        )
        session, context = await self._vault.document(manifest)
        _check_same(stub, manifest, session)
        whole = msgspec.structs.replace(
            stub,
            session=session,
            full_context=context,
            archival_status="ACTIVE",
            moves=stub.moves + 1,
            unpurged=False,
            # A purge may have been half done.
            unrestored=stub.through > 0,
        )
        return Opened(manifest, stub.through), whole

    async def _with_tail(self, warm_session: WarmSession) -> Session:
        async with self._tails:
            return await self._tailed(warm_session.session, None)

    async def _tailed(self, session: Session, archive: Opened | None) -> Session:
        bare = msgspec.structs.replace(session, recent_timeline=(), full_context=None)
        first = max(1, session.last_seq - RECENT_ENTRIES + 1)
        entries = await self._timeline.tail(
            bare, first, DrainWait(TAIL_CATCH_UP_S), archive
        )
        room = HOT_BYTES - len(pack(bare)) - _GROWTH_BYTES
        tail = trimmed(tuple(entries), room)

        return msgspec.structs.replace(bare, recent_timeline=tail)


async def _outcome(
    loading: Coroutine[Any, Any, Session | None], warm_session: WarmSession
) -> Loaded:
    """
    The result of *loading* or its error: a failure of one session stays its own.
    """
    try:
        return await loading
    except EverbusError as error:
        return error
    except Exception as error:
        log.exception("load.failed", session=warm_session.session.id)
        return Unavailable(f"the tiers below failed: {type(error).__name__}")


def _check_same(stub: WarmSession, manifest: Manifest, session: Session) -> None:
    """
    Accept an archive of the stub's own session.

    Raises:
        Corrupted: it is of another session, generation or time.
    """
    there = stub.session
    if _counts(session) != _counts(there) or manifest.last_seq != stub.through:
        with alarm(stub.pointer):
            raise corrupted(
                stub.pointer,
                f"holds version {session.version} with {manifest.last_seq} entries, "
                f"not version {there.version} with {stub.through} of {there.id}",
            )


def _counts(session: Session) -> tuple[object, ...]:
    generation = (session.id, session.created_at)

    return (*generation, session.version, session.last_seq, session.notices)


def _audit(stub: WarmSession, now: datetime) -> Record:
    session = stub.session
    archive = hashlib.sha256(stub.pointer.encode()).hexdigest()[:32]
    event = Event(
        kind="session.rehydrated",
        command_id=f"return.{archive}.{stub.moves}",
        mad="gateway",
        principal="gateway",
        version=session.version,
        seq=session.last_seq,
        notices=session.notices,
        at=now,
    )
    return Record(
        session=session.id,
        created_at=session.created_at,
        version=session.version,
        last_seq=session.last_seq,
        last_active=session.last_active,
        notices=session.notices,
        events=(event,),
    )

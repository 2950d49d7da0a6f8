"""
How sessions come up: from the warm tier as they are, from the cold one by returning.

To return, the session's archive is read and verified, then the stub in the warm tier
gives way to the whole document, if it still is that stub. So of any number of
readers one does it, a late one does nothing, and a crash leaves the stub or the
session. The archive stays; its entries come back later, see `archiver`.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any

import msgspec
import structlog

from bus.codec import pack
from bus.errors import EverbusError, Unavailable
from bus.messages import Session
from gateway.store.catchup import CatchUp
from gateway.store.cold.archive import Manifest, corrupted
from gateway.store.cold.vault import Vault
from gateway.store.cold.verified import alarm
from gateway.store.outbox import Record
from gateway.store.tiers import Held, WarmTier
from gateway.store.timeline import NO_VAULT, Opened, Timeline
from handlers.outcomes import Event
from handlers.session import HOT_BYTES, RECENT_ENTRIES, trimmed

log = structlog.get_logger()

# Each holds a document and a chunk in memory, and S3 is slow, not busy.
RETURNS_AT_ONCE = 8
TAILS_AT_ONCE = 16
# A stub changes under its reader if others return it, or archive it once more.
TRIES = 5
# Entries are written before the document that tells of them: nothing is awaited,
# but a purge that goes on meanwhile.
TAIL_CATCH_UP_S = 1.0
# What the state may still grow by while it is hot, see `handlers.session`.
_GROWTH_BYTES = 64

Loaded = Session | EverbusError | None
# Which stub: archived again, a session has other moves, or another pointer.
_Stub = tuple[str, str, int]


class Returning:
    """
    Makes what the tiers below hold ready to become hot.

    Args:
        now: the time, for the audit.
        fail: passed at "return_fetched" (verified, nothing changed yet) and
            "return_swapped" (the session is active again).
    """

    def __init__(
        self,
        warm: WarmTier,
        vault: Vault | None,
        timeline: Timeline,
        now: Callable[[], datetime],
        fail: Callable[[str], None],
    ) -> None:
        self._warm = warm
        self._vault = vault
        self._timeline = timeline
        self._now = now
        self._fail = fail
        self._tails = asyncio.Semaphore(TAILS_AT_ONCE)
        self._turns = asyncio.Semaphore(RETURNS_AT_ONCE)
        self._returning: dict[_Stub, asyncio.Task[Loaded]] = {}

    async def loaded(self, held: Held) -> Loaded:
        """
        The session with its recent timeline, packed, or why it cannot be had.

        However many ask at once for a stub, it returns once; it goes on to do so
        when they are cancelled.
        """
        if held.archival_status == "ACTIVE":
            return await _told(self._with_tail(held), held)
        stub = (held.session.id, held.pointer, held.moves)
        task = self._returning.get(stub)
        if task is None:
            task = asyncio.create_task(_told(self._in_turn(held), held))
            self._returning[stub] = task
            task.add_done_callback(lambda _: self._returning.pop(stub, None))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """
        Return nothing more; what is under way has happened or has not.
        """
        tasks = list(self._returning.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _in_turn(self, stub: Held) -> Session | None:
        async with self._turns:
            return await self._returned(stub)

    async def _returned(self, stub: Held) -> Session | None:
        """
        The session of *stub*, active again by this reader's doing or another's.
        """
        for _ in range(TRIES):
            session = await self._swapped(stub)
            if session is not None:
                return session
            there = await self._warm.sessions([stub.session.id])
            held = there.get(stub.session.id)
            if held is None:
                return None
            if held.archival_status == "ACTIVE":
                return await self._with_tail(held)
            stub = held
        raise Unavailable(
            f"session {stub.session.id} was archived anew {TRIES} times while it was "
            "to return; try again later"
        )

    async def _swapped(self, stub: Held) -> Session | None:
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

    async def _fetched(self, stub: Held) -> tuple[Opened, Held]:
        """
        The stub's archive and what the warm tier is to hold, verified.

        Raises:
            Corrupted: the archive is damaged, or not that of this very session.
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

    async def _with_tail(self, held: Held) -> Session:
        async with self._tails:
            return await self._tailed(held.session, None)

    async def _tailed(self, session: Session, archive: Opened | None) -> Session:
        bare = msgspec.structs.replace(session, recent_timeline=(), full_context=None)
        first = max(1, session.last_seq - RECENT_ENTRIES + 1)
        entries = await self._timeline.tail(
            bare, first, CatchUp(TAIL_CATCH_UP_S), archive
        )
        room = HOT_BYTES - len(pack(bare)) - _GROWTH_BYTES
        tail = trimmed(tuple(entries), room)

        return msgspec.structs.replace(bare, recent_timeline=tail)


async def _told(loading: Coroutine[Any, Any, Session | None], held: Held) -> Loaded:
    """
    What *loading* comes to, its error included: one session's fault is its own.
    """
    try:
        return await loading
    except EverbusError as error:
        return error
    except Exception as error:
        log.exception("load.failed", session=held.session.id)
        return Unavailable(f"the tiers below failed: {type(error).__name__}")


def _check_same(stub: Held, manifest: Manifest, session: Session) -> None:
    """
    Accept an archive of the very session that the stub stands for.

    Raises:
        Corrupted: it is of another session, life or time.
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
    life = (session.id, session.created_at)

    return (*life, session.version, session.last_seq, session.notices)


def _audit(stub: Held, now: datetime) -> Record:
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

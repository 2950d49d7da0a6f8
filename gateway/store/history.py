"""
The history of a session: its state at a version, its changes, its checkpoints.

All of it is in the warm tier, also for an archived session; reads wait for recent
commits.
"""

from typing import Any

import structlog

from everbus.bus.errors import Invalid, NotFound, Unavailable
from everbus.bus.messages import Checkpoint, Difference, Session, SessionChange, pack
from everbus.gateway.store.drain_wait import DrainWait
from everbus.gateway.store.read_bound import PAGE_BYTES, ReadBound, fitting
from everbus.gateway.store.tiers import Corrupted
from everbus.gateway.store.warm_roles import WarmSessions
from everbus.gateway.telemetry import metrics
from everbus.handlers.fetch_requests import ChangesBetween, StateAt
from everbus.handlers.history import difference, digest, first_of, replayed, state_of
from everbus.handlers.patches import merge

log = structlog.get_logger()

# Highest number of steps in one read of a store, or in one difference.
STEPS = 1000
# Stores make a full one at least after every twenty incremental ones.
LINKS = 25

State = dict[str, Any]  # JSON values


class SessionHistory:
    """
    The history of all sessions.
    """

    def __init__(self, warm: WarmSessions, page_bytes: int = PAGE_BYTES) -> None:
        self._warm = warm
        self._page_bytes = page_bytes

    async def at(
        self, session: Session, wanted: StateAt, catch_up: DrainWait
    ) -> Session:
        """
        The session with the state it had at that version.

        Raises:
            Invalid: it never had that version.
            Unavailable: the warm tier is away, or the archiver too far behind.
        """
        _check_version(session, wanted.version, wanted.current)

        return await self._at(session, wanted.version, catch_up)

    async def between(
        self, session: Session, wanted: ChangesBetween, catch_up: DrainWait
    ) -> Difference:
        """
        The difference between two versions, in either order.

        Raises: as `at`.
        """
        ends = (wanted.from_version, wanted.to_version)
        for version in ends:
            _check_version(session, version, wanted.current)
        before, after = [await self._at(session, end, catch_up) for end in ends]
        low, high = min(ends), max(ends)
        changes = await self._newest_steps(session, max(low, high - STEPS), high)
        if changes is None:
            raise _behind(session, high)
        earliest = changes[0].version - 1 if changes else low

        return Difference(
            from_version=wanted.from_version,
            to_version=wanted.to_version,
            patch=difference(state_of(before), state_of(after)),
            changes=tuple(changes),
            next=earliest if earliest > low else None,
        )

    async def checkpoint(
        self, session: Session, checkpoint_id: str, catch_up: DrainWait
    ) -> State:
        """
        The state of a checkpoint, as at its creation.

        Raises:
            NotFound: the session has no such checkpoint.
            Corrupted: its state, or that of a parent, differs from its digest.
            Unavailable: the warm tier is away.
        """
        state: State = {}
        for link, kept in reversed(await self._chain(session, checkpoint_id, catch_up)):
            state = kept if link.kind == "full" else merge(state, kept)
            if digest(state) != link.sha256:
                raise _corrupted(session, link.id, "is not what was kept")
        return state

    async def _at(self, session: Session, version: int, catch_up: DrainWait) -> Session:
        found = await catch_up.first(lambda: self._rebuilt(session, version))
        if found is None:
            raise _behind(session, version)
        return found

    async def _rebuilt(self, session: Session, version: int) -> Session | None:
        """
        The session at *version*, from the nearest kept state and the steps behind
        it; None if not all of them are in the warm tier yet.
        """
        base = await self._warm.snapshot(session.id, session.created_at, version)
        reached = base.version if base is not None else 0
        while reached < version:
            through = min(version, reached + STEPS)
            changes = await self._steps(session, reached, through)
            if changes is None:
                return None
            if base is None:
                base = first_of(session.id, session.created_at, changes.pop(0))
            base = replayed(base, changes)
            reached = base.version
        return base

    async def _steps(
        self, session: Session, after: int, through: int
    ) -> list[SessionChange] | None:
        """
        The steps to versions *after* + 1 to *through*, or the first of them that are
        large enough together; None if one is not there yet.
        """
        found = await self._warm.changes(
            session.id, session.created_at, after, through, ReadBound(self._page_bytes)
        )
        versions = [change.version for change in found]
        whole = versions == list(range(after + 1, after + 1 + len(found)))

        return list(found) if found and whole else None

    async def _newest_steps(
        self, session: Session, after: int, through: int
    ) -> list[SessionChange] | None:
        """
        The steps to versions *after* + 1 to *through*, ascending: the newest ones that
        fit on a page; None if one is not there yet.
        """
        if after >= through:
            return []
        bound = ReadBound(self._page_bytes, newest_first=True)
        found = await self._warm.changes(
            session.id, session.created_at, after, through, bound
        )
        versions = [change.version for change in found]
        if not found or versions != list(range(versions[0], through + 1)):
            return None
        if versions[0] > after + 1 and sum(map(_size, found)) < self._page_bytes:
            return None
        newest = fitting(reversed(found), _size, self._page_bytes)

        return newest[::-1]

    async def _chain(
        self, session: Session, checkpoint_id: str, catch_up: DrainWait
    ) -> list[tuple[Checkpoint, State]]:
        """
        The checkpoint and its parents, down to a full one.
        """

        async def kept(identifier: str) -> tuple[Checkpoint, State] | None:
            return await self._warm.checkpoint(
                session.id, session.created_at, identifier
            )

        found = await catch_up.first(lambda: kept(checkpoint_id))
        if found is None:
            raise NotFound(
                f"session {session.id} has no checkpoint {checkpoint_id}",
                checkpoint=checkpoint_id,
            )
        chain = [found]
        while found[0].kind == "incremental":
            parent = found[0].parent
            found = await kept(parent)
            if found is None or len(chain) == LINKS:
                raise _corrupted(session, checkpoint_id, f"has lost {parent} below it")
            chain.append(found)
        return chain


def _size(change: SessionChange) -> int:
    return len(pack(change))


def _check_version(session: Session, version: int, current: int) -> None:
    if not 1 <= version <= current:
        raise Invalid(
            f"session {session.id} has no version {version}; 1 to {current}",
            field="version",
        )


def _behind(session: Session, version: int) -> Unavailable:
    return Unavailable(
        f"version {version} of {session.id} is not in the warm tier yet: the archiver "
        "is behind. Try again later"
    )


def _corrupted(session: Session, checkpoint_id: str, what: str) -> Corrupted:
    metrics.CORRUPTED.inc()
    log.error("checkpoint.corrupted", session=session.id, checkpoint=checkpoint_id)
    return Corrupted(
        f"checkpoint {checkpoint_id} of {session.id} {what}; restore another one",
        checkpoint=checkpoint_id,
    )

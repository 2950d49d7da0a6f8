"""
What a session was: its state at a version, what led there, its checkpoints.

All of it is in the warm tier, also for a session that was archived; what was just
committed is waited for.
"""

from typing import Any

import structlog

from bus.errors import Invalid, NotFound, Unavailable
from bus.messages import Checkpoint, Difference, Session, SessionChange
from gateway import metrics
from gateway.store.catchup import CatchUp
from gateway.store.tiers import Corrupted, WarmTier
from handlers.history import difference, digest, first_of, replayed, state_of
from handlers.session import merge
from handlers.wanted import ChangesBetween, StateAt

log = structlog.get_logger()

# The most steps that a store is asked for at once, or that a difference shows.
STEPS = 1000
# Stores make a full one at least after every twenty incremental ones.
LINKS = 25

State = dict[str, Any]  # JSON values


class Past:
    """
    The history of all sessions.
    """

    def __init__(self, warm: WarmTier) -> None:
        self._warm = warm

    async def at(self, session: Session, wanted: StateAt, catch_up: CatchUp) -> Session:
        """
        The session with the state it had at that version.

        Raises:
            Invalid: it never had that version.
            Unavailable: the warm tier is away, or the archiver too far behind.
        """
        _check_version(session, wanted.version, wanted.current)

        return await self._at(session, wanted.version, catch_up)

    async def between(
        self, session: Session, wanted: ChangesBetween, catch_up: CatchUp
    ) -> Difference:
        """
        What leads from the one version to the other, which may be the earlier one.

        Raises: as `at`.
        """
        ends = (wanted.from_version, wanted.to_version)
        for version in ends:
            _check_version(session, version, wanted.current)
        before, after = [await self._at(session, end, catch_up) for end in ends]
        low, high = min(ends), max(ends)
        changes = await self._steps(session, max(low, high - STEPS), high)
        if changes is None:
            raise _behind(session, high)

        return Difference(
            from_version=wanted.from_version,
            to_version=wanted.to_version,
            patch=difference(state_of(before), state_of(after)),
            changes=tuple(changes),
        )

    async def checkpoint(
        self, session: Session, checkpoint_id: str, catch_up: CatchUp
    ) -> State:
        """
        The state that a checkpoint keeps, as it was when it was made.

        Raises:
            NotFound: the session has no such checkpoint.
            Corrupted: the state, or one that it builds upon, is not what was kept.
            Unavailable: the warm tier is away.
        """
        state: State = {}
        for link, kept in reversed(await self._chain(session, checkpoint_id, catch_up)):
            state = kept if link.kind == "full" else merge(state, kept)
            if digest(state) != link.sha256:
                raise _corrupted(session, link.id, "is not what was kept")
        return state

    async def _at(self, session: Session, version: int, catch_up: CatchUp) -> Session:
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
            reached = through
        return base

    async def _steps(
        self, session: Session, after: int, through: int
    ) -> list[SessionChange] | None:
        """
        The steps to versions *after* + 1 to *through*; None if one is not there yet.
        """
        if after >= through:
            return []
        life = session.created_at
        found = list(await self._warm.changes(session.id, life, after, through))
        versions = [change.version for change in found]

        return found if versions == list(range(after + 1, through + 1)) else None

    async def _chain(
        self, session: Session, checkpoint_id: str, catch_up: CatchUp
    ) -> list[tuple[Checkpoint, State]]:
        """
        The checkpoint and those that it builds upon, down to a full one.
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

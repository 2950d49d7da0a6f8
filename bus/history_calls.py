"""
The calls for a session's past: versions, differences, checkpoints.
"""

from typing import Literal

from bus.calls import DEFAULT_TIMEOUT_S, Calls, given, session_in
from bus.codec import unpack
from bus.messages import (
    Checkpoint,
    CheckpointPage,
    Difference,
    Durability,
    Session,
)


class HistoryCalls(Calls):
    """
    Read what a session was, keep what it is, and bring it back.
    """

    async def session_at(
        self, session_id: str, version: int, *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> Session:
        """
        The session as it was at *version*, without timeline and full context.

        Raises:
            NotFound: it has no such version.
        """
        body = {"version": version}

        return session_in(await self._ask("session.at", session_id, body, timeout))

    async def diff(
        self,
        session_id: str,
        from_version: int,
        to_version: int,
        *,
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Difference:
        """
        What changed between two versions, and who changed it.

        Raises:
            NotFound: it has no such version.
            Invalid: the first version is later than the second.
        """
        body = {"from_version": from_version, "to_version": to_version}
        reply = await self._ask("session.diff", session_id, body, timeout)
        difference: Difference = unpack(reply.body, Difference)

        return difference

    async def create_checkpoint(
        self,
        session_id: str,
        *,
        name: str = "",
        kind: Literal["full", "incremental"] = "full",
        durability: Durability = "warm",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Checkpoint:
        """
        Keep the session's present state; its version does not move.

        Args:
            name: text for people, at most 64 characters.
            kind: incremental keeps only what differs from the checkpoint before.
        """
        body = {"name": name, "kind": kind}
        reply = await self._ask(
            "checkpoint.create", session_id, body, timeout, durability=durability
        )
        checkpoint: Checkpoint = unpack(reply.body, Checkpoint)

        return checkpoint

    async def checkpoints(
        self,
        session_id: str,
        *,
        before: str | None = None,
        limit: int = 100,
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> CheckpointPage:
        """
        The session's checkpoints, newest first.

        Args:
            before: the `next` of the page before.
            limit: 1 to 1,000.
        """
        body = given(before=before, limit=limit)
        reply = await self._ask("checkpoint.list", session_id, body, timeout)
        page: CheckpointPage = unpack(reply.body, CheckpointPage)

        return page

    async def restore_checkpoint(
        self,
        session_id: str,
        checkpoint_id: str,
        *,
        expected_version: int | None = None,
        durability: Durability = "hot",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Session:
        """
        Bring context summary, work in progress, tags and fields back to a
        checkpoint's, as a new version; owner, ACL and participants stay.

        Raises:
            NotFound: there is no such checkpoint.
            VersionConflict: the session has another version than expected.
        """
        return session_in(
            await self._ask(
                "checkpoint.restore",
                session_id,
                {"checkpoint_id": checkpoint_id},
                timeout,
                expected_version,
                durability=durability,
            )
        )

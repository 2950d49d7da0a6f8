"""
The calls for a session's history: versions, differences, checkpoints.
"""

from typing import Literal

from everbus.bus.arguments import (
    check_choice,
    check_integer,
    check_limit,
    check_optional_text,
    check_text,
)
from everbus.bus.mad_calls import DEFAULT_TIMEOUT_S, MadCalls, without_none
from everbus.bus.messages import (
    Checkpoint,
    CheckpointPage,
    Difference,
    Durability,
    Session,
    unpack,
)
from everbus.bus.session_calls import session_in

KINDS = frozenset({"full", "incremental"})


class HistoryCalls(MadCalls):
    """
    Read old versions of a session, make checkpoints and restore them.
    """

    async def session_at(
        self, session_id: str, version: int, *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> Session:
        """
        The session at *version* (from 1), without timeline and full context.

        Raises:
            NotFound: it has no such version.
        """
        body = {"version": check_integer(version, "version")}

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
        The changes between two versions, with their authors.

        Raises:
            NotFound: it has no such version.
            Invalid: the first version is later than the second.
        """
        body = {
            "from_version": check_integer(from_version, "from_version"),
            "to_version": check_integer(to_version, "to_version"),
        }
        reply = await self._ask("session.diff", session_id, body, timeout)
        difference: Difference = unpack(reply.body, Difference)

        return difference

    async def create_checkpoint(
        self,
        session_id: str,
        *,
        name: str = "",
        kind: Literal["full", "incremental"] = "full",
        command_id: str | None = None,
        durability: Durability = "warm",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Checkpoint:
        """
        Store the session's current state; its version does not change.

        Args:
            name: text for people, at most 64 characters.
            kind: `incremental` stores only the difference to the previous checkpoint.
        """
        check_optional_text(name=name)
        body = {"name": name, "kind": check_choice(kind, "kind", KINDS)}
        reply = await self._ask(
            *("checkpoint.create", session_id, body, timeout),
            command_id=command_id,
            durability=durability,
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
            before: the `next` of the previous page.
            limit: 1 to 1,000.
        """
        check_optional_text(before=before)
        body = without_none(before=before, limit=check_limit(limit))
        reply = await self._ask("checkpoint.list", session_id, body, timeout)
        page: CheckpointPage = unpack(reply.body, CheckpointPage)

        return page

    async def restore_checkpoint(
        self,
        session_id: str,
        checkpoint_id: str,
        *,
        expected_version: int | None = None,
        command_id: str | None = None,
        durability: Durability = "hot",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Session:
        """
        Restore context summary, work in progress, tags and fields from a checkpoint,
        as a new version if they differ; owner, ACL and participants stay.

        Raises:
            NotFound: there is no such checkpoint.
            VersionConflict: the session has another version than expected.
        """
        return session_in(
            await self._ask(
                "checkpoint.restore",
                session_id,
                {"checkpoint_id": check_text(checkpoint_id, "checkpoint_id")},
                timeout,
                expected_version,
                command_id=command_id,
                durability=durability,
            )
        )

"""
The calls for whole sessions, from creation to deletion.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec
import uuid_utils

from everbus.bus.arguments import (
    check_choice,
    check_flag,
    check_limit,
    check_optional_text,
    check_optional_time,
    check_patch,
)
from everbus.bus.derived_ids import user_session_id
from everbus.bus.errors import AlreadyExists, Invalid
from everbus.bus.mad_calls import DEFAULT_TIMEOUT_S, MadCalls, without_none
from everbus.bus.messages import (
    STATES,
    Durability,
    Durable,
    Reply,
    Session,
    SessionPage,
    State,
    Stats,
    TimelineEntry,
    check_name,
    unpack,
)


class SessionCalls(MadCalls):
    """
    Create, read, update, suspend, delete and find sessions.
    """

    async def create_session(
        self,
        user_id: str,
        *,
        session_id: str | None = None,
        command_id: str | None = None,
        durability: Durability = "hot",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Session:
        """
        Create a session owned by *user_id*, at version 1.

        Args:
            session_id: an id of your choice; default: a fresh UUIDv7.
            command_id: needs a *session_id*, so that a repetition names the same one.

        Raises:
            AlreadyExists: a session has this id.
            Forbidden: the token's role may not create sessions for this user.
        """
        if command_id is not None and session_id is None:
            raise Invalid(
                "a command_id without a session_id would create another session each "
                "time; choose both",
                field="session_id",
            )
        chosen = str(uuid_utils.uuid7()) if session_id is None else session_id
        body = {"user_id": check_name(user_id, "user_id")}

        return await self._created(
            chosen, body, timeout, durability, command_id=command_id
        )

    async def get_or_create_session(
        self,
        user_id: str,
        *,
        command_id: str | None = None,
        durability: Durability = "hot",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Session:
        """
        The one session of *user_id* whose id is derived from tenant and user name;
        created if it does not exist.

        Idempotent: concurrent callers get the same session.

        Raises:
            Forbidden: the principal may not use this session.
        """
        check_name(user_id, "user_id")
        tenant = await self._requests.tenant(timeout)
        chosen = user_session_id(tenant, user_id)
        body = {"user_id": user_id, "or_get": True}

        return await self._created(
            chosen, body, timeout, durability, command_id=command_id
        )

    async def get_session(
        self,
        session_id: str,
        *,
        full: bool = False,
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Session:
        """
        The session after all commands that this instance published before.

        Args:
            full: include `full_context`, which only MongoDB holds.

        Raises:
            NotFound: there is no such session.
            Unavailable: it is not hot, and the tier that holds it is away.
        """
        body = {"full": check_flag(full, "full")}

        return session_in(await self._ask("session.get", session_id, body, timeout))

    async def update_session(
        self,
        session_id: str,
        patch: Mapping[str, Any],
        *,
        expected_version: int | None = None,
        command_id: str | None = None,
        durability: Durability = "hot",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Session:
        """
        Merge *patch* (RFC 7396) into the session; its version rises by one.

        Returns the session after the change.

        Args:
            patch: over `acl`, `context_summary`, `fields`, `full_context`, `tags`
                and `work_in_progress`.
            expected_version: the command is refused unless the session has this
                version.

        Raises:
            VersionConflict: it has another version; see `.current_version`.
            Invalid: a field is unknown, protected or of a wrong type.
            TooLarge: the hot state would exceed 48 KiB, or the full context 8 MiB.
        """
        return session_in(
            await self._ask(
                "session.update",
                session_id,
                {"patch": check_patch(patch)},
                timeout,
                expected_version,
                command_id=command_id,
                durability=durability,
            )
        )

    def update_later(
        self,
        session_id: str,
        patch: Mapping[str, Any],
        *,
        expected_version: int | None = None,
        durability: Durability = "hot",
    ) -> str:
        """
        Merge *patch* as `update_session`, without waiting; return the command's id.

        Keeps its place among this instance's commands, and waits in the spool if there
        is one. A later refusal, also for the version, becomes a dead letter; `outcome`
        reports it.

        Raises:
            Overloaded: as in `append`.
            Invalid: *patch* is not a JSON object.
        """
        return self._requests.publish(
            "session.update",
            session_id,
            {"patch": check_patch(patch)},
            expected_version=expected_version,
            durability=durability,
        )

    async def delete_session(
        self,
        session_id: str,
        *,
        expected_version: int | None = None,
        command_id: str | None = None,
        durability: Durability = "hot",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        """
        Delete the session for good.

        Raises:
            NotFound: there is no such session.
            VersionConflict: it has another version than *expected_version*.
        """
        await self._ask(
            "session.delete",
            session_id,
            {},
            timeout,
            expected_version,
            command_id=command_id,
            durability=durability,
        )

    async def suspend_session(
        self,
        session_id: str,
        *,
        expected_version: int | None = None,
        command_id: str | None = None,
        durability: Durability = "warm",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Session:
        """
        Suspend the session: `dormant`, and out of Redis when MongoDB holds it.

        Idempotent; the next change resumes the session.
        """
        return session_in(
            await self._ask(
                "session.suspend",
                session_id,
                {},
                timeout,
                expected_version,
                command_id=command_id,
                durability=durability,
            )
        )

    async def resume_session(
        self,
        session_id: str,
        *,
        expected_version: int | None = None,
        command_id: str | None = None,
        durability: Durability = "hot",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Session:
        """
        Resume a dormant session; idempotent.
        """
        return session_in(
            await self._ask(
                "session.resume",
                session_id,
                {},
                timeout,
                expected_version,
                command_id=command_id,
                durability=durability,
            )
        )

    async def durable(
        self,
        session_id: str,
        *,
        wait: bool = False,
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Durable:
        """
        How much of the session MongoDB holds.

        Args:
            wait: wait until MongoDB holds all commits before this call.
        """
        body = {"wait": check_flag(wait, "wait")}
        reply = await self._ask("session.durable", session_id, body, timeout)
        durable: Durable = unpack(reply.body, Durable)

        return durable

    async def list_sessions(
        self,
        *,
        owner: str | None = None,
        participant: str | None = None,
        state: State | None = None,
        tag: str | None = None,
        text: str | None = None,
        active_since: datetime | None = None,
        active_before: datetime | None = None,
        cursor: str | None = None,
        limit: int = 100,
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> SessionPage:
        """
        Sessions that match all filters, latest activity first.

        Only sessions that the principal owns or is in the ACL of; operators and admins
        find all. Read from MongoDB, so the latest changes may be missing.

        Args:
            text: words that occur in owner, tags, summary or fields.
            active_since: last active at this time or later.
            active_before: last active earlier than this time.
            cursor: the `next` of the previous page.
            limit: 1 to 1,000.
        """
        check_optional_text(
            owner=owner, participant=participant, tag=tag, text=text, cursor=cursor
        )
        if state is not None:
            check_choice(state, "state", STATES)
        body = without_none(
            owner=owner,
            participant=participant,
            state=state,
            tag=tag,
            text=text,
            active_since=check_optional_time(active_since, "active_since"),
            active_before=check_optional_time(active_before, "active_before"),
            cursor=cursor,
            limit=check_limit(limit),
        )
        reply = await self._requests.ask_anyone("session.list", body, timeout)
        page: SessionPage = unpack(reply.body, SessionPage)

        return page

    async def stats(self, *, timeout: float = DEFAULT_TIMEOUT_S) -> Stats:
        """
        Number of sessions; count, bytes and monthly cost per tier.

        Raises:
            Forbidden: the token is not an operator's or an admin's.
        """
        reply = await self._requests.ask_anyone("session.stats", {}, timeout)
        stats: Stats = unpack(reply.body, Stats)

        return stats

    async def _created(
        self,
        session_id: str,
        body: dict[str, Any],
        timeout: float,
        durability: str,
        *,
        command_id: str | None = None,
    ) -> Session:
        try:
            reply = await self._ask(
                *("session.create", session_id, body, timeout),
                command_id=command_id,
                durability=durability,
            )
        except AlreadyExists as error:
            if not error.details.get("settled_before"):
                raise
            # This command made it; the bus lost the reply together with its memory.
            return await self.get_session(session_id, timeout=timeout)
        return session_in(reply)


def session_in(reply: Reply) -> Session:
    """
    Session in a reply, with its recent entries as TimelineEntry.
    """
    session: Session = unpack(reply.body, Session)
    if not session.recent_timeline:
        return session
    tail = tuple(msgspec.convert(e, TimelineEntry) for e in session.recent_timeline)

    return msgspec.structs.replace(session, recent_timeline=tail)

"""
The calls for sessions as a whole: from their creation to their end.
"""

import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import uuid_utils

from bus.calls import DEFAULT_TIMEOUT_S, Calls, given, session_in
from bus.codec import unpack
from bus.messages import (
    Durability,
    Durable,
    Session,
    SessionPage,
    State,
    Stats,
    check_json,
    check_name,
)

# Namespace of the ids of "the session of a user" (RFC 9562, section 5.5).
USER_SESSIONS = uuid.UUID("6f0f0f4c-6b52-5c0e-9a3b-2f1f3a9c7d10")


class SessionCalls(Calls):
    """
    Create, read, change, suspend, end and find sessions.
    """

    async def create_session(
        self,
        user_id: str,
        *,
        session_id: str | None = None,
        durability: Durability = "hot",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Session:
        """
        Begin a session owned by *user_id*, at version 1.

        Args:
            session_id: an id of your own; default: a fresh UUIDv7.

        Raises:
            AlreadyExists: a session with that id is there.
            Forbidden: the token's role may not create one for that user.
        """
        chosen = session_id or str(uuid_utils.uuid7())
        body = {"user_id": check_name(user_id, "user_id")}

        return session_in(
            await self._ask(
                "session.create", chosen, body, timeout, durability=durability
            )
        )

    async def get_or_create_session(
        self,
        user_id: str,
        *,
        durability: Durability = "hot",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Session:
        """
        The one session of *user_id* whose id follows from the tenant and the user's
        name.

        However many call it at once, all get the same session; those whose
        token may not work with it get Forbidden.
        """
        check_name(user_id, "user_id")
        tenant = await self._requests.tenant(timeout)
        # No name has a slash, so no tenant's user shares an id with another's.
        whose = f"{tenant}/{user_id}" if tenant else user_id
        chosen = str(uuid.uuid5(USER_SESSIONS, whose))
        body = {"user_id": user_id, "or_get": True}

        return session_in(
            await self._ask(
                "session.create", chosen, body, timeout, durability=durability
            )
        )

    async def get_session(
        self,
        session_id: str,
        *,
        full: bool = False,
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Session:
        """
        The session as it is after everything this instance published before.

        Args:
            full: with its `full_context`, which only MongoDB has.

        Raises:
            NotFound: there is none.
            Unavailable: it is not hot, and the tier that has it is away.
        """
        body = {"full": full}

        return session_in(await self._ask("session.get", session_id, body, timeout))

    async def update_session(
        self,
        session_id: str,
        patch: Mapping[str, Any],
        *,
        expected_version: int | None = None,
        durability: Durability = "hot",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Session:
        """
        Merge *patch* (RFC 7396) into the session; its version rises by one.

        Args:
            patch: over `acl`, `context_summary`, `fields`, `full_context`, `tags`
                and `work_in_progress`.
            expected_version: refuse unless the session has this version.

        Raises:
            VersionConflict: it has another one; see `.current_version`.
            Invalid: a field is unknown, protected or of a wrong type.
            TooLarge: the hot state would exceed 48 KiB, or the full context 8 MiB.
        """
        check_json(dict(patch), "patch")
        return session_in(
            await self._ask(
                "session.update",
                session_id,
                {"patch": dict(patch)},
                timeout,
                expected_version,
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
        Merge *patch* as `update_session` does, fire-and-forget; the command's id.

        Returns at once, keeps its place among this instance's commands, and rests in
        the spool if there is one. What is refused later, for its version as well,
        becomes a dead letter, and `outcome` tells it.

        Raises:
            Overloaded: as in `append`.
            Invalid: *patch* is no JSON object.
        """
        check_json(dict(patch), "patch")

        return self._requests.publish(
            "session.update",
            session_id,
            {"patch": dict(patch)},
            expected_version=expected_version,
            durability=durability,
        )

    async def delete_session(
        self,
        session_id: str,
        *,
        expected_version: int | None = None,
        durability: Durability = "hot",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        """
        End the session for good.
        """
        await self._ask(
            "session.delete",
            session_id,
            {},
            timeout,
            expected_version,
            durability=durability,
        )

    async def suspend_session(
        self,
        session_id: str,
        *,
        expected_version: int | None = None,
        durability: Durability = "warm",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Session:
        """
        Let the session rest: `dormant`, and out of Redis when MongoDB holds it.

        Suspending it twice is the same as once; the next change resumes it.
        """
        return session_in(
            await self._ask(
                "session.suspend",
                session_id,
                {},
                timeout,
                expected_version,
                durability=durability,
            )
        )

    async def resume_session(
        self,
        session_id: str,
        *,
        expected_version: int | None = None,
        durability: Durability = "hot",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Session:
        """
        Wake a dormant session; of one that is awake nothing changes.
        """
        return session_in(
            await self._ask(
                "session.resume",
                session_id,
                {},
                timeout,
                expected_version,
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
            wait: until it holds all that was committed before this call.
        """
        reply = await self._ask("session.durable", session_id, {"wait": wait}, timeout)
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
        Sessions to which all given filters apply, latest activity first.

        Those are found that the principal owns or is in the ACL of; operators and
        admins find all. It is read from MongoDB, so the latest changes may not be
        in it yet.

        Args:
            text: words that are in the owner, tags, summary or fields.
            active_since: last active at this time or later.
            active_before: last active earlier than this time.
            cursor: the `next` of the page before.
            limit: 1 to 1,000.
        """
        body = given(
            owner=owner,
            participant=participant,
            state=state,
            tag=tag,
            text=text,
            active_since=active_since,
            active_before=active_before,
            cursor=cursor,
            limit=limit,
        )
        reply = await self._requests.ask_anyone("session.list", body, timeout)
        page: SessionPage = unpack(reply.body, SessionPage)

        return page

    async def stats(self, *, timeout: float = DEFAULT_TIMEOUT_S) -> Stats:
        """
        How many sessions there are, and what each tier holds and costs.

        Raises:
            Forbidden: the token is not an operator's or an admin's.
        """
        reply = await self._requests.ask_anyone("session.stats", {}, timeout)
        stats: Stats = unpack(reply.body, Stats)

        return stats

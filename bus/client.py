"""
The SDK: what a MAD's author calls.
"""

import uuid
from collections.abc import Mapping
from typing import Any

import msgspec
import structlog
import uuid_utils

from bus.codec import unpack
from bus.messages import (
    CommandOutcome,
    Reply,
    Session,
    TimelineEntry,
    TimelinePage,
    check_json,
    check_mad,
    check_name,
)
from bus.requests import Requests

log = structlog.get_logger()

DEFAULT_TIMEOUT_S = 10.0
# Namespace of the ids of "the session of a user" (RFC 9562, section 5.5).
USER_SESSIONS = uuid.UUID("6f0f0f4c-6b52-5c0e-9a3b-2f1f3a9c7d10")


class Mad:
    """
    One instance of a MAD, connected to the bus; made by `connect`.

    Every call that waits is bounded by `timeout` seconds. Writes carry an id and
    a number, so repeating one, here or on the bus, never applies it twice. When
    a call ends in ReplyTimeout its effect is unknown until `outcome` is asked.
    """

    def __init__(self, name: str, requests: Requests) -> None:
        self.name = name
        self._requests = requests
        self._ask = requests.ask

    @property
    def waiting(self) -> int:
        """
        How many commands are not on the bus yet.
        """
        return self._requests.waiting

    async def create_session(
        self,
        user_id: str,
        *,
        session_id: str | None = None,
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

        return _session(await self._ask("session.create", chosen, body, timeout))

    async def get_or_create_session(
        self, user_id: str, *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> Session:
        """
        The one session of *user_id* whose id follows from the user's name.

        However many call it at once, all get the same session; those whose
        token may not work with it get Forbidden.
        """
        chosen = str(uuid.uuid5(USER_SESSIONS, check_name(user_id, "user_id")))
        body = {"user_id": user_id, "or_get": True}

        return _session(await self._ask("session.create", chosen, body, timeout))

    async def get_session(
        self, session_id: str, *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> Session:
        """
        The session as it is after everything this instance published before.
        """
        return _session(await self._ask("session.get", session_id, {}, timeout))

    async def update_session(
        self,
        session_id: str,
        patch: Mapping[str, Any],
        *,
        expected_version: int | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Session:
        """
        Merge *patch* (RFC 7396) into the session; its version rises by one.

        Args:
            patch: over `context_summary`, `work_in_progress` and `acl`.
            expected_version: refuse unless the session has this version.

        Raises:
            VersionConflict: it has another one; see `.current_version`.
            Invalid: a field is unknown, protected or of a wrong type.
            TooLarge: the hot state would exceed 50 KB.
        """
        check_json(dict(patch), "patch")
        return _session(
            await self._ask(
                "session.update",
                session_id,
                {"patch": dict(patch)},
                timeout,
                expected_version,
            )
        )

    async def delete_session(
        self,
        session_id: str,
        *,
        expected_version: int | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        """
        End the session for good.
        """
        await self._ask("session.delete", session_id, {}, timeout, expected_version)

    async def add_participant(
        self,
        session_id: str,
        mad: str,
        *,
        role: str = "",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Session:
        """
        Let *mad* take part in the session; twice is the same as once.
        """
        body = {"mad": check_mad(mad), "role": role}

        return _session(await self._ask("participant.add", session_id, body, timeout))

    async def remove_participant(
        self, session_id: str, mad: str, *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> Session:
        """
        End the part of *mad* in the session; twice is the same as once.
        """
        body = {"mad": check_mad(mad)}

        return _session(
            await self._ask("participant.remove", session_id, body, timeout)
        )

    async def join(
        self, session_id: str, *, role: str = "", timeout: float = DEFAULT_TIMEOUT_S
    ) -> Session:
        """
        Take part in the session.
        """
        return await self.add_participant(
            session_id, self.name, role=role, timeout=timeout
        )

    async def leave(
        self, session_id: str, *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> Session:
        """
        Take part no longer.
        """
        return await self.remove_participant(session_id, self.name, timeout=timeout)

    def append(self, session_id: str, entry: Any) -> str:
        """
        Add *entry* to the timeline, fire-and-forget; returns the command's id.

        Returns at once; entries of this instance keep their order. What cannot
        be applied later (no such session, no right) becomes a dead letter.

        Args:
            entry: any JSON value of at most about 256 KiB.

        Raises:
            Overloaded: 10,000 commands or 32 MiB wait already; await flush().
            Invalid: not a JSON value, for example NaN.
        """
        return self._requests.publish("timeline.append", session_id, _entry(entry))

    async def append_and_wait(
        self, session_id: str, entry: Any, *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> int:
        """
        Add *entry* to the timeline; returns its seq once it is committed.
        """
        reply = await self._ask("timeline.append", session_id, _entry(entry), timeout)

        return int(unpack(reply.body, dict)["seq"])

    async def flush(self, *, timeout: float = DEFAULT_TIMEOUT_S) -> None:
        """
        Return when everything published so far is on the bus.

        Raises:
            Unavailable: it is not within *timeout*; it goes on trying.
        """
        await self._requests.flush(timeout)

    async def timeline(
        self,
        session_id: str,
        *,
        after: int | None = 0,
        limit: int = 100,
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> TimelinePage:
        """
        Entries behind seq *after*, at most *limit*, in ascending seq.

        Args:
            after: 0 for the beginning; None for the newest *limit* entries.
            limit: 1 to 1,000.
        """
        body = {"after": after, "limit": limit}
        reply = await self._ask("timeline.read", session_id, body, timeout)
        page: TimelinePage = unpack(reply.body, TimelinePage)

        return page

    async def outcome(
        self, command_id: str, *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> CommandOutcome:
        """
        What became of a command of this MAD, by its id.

        Exact for the ledger's horizon (10 minutes by default); a command that
        was rejected earlier than that is told as applied.
        """
        reply = await self._requests.ask_about(command_id, timeout)
        outcome: CommandOutcome = unpack(reply.body, CommandOutcome)

        return outcome


def _entry(entry: Any) -> dict[str, Any]:
    check_json(entry, "entry")
    return {"entry": entry}


def _session(reply: Reply) -> Session:
    session: Session = unpack(reply.body, Session)
    if not session.recent_timeline:
        return session
    tail = tuple(msgspec.convert(e, TimelineEntry) for e in session.recent_timeline)

    return msgspec.structs.replace(session, recent_timeline=tail)

"""
The SDK: what a MAD's author calls.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import structlog
import uuid_utils

from bus import keys
from bus.codec import pack, unpack
from bus.errors import (
    Defect,
    EverbusError,
    Forbidden,
    Invalid,
    ReplyTimeout,
    Unavailable,
    error_of,
)
from bus.messages import (
    SCHEMA,
    CommandOutcome,
    Envelope,
    Reply,
    Session,
    TimelineEntry,
    TimelinePage,
    check_json,
    check_mad,
    check_name,
    check_session_id,
)
from bus.publisher import Outgoing, Publisher
from bus.replies import Replies
from bus.settings import BusSettings
from bus.wire import Wire, WireFailed

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

    def __init__(
        self,
        name: str,
        token: str,
        publisher: Publisher,
        replies: Replies,
        partitions: int,
    ) -> None:
        self.name = name
        self._token = token
        self._publisher = publisher
        self._replies = replies
        self._partitions = partitions

    @property
    def waiting(self) -> int:
        """
        How many commands are not on the bus yet.
        """
        return self._publisher.waiting

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

        However many MADs call it at once, all get the same session.
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
        return self._publish("timeline.append", session_id, _entry(entry)).envelope.id

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
        try:
            async with asyncio.timeout(timeout):
                await self._publisher.flush()
        except TimeoutError as error:
            raise Unavailable(
                f"{self.waiting} commands are not on the bus after {timeout} s"
                f"{self._why()}; they are still being sent",
                waiting=self.waiting,
            ) from error

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
        partition = _partition_of_id(command_id, self._partitions)
        reply = await self._request(
            "request.outcome", "", {"command_id": command_id}, partition, timeout
        )
        outcome: CommandOutcome = unpack(reply.body, CommandOutcome)

        return outcome

    async def _ask(
        self,
        kind: str,
        session_id: str,
        body: dict[str, Any],
        timeout: float,
        expected_version: int | None = None,
    ) -> Reply:
        partition = keys.partition_of(check_session_id(session_id), self._partitions)

        return await self._request(
            kind, session_id, body, partition, timeout, expected_version
        )

    async def _request(
        self,
        kind: str,
        session_id: str,
        body: dict[str, Any],
        partition: int,
        timeout: float,
        expected_version: int | None = None,
    ) -> Reply:
        """
        Publish a command and return its ok reply.

        Raises:
            EverbusError: the reply's refusal, as the exception named like it.
            ReplyTimeout: none came in time; the outcome is unknown.
        """
        envelope = Envelope(
            v=SCHEMA,
            id="",
            kind=kind,
            session=session_id,
            body=msgspec.Raw(pack(body)),
            expected_version=expected_version,
            deadline_ms=int(timeout * 1000),
            token=self._token,
            reply=True,
        )
        expires_at = time.monotonic() + timeout
        outgoing = self._publisher.publish(envelope, partition, expires_at=expires_at)
        identifier = outgoing.envelope.id
        expected = self._replies.expect(partition, identifier)
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + timeout):
                reply = await expected
        except TimeoutError as error:
            raise self._overdue(kind, outgoing, timeout) from error
        finally:
            self._replies.forget(identifier)
        if reply.code != "ok":
            raise error_of(reply.code, reply.message, reply.details)
        return reply

    def _overdue(self, kind: str, outgoing: Outgoing, timeout: float) -> EverbusError:
        identifier = outgoing.envelope.id
        if not outgoing.attempted:
            return Unavailable(
                f"{kind} was not sent within {timeout} s{self._why()}; it will not be "
                "applied",
                command_id=identifier,
            )
        return ReplyTimeout(
            f"no reply to {kind} within {timeout} s{self._why()}; ask "
            f"outcome({identifier!r})",
            command_id=identifier,
        )

    def _publish(self, kind: str, session_id: str, body: dict[str, Any]) -> Outgoing:
        """
        Queue a command that wants no reply and has no deadline.
        """
        partition = keys.partition_of(check_session_id(session_id), self._partitions)
        envelope = Envelope(
            v=SCHEMA,
            id="",
            kind=kind,
            session=session_id,
            body=msgspec.Raw(pack(body)),
            token=self._token,
        )
        return self._publisher.publish(envelope, partition)

    def _why(self) -> str:
        trouble = self._publisher.trouble
        return f" ({trouble.message})" if trouble is not None else ""


@asynccontextmanager
async def connect(
    url: str | None = None,
    *,
    mad: str | None = None,
    token: str | None = None,
    timeout: float = DEFAULT_TIMEOUT_S,
) -> AsyncIterator[Mad]:
    """
    A connected MAD; leaving the block flushes what was appended, then closes.

    Without arguments it finds the bus, the name and the token in the
    environment: `EVERBUS_MAD_URL` or `EVERBUS_REDIS_URL`, `EVERBUS_MAD`,
    `EVERBUS_TOKEN`. Uses three connections, whatever the number of requests.

    Raises:
        Unavailable: no bus, or no manager has ever started on it.
        Unauthenticated: the bus refuses the URL's credentials.
        Invalid: *mad* cannot be a name.
    """
    settings = BusSettings()
    name = check_mad(mad or settings.mad)
    address = url or settings.url_for(name)
    partitions = await _introduce(address, name, timeout)
    instance = uuid_utils.uuid7().hex
    publisher = Publisher(address, name, instance, partitions)
    replies = Replies(address, name, instance)
    secret = settings.token.get_secret_value() if token is None else token
    client = Mad(name, secret, publisher, replies, partitions)
    tasks = [asyncio.create_task(part.run()) for part in (publisher, replies)]
    for task in tasks:
        task.add_done_callback(partial(_ended, publisher, replies))
    try:
        await _started(replies, timeout)
        yield client
        await client.flush(timeout=timeout)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _ended(publisher: Publisher, replies: Replies, task: asyncio.Task[None]) -> None:
    """
    End all requests when the publisher or the replies can do no more.
    """
    if task.cancelled():
        return
    error = task.exception()
    if error is not None:
        log.error("client.broken", exc_info=error)
        replies.fail(Defect(f"the client broke: {type(error).__name__}: {error}"))
    elif publisher.trouble is not None:
        replies.fail(publisher.trouble)


async def _started(replies: Replies, timeout: float) -> None:
    try:
        async with asyncio.timeout(timeout):
            await replies.started()
    except TimeoutError as error:
        raise Unavailable("the bus answers, but no channel can be opened") from error


async def _introduce(url: str, mad: str, timeout: float) -> int:
    """
    Make *mad* known where the bus lets it, and learn the number of partitions.
    """
    wire = Wire(url, name=f"mad-{mad}")
    deadline = time.monotonic() + timeout
    try:
        while True:
            config = await wire.call("HMGET", keys.CONFIG, "partitions", "schema")
            if config[0] is not None:
                break
            if time.monotonic() > deadline:
                raise Unavailable(
                    "this bus has no eb:config: no manager ever started on it. "
                    "Start `everbus manager`, or `everbus dev` for a whole stack"
                )
            await asyncio.sleep(0.1)
        await _register(wire, mad)
    finally:
        await wire.close()
    if int(config[1] or SCHEMA) < SCHEMA:
        raise Unavailable(
            f"the managers understand schema {int(config[1])}, this SDK speaks "
            f"{SCHEMA}; upgrade the managers first"
        )
    return int(config[0])


async def _register(wire: Wire, mad: str) -> None:
    """
    Enter *mad* in the list of MADs, on a bus without ACL; else `mads add` did.
    """
    try:
        if await wire.call("HSETNX", keys.MADS, mad, "{}"):
            await wire.call("PUBLISH", keys.NEWS, "mads")
    except Forbidden:
        log.debug("mad.registered_by_operator", mad=mad)
    except WireFailed:
        raise
    except Unavailable as error:
        log.warning("mad.not_registered", mad=mad, error=error.message)


def _entry(entry: Any) -> dict[str, Any]:
    check_json(entry, "entry")
    return {"entry": entry}


def _session(reply: Reply) -> Session:
    session: Session = unpack(reply.body, Session)
    if not session.recent_timeline:
        return session
    tail = tuple(msgspec.convert(e, TimelineEntry) for e in session.recent_timeline)

    return msgspec.structs.replace(session, recent_timeline=tail)


def _partition_of_id(identifier: str, partitions: int) -> int:
    parts = identifier.split(".")
    if len(parts) == 3 and parts[1].isdecimal() and int(parts[1]) < partitions:
        return int(parts[1])
    raise Invalid(f"{identifier!r} is no id that append() gave out", field="id")

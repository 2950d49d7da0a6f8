"""
Reads from the warm tier while the managers cannot answer.

The handlers and the policy are those of a lane; they run on the session in MongoDB.
Nothing is written: the tier is passed on without its writing methods, so a session in
the cold tier stays there.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, NoReturn, cast

import msgspec

from everbus.bus.client import Mad
from everbus.bus.errors import Unavailable
from everbus.bus.keys import EDGE
from everbus.bus.messages import Reply, Session, check_session_id, pack, unpack_body
from everbus.bus.requests import Requests
from everbus.gateway.identity.policy import RULES, Policy
from everbus.gateway.identity.principal import Principal
from everbus.gateway.store.cold.archives import Archives
from everbus.gateway.store.drain_wait import DrainWait
from everbus.gateway.store.pricing import Prices
from everbus.gateway.store.read_bound import PAGE_BYTES
from everbus.gateway.store.reader import Reader, utc_now
from everbus.gateway.store.sealed_copies import SealedCopies
from everbus.gateway.store.tiers import WarmSession
from everbus.gateway.store.timeline import Timeline
from everbus.gateway.store.uuid_age import made_ms
from everbus.gateway.store.warm_roles import WarmTier
from everbus.handlers.commands import Command
from everbus.handlers.patches import HOT_BYTES, RECENT_ENTRIES, trimmed
from everbus.handlers.routes import HANDLERS, Route

# Deadline of one answer; its client has already waited for the bus.
ANSWER_TIMEOUT_S = 2.0
MAX_CONCURRENT = 64
# Younger sessions may exist on the bus alone, whatever the archiver has done.
YOUNG_AGE = timedelta(hours=1)
# Only the bus can answer these.
_BUS_ONLY = frozenset({"session.durable"})
_READS = frozenset(
    {"changes", "checkpoint", "checkpoints", "counts", "entries", "find"}
    | {"first_since", "sessions", "snapshot"}
)


class ReadOnly:
    """
    A warm tier with its reading methods only.
    """

    def __init__(self, tier: WarmTier) -> None:
        self._tier = tier

    def __getattr__(self, name: str) -> Any:  # a method of WarmTier
        if name not in _READS:
            raise AttributeError(f"an edge only reads the warm tier, no {name}()")
        return getattr(self._tier, name)


class WarmReads:
    """
    Reads of one edge from the warm tier, and from the cold tier behind it.
    """

    def __init__(
        self,
        warm: WarmTier,
        archives: Archives | None = None,
        *,
        page_bytes: int = PAGE_BYTES,
        now: Callable[[], datetime] = utc_now,
        sealed: SealedCopies | None = None,
    ) -> None:
        """
        Read *warm*, and archived timeline entries in *archives*; the caller closes
        both.
        """
        self._warm = cast(WarmTier, ReadOnly(warm))
        # Without a wait: nothing new arrives while the bus is away.
        self._reader = Reader(
            self._warm,
            archives,
            Prices(),
            catch_up_s=0,
            page_bytes=page_bytes,
            sealed=sealed,
        )
        self._timeline = Timeline(self._warm, archives, sealed=sealed)
        self._policy = Policy(RULES)
        self._now = now
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)

    def mad(self, principal: Principal) -> Mad:
        """
        The SDK's calls for *principal*; writes, and reads that only the bus can
        answer, raise Unavailable.
        """
        return Mad(EDGE, WarmRequests(self, principal))

    async def probe(self) -> None:
        """
        Make an empty query, to see whether the warm tier answers.

        Raises:
            Unavailable: it does not answer.
        """
        await self._warm.sessions(["-"])

    async def answer(
        self, principal: Principal, kind: str, session_id: str, body: dict[str, Any]
    ) -> Any:
        """
        The reply of the handler of *kind*, from MongoDB's state.

        Raises:
            Unavailable: MongoDB cannot answer, lacks a young session, or takes longer
                than ANSWER_TIMEOUT_S.
            EverbusError: the refusal that a manager would give.
        """
        route = HANDLERS.get(kind)
        if route is None or route.writes or kind in _BUS_ONLY:
            raise Unavailable(f"{kind} needs the bus, which is away; try again later")
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S), self._slots:
                return await self._answer(principal, kind, route, session_id, body)
        except TimeoutError as error:
            raise Unavailable(
                f"the bus is away, and the warm tier did not answer within "
                f"{ANSWER_TIMEOUT_S:g} s"
            ) from error

    async def _answer(
        self,
        principal: Principal,
        kind: str,
        route: Route,
        session_id: str,
        body: dict[str, Any],
    ) -> Any:
        command = self._command(
            principal, kind, session_id, unpack_body(pack(body), route.body)
        )
        warm_session = None
        if not route.sessionless:
            found = await self._warm.sessions([check_session_id(session_id)])
            warm_session = found.get(session_id)
        stored = None if warm_session is None else warm_session.session
        self._policy.allow(principal, kind, principal.name, stored)
        session = self._policy.seen(principal, stored)
        if warm_session is not None and session is not None:
            session = await self._hot_form(
                warm_session, with_tail=kind == "session.get"
            )
        elif not route.sessionless:
            self._check_not_young(session_id)

        return await self._run_handler(route, session, command)

    def _command(
        self, principal: Principal, kind: str, session_id: str, body: msgspec.Struct
    ) -> Command:
        return Command(
            id="",
            kind=kind,
            session_id=session_id,
            mad=principal.name,
            principal=principal.name,
            tenant=principal.tenant,
            body=body,
            is_mad=principal.role == "mad",
            sees_all=self._policy.sees_all(principal),
        )

    async def _run_handler(
        self, route: Route, session: Session | None, command: Command
    ) -> Any:
        now = self._now()
        outcome = route.handler(session, command, now)
        if outcome.fetch is not None:
            given = await self._reader.answer(outcome.session, outcome.fetch)
            command = msgspec.structs.replace(command, fetched=given)
            outcome = route.handler(session, command, now)
        return outcome.reply

    async def _hot_form(self, warm_session: WarmSession, *, with_tail: bool) -> Session:
        """
        The session in its hot form, with its recent timeline only if wanted.
        """
        bare = msgspec.structs.replace(
            warm_session.session, recent_timeline=(), full_context=None
        )
        if warm_session.archival_status != "ACTIVE":
            raise Unavailable(
                f"session {bare.id} is in the cold tier, and returns from there only "
                "when the bus is back; try again later"
            )
        if not with_tail:
            return bare
        first = max(1, bare.last_seq - RECENT_ENTRIES + 1)
        entries = await self._timeline.tail(bare, first, DrainWait(0), None)
        tail = trimmed(tuple(entries), HOT_BYTES - len(pack(bare)))

        return msgspec.structs.replace(bare, recent_timeline=tail)

    def _check_not_young(self, session_id: str) -> None:
        """
        Let the handler say that there is no such session.

        Raises:
            Unavailable: it is so young by its id that only the bus may know it. Who
                asks learns nothing of others' sessions: an id tells its age itself.
        """
        made = made_ms(session_id)
        youngest_ms = (self._now() - YOUNG_AGE).timestamp() * 1000
        if made is not None and made >= youngest_ms:
            raise Unavailable(
                f"MongoDB holds no session {session_id} for you; it is so young that "
                "the bus alone may know it, which is away. Try again later"
            )


class WarmRequests(Requests):
    """
    What stands for the managers while they cannot be asked.
    """

    def __init__(self, below: WarmReads, principal: Principal) -> None:
        # Without a publisher: there is nothing that could be sent.
        self._reads = below
        self._principal = principal

    async def ask(
        self,
        kind: str,
        session_id: str,
        body: dict[str, Any],
        timeout: float,
        *_: Any,
        **__: Any,
    ) -> Reply:
        """
        The reply that a manager would give, from MongoDB's state.

        Raises:
            EverbusError: see `WarmReads.answer`.
        """
        reply = await self._reads.answer(self._principal, kind, session_id, body)

        return Reply(id="", body=msgspec.Raw(pack(reply)))

    async def ask_anyone(
        self, kind: str, body: dict[str, Any], timeout: float
    ) -> Reply:
        """
        As `ask`, for a kind without a session.

        Raises:
            EverbusError: see `WarmReads.answer`.
        """
        return await self.ask(kind, "", body, timeout)

    async def ask_about(
        self, kind: str, command_id: str, timeout: float, *, session_id: str = ""
    ) -> Reply:
        """
        Refuse: only the bus knows the outcome of a command.

        Raises:
            Unavailable: always.
        """
        self._refuse(kind)

    def publish(self, kind: str, session_id: str, *_: Any, **__: Any) -> str:
        """
        Refuse: nothing is written here.

        Raises:
            Unavailable: always.
        """
        self._refuse(kind)

    def _refuse(self, kind: str) -> NoReturn:
        raise Unavailable(f"{kind} needs the bus, which is away; try again later")

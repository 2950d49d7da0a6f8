"""
What reads find past the managers: the same calls, answered from the warm tier.

The very handlers that judge a read in a lane judge it here, on the session as MongoDB
has it, and policy decides as it does there. Nothing is written: the tier is handed on
without the methods that could, so a session in the cold tier stays where it is.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, NoReturn, cast

import msgspec

from bus.client import Mad
from bus.codec import pack, unpack_body
from bus.errors import Unavailable
from bus.keys import EDGE
from bus.messages import Reply, Session, check_session_id
from bus.requests import Requests
from gateway.identity.principal import Principal
from gateway.policy import RULES, Policy
from gateway.store.catchup import CatchUp
from gateway.store.cold.vault import Vault
from gateway.store.newborn import made_ms
from gateway.store.pricing import Prices
from gateway.store.reader import Reader, utc_now
from gateway.store.tiers import Held, WarmTier
from gateway.store.timeline import Timeline
from handlers.commands import Command
from handlers.routes import HANDLERS, Route
from handlers.session import HOT_BYTES, RECENT_ENTRIES, trimmed

# How long one answer may take; who waits for it has waited for the bus before.
MOST_S = 2.0
AT_ONCE = 64
# Younger sessions may be known to the bus alone, however the archiver gets on.
YOUNG = timedelta(hours=1)
# What only the bus can tell.
_OF_THE_BUS = frozenset({"session.durable"})
_READS = frozenset(
    {"changes", "checkpoint", "checkpoints", "counts", "entries", "find"}
    | {"first_since", "sessions", "snapshot"}
)


class ReadOnly:
    """
    A warm tier of which nothing can be called but what reads.
    """

    def __init__(self, tier: WarmTier) -> None:
        self._tier = tier

    def __getattr__(self, name: str) -> Any:  # a method of WarmTier
        if name not in _READS:
            raise AttributeError(f"an edge only reads the warm tier, no {name}()")
        return getattr(self._tier, name)


class Below:
    """
    The warm tier, and the cold one behind it, as one edge reads them.
    """

    def __init__(
        self,
        warm: WarmTier,
        vault: Vault | None = None,
        *,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """
        Read *warm*, and archived timeline entries in *vault*; both stay the caller's.
        """
        self._warm = cast(WarmTier, ReadOnly(warm))
        # What is not there now will not come while the bus is away.
        self._reader = Reader(self._warm, vault, Prices(), catch_up_s=0)
        self._timeline = Timeline(self._warm, vault)
        self._policy = Policy(RULES)
        self._now = now
        self._turns = asyncio.Semaphore(AT_ONCE)

    def mad(self, principal: Principal) -> Mad:
        """
        The calls of the SDK for *principal*; those that change something, or that
        only the bus can answer, raise Unavailable.
        """
        return Mad(EDGE, WarmRequests(self, principal))

    async def probe(self) -> None:
        """
        Ask the warm tier for nothing.

        Raises:
            Unavailable: it does not answer.
        """
        await self._warm.sessions(["-"])

    async def answer(
        self, principal: Principal, kind: str, session_id: str, body: dict[str, Any]
    ) -> Any:
        """
        What the handler of *kind* replies, as of what MongoDB holds.

        Raises:
            Unavailable: MongoDB cannot tell, or not yet, or not within MOST_S.
            EverbusError: what a manager would refuse.
        """
        route = HANDLERS.get(kind)
        if route is None or route.writes or kind in _OF_THE_BUS:
            raise Unavailable(f"{kind} needs the bus, which is away; try again later")
        try:
            async with asyncio.timeout(MOST_S), self._turns:
                return await self._answered(principal, kind, route, session_id, body)
        except TimeoutError as error:
            raise Unavailable(
                f"the bus is away, and the warm tier did not answer within {MOST_S:g} s"
            ) from error

    async def _answered(
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
        held = None
        if not route.sessionless:
            found = await self._warm.sessions([check_session_id(session_id)])
            held = found.get(session_id)
        there = None if held is None else held.session
        self._policy.allow(principal, kind, principal.name, there)
        session = self._policy.seen(principal, there)
        if held is not None and session is not None:
            session = await self._whole(held, with_tail=kind == "session.get")
        elif not route.sessionless:
            self._check_old(session_id)

        return await self._handled(route, session, command)

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
            sees_all=self._policy.sees_all(principal),
        )

    async def _handled(
        self, route: Route, session: Session | None, command: Command
    ) -> Any:
        now = self._now()
        outcome = route.handler(session, command, now)
        if outcome.wants is not None:
            given = await self._reader.answer(outcome.session, outcome.wants)
            command = msgspec.structs.replace(command, given=given)
            outcome = route.handler(session, command, now)
        return outcome.reply

    async def _whole(self, held: Held, *, with_tail: bool) -> Session:
        """
        The session as it would be hot, its recent timeline only if it is asked for.
        """
        bare = msgspec.structs.replace(
            held.session, recent_timeline=(), full_context=None
        )
        if held.archival_status != "ACTIVE":
            raise Unavailable(
                f"session {bare.id} is in the cold tier, and returns from there only "
                "when the bus is back; try again later"
            )
        if not with_tail:
            return bare
        first = max(1, bare.last_seq - RECENT_ENTRIES + 1)
        entries = await self._timeline.tail(bare, first, CatchUp(0), None)
        tail = trimmed(tuple(entries), HOT_BYTES - len(pack(bare)))

        return msgspec.structs.replace(bare, recent_timeline=tail)

    def _check_old(self, session_id: str) -> None:
        """
        Let the handler say that there is no such session.

        Raises:
            Unavailable: it is so young by its id that only the bus may know it. Who
                asks learns nothing of others' sessions: an id tells its age itself.
        """
        made = made_ms(session_id)
        youngest_ms = (self._now() - YOUNG).timestamp() * 1000
        if made is not None and made >= youngest_ms:
            raise Unavailable(
                f"MongoDB holds no session {session_id} for you; it is so young that "
                "the bus alone may know it, which is away. Try again later"
            )


class WarmRequests(Requests):
    """
    What stands for the managers while they cannot be asked.
    """

    def __init__(self, below: Below, principal: Principal) -> None:
        # Without a publisher: there is nothing that could be sent.
        self._below = below
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
        The reply that a manager would give, as of what MongoDB holds.

        Raises:
            EverbusError: see `Below.answer`.
        """
        told = await self._below.answer(self._principal, kind, session_id, body)

        return Reply(id="", body=msgspec.Raw(pack(told)))

    async def ask_anyone(
        self, kind: str, body: dict[str, Any], timeout: float
    ) -> Reply:
        """
        As `ask`, about no session of any one lane.

        Raises:
            EverbusError: see `Below.answer`.
        """
        return await self.ask(kind, "", body, timeout)

    async def ask_about(self, kind: str, command_id: str, timeout: float) -> Reply:
        """
        Refuse: what became of a command only the bus knows.

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

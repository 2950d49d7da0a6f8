"""
The calls by which a session is watched: hear what happens, say something.
"""

from collections.abc import AsyncGenerator
from typing import Any

from bus.calls import DEFAULT_TIMEOUT_S, Calls
from bus.codec import unpack
from bus.events import EventPage, SessionEvent
from bus.messages import Durability, check_json, check_session_id

PAGE_EVENTS = 200


class LiveCalls(Calls):
    """
    Watch sessions, and tell those who do.
    """

    def watch(
        self, session_id: str, *, after: str | None = None
    ) -> AsyncGenerator[SessionEvent, None]:
        """
        Everything that happens in the session, in order, each event once.

        It goes on through lost connections, restarts and takeovers, for as long as
        the principal may watch; after `session.deleted` it ends. Leaving the loop
        early ends it when the generator is closed (`contextlib.aclosing`). Whoever is
        slow gets every event all the same, only later.

        Args:
            after: the `id` of the last event that is known; "0" for all there ever
                were. None: what happens from the first step of the loop on.

        Raises:
            NotFound: there is no such session, or no longer.
            Forbidden: the principal may not watch it, or no longer.
            Unauthenticated: its token counts no longer.
            Invalid: no event of this session has that id.
            Unavailable: this connection was closed.
        """
        check_session_id(session_id)

        async def ask(behind: str | None, push: bool) -> EventPage:
            body = {"after": behind, "limit": PAGE_EVENTS, "push": push}
            reply = await self._ask(
                "session.watch", session_id, body, DEFAULT_TIMEOUT_S
            )
            page: EventPage = unpack(reply.body, EventPage)

            return page

        return self._requests.watching.watch(session_id, ask, after)

    async def broadcast(
        self,
        session_id: str,
        message: Any,
        *,
        durability: Durability = "hot",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> str:
        """
        Tell all who watch the session; returns the event's id.

        It is kept among the session's events, and changes neither its state nor its
        timeline.

        Args:
            message: any JSON value of at most 64 KiB.

        Raises:
            Invalid: *message* is no JSON value.
            TooLarge: it has more than 64 KiB.
        """
        check_json(message, "message")
        body = {"message": message}
        reply = await self._ask(
            "session.broadcast", session_id, body, timeout, durability=durability
        )
        return str(unpack(reply.body, dict)["id"])

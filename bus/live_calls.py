"""
The calls for live updates: watch a session, send a broadcast.
"""

from collections.abc import AsyncGenerator
from typing import Any

from everbus.bus.arguments import check_optional_text
from everbus.bus.events import EventPage, SessionEvent
from everbus.bus.mad_calls import DEFAULT_TIMEOUT_S, MadCalls
from everbus.bus.messages import Durability, check_json, check_session_id, unpack

PAGE_EVENTS = 200


class LiveCalls(MadCalls):
    """
    Watch sessions, and send broadcasts to their subscribers.
    """

    def watch(
        self, session_id: str, *, after: str | None = None
    ) -> AsyncGenerator[SessionEvent, None]:
        """
        The events of the session, in order, each once.

        The stream survives lost connections, restarts and takeovers, as long as the
        principal may watch; it ends after `session.deleted`. After leaving the loop
        early, close the generator (`contextlib.aclosing`). A slow consumer gets every
        event, only later.

        Args:
            after: `id` of the last known event; "0" for all events. None: events from
                the first step of the loop on.

        Raises:
            NotFound: there is no such session, or no longer.
            Forbidden: the principal may not watch it, or no longer.
            Unauthenticated: the token is no longer valid.
            Invalid: *after* is not the id of an event of this session.
            Unavailable: this connection was closed.
        """
        check_session_id(session_id)
        check_optional_text(after=after)
        self._requests.check()

        async def ask(behind: str | None, push: bool) -> EventPage:
            body = {"after": behind, "limit": PAGE_EVENTS, "push": push}
            reply = await self._ask(
                "session.watch", session_id, body, DEFAULT_TIMEOUT_S
            )
            page: EventPage = unpack(reply.body, EventPage)

            return page

        return self._requests.watching.watch(
            session_id, ask, after, self._requests.check
        )

    async def broadcast(
        self,
        session_id: str,
        message: Any,
        *,
        command_id: str | None = None,
        durability: Durability = "hot",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> str:
        """
        Send *message* to all subscribers of the session; return the event's id.

        The message is stored as an event; state and timeline do not change.

        Args:
            message: any JSON value of at most 64 KiB.

        Raises:
            Invalid: *message* is not a JSON value.
            TooLarge: it has more than 64 KiB.
        """
        check_json(message, "message")
        body = {"message": message}
        reply = await self._ask(
            "session.broadcast",
            session_id,
            body,
            timeout,
            command_id=command_id,
            durability=durability,
        )
        return str(unpack(reply.body, dict)["id"])

"""
Who asks at the edge, and the signed way to the managers that is theirs.

A bearer token is judged here and goes no further: what travels on is a grant for one
command (see `gateway.identity.grants`). Policy is not asked here but by the lane, on
the session as it is.
"""

import re
from typing import NamedTuple

from starlette.requests import HTTPConnection

from bus.client import Mad
from bus.errors import Unauthenticated
from bus.messages import Envelope
from bus.requests import Acting
from gateway.edge.limits import Limiter
from gateway.edge.parts import EdgeParts
from gateway.edge.tracing import TRACE
from gateway.identity.principal import Principal
from gateway.identity.tokens import NO_TOKEN

_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9_.~+/=-]+)")


class Signature:
    """
    Signs one command for whoever asks, and remembers its id.
    """

    def __init__(self, parts: EdgeParts, principal: Principal) -> None:
        self._parts = parts
        self._principal = principal
        self.command_id = ""

    def __call__(self, envelope: Envelope) -> bytes:
        """
        The grant for *envelope*.
        """
        self.command_id = envelope.id

        return self._parts.grants.for_command(self._principal, envelope)


class Caller(NamedTuple):
    """
    Who asks by one request or socket.

    Attributes:
        principal: as the token says.
        trace: the W3C traceparent of the request, see `gateway.edge.tracing`.
    """

    principal: Principal
    parts: EdgeParts
    trace: str = ""

    @property
    def token_expires_at(self) -> float:
        """
        When the token ends, in seconds since 1970.
        """
        return self.principal.expires_at

    @property
    def signature(self) -> Signature:
        """
        A fresh one, for one command.
        """
        return Signature(self.parts, self.principal)

    def mad(
        self, command_id: str = "", trace: str = "", sign: Signature | None = None
    ) -> Mad:
        """
        The edge's instance, acting for the principal.

        Args:
            command_id: under which a write is known again; then for one call only.
            trace: the traceparent of the commands, in place of the request's.
            sign: what signs them, if the caller wants to know their ids.
        """
        acting = Acting(
            sign=sign or self.signature,
            command_id=command_id,
            trace=trace or self.trace,
            tenant=self.principal.tenant,
        )
        return self.parts.bus.acting(acting)


async def caller_of(connection: HTTPConnection, parts: EdgeParts) -> Caller:
    """
    Who asks by a request, or by a WebSocket's handshake.

    Raises:
        Unauthenticated: no token, or a bad one.
        Overloaded: too many bad ones came from this address.
        Unavailable: the token's key cannot be looked for now.
    """
    token = _token(connection)
    limiter = limiter_of(connection)
    peer = connection.client.host if connection.client else ""
    limiter.check_stranger(peer)
    try:
        principal = await parts.identity.admit(token)
    except Unauthenticated:
        limiter.note_bad_token(peer)
        raise

    return Caller(principal, parts, trace_of(connection))


def limiter_of(connection: HTTPConnection) -> Limiter:
    """
    The limits of the edge that serves *connection*.
    """
    limiter: Limiter = connection.app.state.limiter

    return limiter


def trace_of(connection: HTTPConnection) -> str:
    """
    The traceparent that its commands are to carry.
    """
    return str(connection.scope.get(TRACE, ""))


def _token(connection: HTTPConnection) -> str:
    shown = connection.headers.get("authorization", "")
    found = _BEARER.fullmatch(shown)
    if found is None:
        raise Unauthenticated(NO_TOKEN)
    return found[1]

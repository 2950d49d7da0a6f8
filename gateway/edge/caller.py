"""
The caller of a request: its principal, and the SDK acting for that principal.

A bearer token is verified here and goes no further: a grant for one command travels on
(see `gateway.identity.grants`). The lane asks the policy, on the session as it is.
"""

import re
from typing import NamedTuple

from starlette.requests import HTTPConnection

from everbus.bus.client import Mad
from everbus.bus.errors import Unauthenticated
from everbus.bus.messages import Envelope
from everbus.bus.requests import Delegation
from everbus.gateway.edge.context import EdgeContext
from everbus.gateway.edge.limits import Limiter
from everbus.gateway.edge.tracing import TRACE
from everbus.gateway.identity.principal import Principal
from everbus.gateway.identity.tokens import NO_TOKEN

_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9_.~+/=-]+)")


class CommandSigner:
    """
    Signs one command for the principal, and remembers its id.
    """

    def __init__(self, context: EdgeContext, principal: Principal) -> None:
        self._context = context
        self._principal = principal
        self.command_id = ""

    def __call__(self, envelope: Envelope) -> bytes:
        """
        The grant for *envelope*.
        """
        self.command_id = envelope.id

        return self._context.grants.for_command(self._principal, envelope)


class Caller(NamedTuple):
    """
    The principal of one request or WebSocket.

    Attributes:
        principal: from the token.
        trace: the W3C traceparent of the request, see `gateway.edge.tracing`.
    """

    principal: Principal
    context: EdgeContext
    trace: str = ""

    @property
    def token_expires_at(self) -> float:
        """
        The token's expiry, in seconds since 1970.
        """
        return self.principal.expires_at

    @property
    def signer(self) -> CommandSigner:
        """
        A new signer, for one command.
        """
        return CommandSigner(self.context, self.principal)

    def mad(
        self, command_id: str = "", trace: str = "", sign: CommandSigner | None = None
    ) -> Mad:
        """
        The edge's instance, acting for the principal.

        Args:
            command_id: id of a repeatable write; the Mad is then for one call only.
            trace: the traceparent of the commands, in place of the request's.
            sign: the signer to use, for a caller that needs the command's id.
        """
        acting = Delegation(
            sign=sign or self.signer,
            command_id=command_id,
            trace=trace or self.trace,
            tenant=self.principal.tenant,
        )
        return self.context.bus.acting(acting)


async def authenticate(connection: HTTPConnection, context: EdgeContext) -> Caller:
    """
    The caller of a request or of a WebSocket handshake.

    Raises:
        Unauthenticated: no token, or a bad one.
        Overloaded: the token is bad, and was so too often, or too many bad tokens
            came from this address.
        Unavailable: the token's key cannot be fetched now.
    """
    token = _token(connection)
    limiter = limiter_of(connection)
    limiter.check_token(token)
    try:
        principal = await context.identity.authenticate(token)
    except Unauthenticated:
        limiter.note_bad_token(token, context.proxies.client_of(connection))
        raise

    return Caller(principal, context, trace_of(connection))


def limiter_of(connection: HTTPConnection) -> Limiter:
    """
    The limiter of the edge that serves *connection*.
    """
    limiter: Limiter = connection.app.state.limiter

    return limiter


def trace_of(connection: HTTPConnection) -> str:
    """
    The traceparent for the request's commands.
    """
    return str(connection.scope.get(TRACE, ""))


def _token(connection: HTTPConnection) -> str:
    header = connection.headers.get("authorization", "")
    match = _BEARER.fullmatch(header)
    if match is None:
        raise Unauthenticated(NO_TOKEN)
    return match[1]

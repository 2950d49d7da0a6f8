"""
`everbus call`: a command of any kind, as the contract of the bus names it.
"""

from difflib import get_close_matches
from typing import Annotated, Any

import typer

from everbus.bus.client import DEFAULT_TIMEOUT_S
from everbus.bus.messages import Durability
from everbus.compose.command_output import (
    Expected,
    Timeout,
    connected_mad,
    print_json,
)
from everbus.compose.exit_codes import USAGE, Failed
from everbus.compose.json_argument import parse_object
from everbus.compose.reference.wire_types import bodies
from everbus.handlers.routes import HANDLERS

_Kind = Annotated[
    str, typer.Argument(help="The kind, such as session.get.", metavar="KIND")
]
_SessionId = Annotated[
    str, typer.Argument(help="The session, for kinds that need one.", metavar="SESSION")
]
_Body = Annotated[
    dict[str, Any] | None,
    typer.Option(
        parser=parse_object, metavar="JSON", help="JSON, @file, or - for stdin."
    ),
]
_Durability = Annotated[
    Durability, typer.Option(help="How safe a write is before the reply.")
]


def call(
    kind: _Kind,
    session_id: _SessionId = "",
    body: _Body = None,
    expected_version: Expected = None,
    durability: _Durability = "hot",
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """
    Send a command of any kind as the MAD in EVERBUS_MAD, and print its reply as JSON.

    docs/reference/asyncapi.yaml has the kinds and their bodies. Nothing is asked
    before a command that deletes.

    Example: everbus call timeline.read ID --body '{"after": 0, "limit": 10}'
    """
    _check_kind(kind, session_id)
    with connected_mad() as mad:
        answer = mad.call(
            kind,
            session_id,
            body,
            expected_version=expected_version,
            durability=durability,
            timeout=timeout,
        )
    print_json(answer)


def _check_kind(kind: str, session_id: str) -> None:
    """
    Raises:
        Failed: a MAD cannot send *kind*, or it needs a session.
    """
    known = bodies()
    if kind not in known:
        nearest = get_close_matches(kind, known, n=1, cutoff=0)[0]
        raise Failed(
            f"{kind[:80]!a} is no kind of command that a MAD may send; did you mean "
            f"{nearest}? Known are: {', '.join(sorted(known))}",
            USAGE,
        )
    route = HANDLERS.get(kind)
    if route is not None and not route.sessionless and not session_id:
        raise Failed(
            f"{kind} needs a session: everbus call {kind} SESSION"
            f"{' (an id of your choice)' if kind == 'session.create' else ''}",
            USAGE,
        )

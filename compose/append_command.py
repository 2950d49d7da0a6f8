"""
`everbus append` and `everbus join`: say something in a session, take part in it.
"""

from typing import Annotated, Any

import typer

from everbus.bus.client import DEFAULT_TIMEOUT_S
from everbus.bus.messages import Durability
from everbus.compose.command_output import (
    OutputOption,
    SessionId,
    Timeout,
    connected_mad,
    print_json,
)
from everbus.compose.json_argument import parse_json
from everbus.compose.replay_command import Output
from everbus.compose.session_command import print_session

_Entry = Annotated[
    Any,
    typer.Argument(
        parser=parse_json,
        metavar="JSON",
        help="JSON, @file, or - for stdin.",
    ),
]
_ExpectedLastSeq = Annotated[
    int | None,
    typer.Option(help="Refuse unless the session's newest entry has this seq."),
]
_Durability = Annotated[
    Durability, typer.Option(help="How safe the entry is before the reply.")
]


def append(
    session_id: SessionId,
    entry: _Entry,
    expected_last_seq: _ExpectedLastSeq = None,
    durability: _Durability = "hot",
    output: OutputOption = Output.table,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """
    Append an entry to a session's timeline.

    Prints the entry's seq.

    Example: everbus append ID '{"role": "user", "text": "hi"}'
    """
    with connected_mad() as mad:
        seq = mad.append_and_wait(
            session_id,
            entry,
            expected_last_seq=expected_last_seq,
            durability=durability,
            timeout=timeout,
        )
    if output is Output.json:
        print_json({"session": session_id, "seq": seq})
    else:
        typer.echo(seq)


def join(
    session_id: SessionId,
    role: Annotated[str, typer.Option(help="The part that it takes.")] = "",
    output: OutputOption = Output.table,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """
    Make the MAD in EVERBUS_MAD a participant of a session.

    The command holds no lease, so the MAD stays until somebody removes it.

    Example: everbus join ID --role reviewer
    """
    with connected_mad() as mad:
        session = mad.join(session_id, role=role, timeout=timeout)
    print_session(session, output)

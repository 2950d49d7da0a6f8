"""
`everbus turn`: entries and a patch of one session, all or nothing.
"""

from typing import Annotated, Any

import msgspec
import typer

from everbus.bus.client import DEFAULT_TIMEOUT_S
from everbus.bus.messages import Durability
from everbus.compose.command_output import (
    Expected,
    OutputOption,
    SessionId,
    Timeout,
    connected_mad,
    print_json,
)
from everbus.compose.json_argument import parse_json, parse_object
from everbus.compose.replay_command import Output

_Entries = Annotated[
    list[Any] | None,
    typer.Option(
        "--entry",
        parser=parse_json,
        metavar="JSON",
        help="An entry: JSON, @file, or - for stdin. As often as there are entries.",
    ),
]
_Patch = Annotated[
    dict[str, Any] | None,
    typer.Option(
        parser=parse_object, metavar="JSON", help="The merge patch (RFC 7396)."
    ),
]
_File = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="The whole turn as JSON, - for stdin: a list of entries, or an object "
        "with `entries` and `patch`.",
    ),
]


class _WholeTurn(msgspec.Struct, forbid_unknown_fields=True):
    """
    The content of a file.
    """

    entries: list[Any] = []
    patch: dict[str, Any] | None = None


def turn(
    session_id: SessionId,
    entry: _Entries = None,
    patch: _Patch = None,
    file: _File = None,
    expected_version: Expected = None,
    expected_last_seq: Annotated[
        int | None,
        typer.Option(help="Refuse unless the session's newest entry has this seq."),
    ] = None,
    turn_id: Annotated[
        str | None, typer.Option(help="What the entries carry as their turn.")
    ] = None,
    command_id: Annotated[
        str | None,
        typer.Option(help="An id of your own: a repetition under it changes nothing."),
    ] = None,
    durability: Annotated[
        Durability, typer.Option(help="How safe the turn is before the reply.")
    ] = "hot",
    output: OutputOption = Output.table,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """
    Append entries to a session and merge a patch into it, all or nothing.

    Prints the version and the seqs of the entries.

    Example: everbus turn ID --entry '{"text": "hi"}' --patch '{"tags": ["sea"]}'
    """
    whole = _WholeTurn(list(entry or ()), patch)
    if file is not None:
        if entry or patch is not None:
            raise typer.BadParameter("--file is a whole turn: no --entry, no --patch")
        whole = _whole_turn(file)
    with connected_mad() as mad:
        taken = mad.turn(
            *(session_id, whole.entries, whole.patch),
            expected_version=expected_version,
            expected_last_seq=expected_last_seq,
            turn_id=turn_id,
            command_id=command_id,
            durability=durability,
            timeout=timeout,
        )
    if output is Output.json:
        print_json({"session": session_id, **msgspec.structs.asdict(taken)})
    else:
        typer.echo(f"version {taken.version}, seqs {_shown(taken.seqs)}")


def _whole_turn(file: str) -> _WholeTurn:
    value = parse_json(file if file == "-" else f"@{file}")
    try:
        return msgspec.convert(
            {"entries": value} if isinstance(value, list) else value, _WholeTurn
        )
    except msgspec.ValidationError as error:
        raise typer.BadParameter(f"{file[:60]!a} is no turn: {error}") from error


def _shown(seqs: tuple[int, ...]) -> str:
    if not seqs:
        return "none"
    return str(seqs[0]) if len(seqs) == 1 else f"{seqs[0]} to {seqs[-1]}"

"""
`everbus explain`: what a name means that everbus shows, and what to do.
"""

from difflib import get_close_matches
from typing import Annotated

import typer

from everbus.bus.errors import ERRORS, EverbusError, Malformed, Rejection, Unavailable
from everbus.compose.catalogue.entries import Explanation, catalogue
from everbus.compose.command_output import OutputOption, print_json
from everbus.compose.exit_codes import USAGE, Failed
from everbus.compose.replay_command import Output

_FAMILIES: dict[type[EverbusError], str] = {
    Rejection: "The command was decided and refused for good; it had no effect.",
    Unavailable: "Try again, with the same command id: it takes effect once.",
    Malformed: "It is no command of everbus; it is in the dead letters.",
}
_DEFECT = "A defect of everbus: the command was tried again and is in the dead letters."
SUGGESTED = 3


def explain(
    name: Annotated[
        str,
        typer.Argument(
            help="An error code, a cause of dead letters, an indicator, or a log event."
        ),
    ],
    output: OutputOption = Output.table,
) -> None:
    """
    Explain a name that everbus shows: its meaning, its usual reason, and what to do.

    Knows error codes of the bus and of REST, causes of dead letters, indicators of
    `everbus doctor`, and events of the log.

    Example: everbus explain version_conflict
    """
    known = {one.name for one in catalogue()}
    if name not in known:
        nearest = get_close_matches(name, known, n=SUGGESTED, cutoff=0)
        raise Failed(
            f"{name[:80]!a} is no code, cause, indicator or event; did you mean "
            f"{nearest[0]}? Also near: {', '.join(nearest[1:])}. docs/reference lists "
            "all of them",
            USAGE,
        )
    found = [one for one in catalogue() if one.name == name]
    if output is Output.json:
        print_json([one._asdict() for one in found])
        return
    typer.echo("\n\n".join(map(_told, found)))


def _told(entry: Explanation) -> str:
    lines = [f"{entry.name}  ({entry.kind}{_status(entry)})", entry.meaning]
    if entry.kind == "error code":
        lines.append(_family(ERRORS[entry.name]))
    lines += [f"Usual reason: {entry.reason}", f"What to do:   {entry.remedy}"]

    return "\n".join(lines)


def _status(entry: Explanation) -> str:
    if entry.kind != "error code":
        return ""
    error = ERRORS[entry.name]

    return f", HTTP {error.status}, bus.{error.__name__}"


def _family(error: type[EverbusError]) -> str:
    families = (text for kind, text in _FAMILIES.items() if issubclass(error, kind))

    return next(families, _DEFECT)

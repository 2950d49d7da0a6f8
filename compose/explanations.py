"""
`everbus explain`: what an error code means.
"""

from difflib import get_close_matches
from inspect import getdoc
from typing import Annotated

import typer

from bus.errors import ERRORS, EverbusError, Malformed, Rejection, Unavailable
from compose.exits import USAGE, Failed

_FAMILIES: dict[type[EverbusError], str] = {
    Rejection: "The command was judged and refused for good; it had no effect.",
    Unavailable: "Try again, with the same command id: it takes effect once.",
    Malformed: "It is not a command of ours and lies in the dead letters.",
}
_DEFECT = "A fault of ours: it was tried again and lies in the dead letters."


def explain(
    code: Annotated[str, typer.Argument(help="An error code, as bus and REST say it.")],
) -> None:
    """
    Say what an error code means and what to do.

    Example: everbus explain version_conflict
    """
    error = ERRORS.get(code)
    if error is None:
        nearest = get_close_matches(code, ERRORS, n=1, cutoff=0)[0]
        raise Failed(
            f"{code} is no error code; did you mean {nearest}? "
            f"Known are: {', '.join(sorted(ERRORS))}",
            USAGE,
        )
    family = next(
        (text for kind, text in _FAMILIES.items() if issubclass(error, kind)), _DEFECT
    )
    typer.echo(f"{code}  (HTTP {error.status}, bus.{error.__name__})")
    typer.echo(getdoc(error))
    typer.echo(family)

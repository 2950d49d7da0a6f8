"""
`everbus explain`: the meaning of an error code.
"""

from difflib import get_close_matches
from inspect import getdoc
from typing import Annotated

import typer

from everbus.bus.errors import ERRORS, EverbusError, Malformed, Rejection, Unavailable
from everbus.compose.exit_codes import USAGE, Failed

_FAMILIES: dict[type[EverbusError], str] = {
    Rejection: "The command was decided and refused for good; it had no effect.",
    Unavailable: "Try again, with the same command id: it takes effect once.",
    Malformed: "It is no command of everbus; it is in the dead letters.",
}
_DEFECT = "A defect of everbus: the command was tried again and is in the dead letters."


def explain(
    code: Annotated[str, typer.Argument(help="An error code of the bus or of REST.")],
) -> None:
    """
    Explain an error code: what it means and what to do.

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

"""
How commands for people ask the bus, and how they print what it answers.

Answers go to stdout, talk (what to do next, log records) to stderr.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from bus.settings import BusSettings
from bus.sync import SyncMad, connect
from compose.exits import USAGE, Failed
from compose.logs import configure_logs
from compose.replay import bus_url
from compose.replay_command import Output
from compose.settings import load_settings

# Escape sequences in somebody's data would steer the reader's terminal.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def moment(text: str) -> datetime:
    """
    The time that *text* says in ISO 8601; without a time zone it is UTC.
    """
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!a}: wanted a time such as 2026-03-01 or 2026-03-01T12:00:00Z"
        ) from error

    return at if at.tzinfo else at.replace(tzinfo=UTC)


SessionId = Annotated[str, typer.Argument(help="The session's id.", metavar="ID")]
OutputOption = Annotated[
    Output, typer.Option("--output", "-o", help="How to print the answer.")
]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds to wait for it.")]
Expected = Annotated[
    int | None, typer.Option(help="Refuse unless the session has this version.")
]


@contextmanager
def a_mad() -> Iterator[SyncMad]:
    """
    A connection to the bus that the environment names, as EVERBUS_TOKEN's principal.
    """
    settings = load_settings(os.environ)
    configure_logs(settings.log_format, settings.log_level)
    token = settings.token.get_secret_value()
    if not token:
        raise Failed(
            "EVERBUS_TOKEN is not set. For the stack of `everbus dev`: "
            "set -a; . .everbus/env; set +a. Else: "
            "export EVERBUS_TOKEN=$(everbus token)",
            USAGE,
        )
    name = BusSettings().mad
    url = bus_url(settings).replace("{mad}", name)
    with connect(url, mad=name, token=token, lease=False) as mad:
        yield mad


def print_json(answer: Any) -> None:
    """
    The answer as one line of JSON.
    """
    typer.echo(msgspec.json.encode(answer))


def print_table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """
    The rows as a table; nothing is cut off, long values are folded.
    """
    table = Table()
    for place, column in enumerate(columns):
        # The first names the row; it is to be copied whole.
        table.add_column(column, overflow="fold", no_wrap=place == 0)
    for row in rows:
        table.add_row(*(shown(value) for value in row))
    # Without markup: brackets in somebody's data are no colours.
    Console(markup=False, highlight=False, emoji=False).print(table)


def print_fields(answer: msgspec.Struct, *left_out: str) -> None:
    """
    An answer's fields, one a row.
    """
    rows = (
        (name.replace("_", " "), getattr(answer, name))
        for name in answer.__struct_fields__
        if name not in left_out
    )
    print_table(("field", "value"), rows)


def tell(talk: str) -> None:
    """
    What is no answer, on stderr.
    """
    typer.echo(talk, err=True)


def shown(value: Any) -> str:
    """
    A value in a cell: text as it is, but for control characters; else JSON.
    """
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(" ", "milliseconds")[:-6] + "Z"
    if value is None or value in ((), {}, []):
        return "-"
    if isinstance(value, tuple) and all(isinstance(item, str) for item in value):
        value = ", ".join(value)
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()

    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)

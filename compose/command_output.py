"""
Connections and printing for the commands that people use.

Answers go to stdout; notices (what to do next, log records) go to stderr.
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

from everbus.bus.settings import BusSettings
from everbus.bus.sync import SyncMad, connect
from everbus.compose.contexts import printed_token
from everbus.compose.exit_codes import USAGE, Failed
from everbus.compose.logs import configure_logs
from everbus.compose.replay import bus_url
from everbus.compose.replay_command import Output
from everbus.compose.settings import load_settings

# Escape sequences in data would control the reader's terminal.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def parse_time(text: str) -> datetime:
    """
    The time in *text*, which is ISO 8601; UTC without a time zone.
    """
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!a}: wanted a time such as 2026-03-01 or 2026-03-01T12:00:00Z"
        ) from error

    return at if at.tzinfo else at.replace(tzinfo=UTC)


SessionId = Annotated[str, typer.Argument(help="The session's id.", metavar="ID")]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="Output format.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the reply.")]
Expected = Annotated[
    int | None, typer.Option(help="Refuse unless the session has this version.")
]


@contextmanager
def connected_mad() -> Iterator[SyncMad]:
    """
    A connection to the bus in the environment, as the principal of EVERBUS_TOKEN or
    of the token that EVERBUS_TOKEN_COMMAND prints.
    """
    settings = load_settings(os.environ)
    configure_logs(settings.log_format, settings.log_level)
    token = settings.token.get_secret_value()
    if not token and settings.token_command:
        token = printed_token(settings.token_command)
    if not token:
        raise Failed(
            "EVERBUS_TOKEN is not set. For the stack of `everbus dev`: "
            "set -a; . .everbus/env; set +a. Else: "
            "export EVERBUS_TOKEN=$(everbus token), or name a context: "
            "everbus context --help",
            USAGE,
        )
    name = BusSettings().mad
    url = bus_url(settings).replace("{mad}", name)
    with connect(url, mad=name, token=token, lease=False) as mad:
        yield mad


def print_json(answer: Any) -> None:
    """
    Print the answer as one line of JSON.
    """
    typer.echo(msgspec.json.encode(answer))


def print_table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """
    Print the rows as a table; long values are folded, never cut off.
    """
    # Without markup: brackets in data are not colours.
    Console(markup=False, highlight=False, emoji=False).print(made_table(columns, rows))


def made_table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> Table:
    """
    The rows as a table that folds long values.
    """
    table = Table()
    for place, column in enumerate(columns):
        # The first column names the row; people copy it whole.
        table.add_column(column, overflow="fold", no_wrap=place == 0)
    for row in rows:
        table.add_row(*(cell_text(value) for value in row))

    return table


def print_fields(answer: msgspec.Struct, *left_out: str) -> None:
    """
    Print the fields of an answer, one per row.
    """
    rows = (
        (name.replace("_", " "), getattr(answer, name))
        for name in answer.__struct_fields__
        if name not in left_out
    )
    print_table(("field", "value"), rows)


def notify(notice: str) -> None:
    """
    Print a notice on stderr; stdout carries answers only.
    """
    typer.echo(notice, err=True)


def cell_text(value: Any) -> str:
    """
    A value as a table cell: text with control characters escaped, else JSON.
    """
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(" ", "milliseconds")[:-6] + "Z"
    if value is None or value in ((), {}, []):
        return "-"
    if isinstance(value, tuple) and all(isinstance(item, str) for item in value):
        value = ", ".join(value)
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()

    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)

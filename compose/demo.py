"""
`everbus demo`: the promises of everbus, tried before your eyes.

Here are the command, its throw-away folder and its end; what is shown is in
`compose.scenario`. The story goes to stdout, what the stack itself says to stderr.
"""

import asyncio
import os
import shutil
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compose.exits import FINDING, UNREACHABLE, Failed
from compose.logs import configure_logs
from compose.settings import load_settings

if TYPE_CHECKING:
    from compose.stack import EmbeddedStack

MANAGERS = 3
LEASE_TTL_S = 3

_NOT_INSTALLED = "{} is not installed. Remedy: pip install 'everbus[embedded]'"


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the folder with data and logs.")
    ] = False,
) -> None:
    """
    Kill a replica in mid-conversation, and count every message afterwards.

    Runs on a throw-away stack of its own, for about 20 seconds. Exits with 1 if
    anything was lost, doubled or out of order.

    Example: everbus demo --keep
    """
    load_settings(os.environ)
    # The SDK's warnings are what this is about; here the story tells of them.
    configure_logs("auto", "error")
    folder = Path(tempfile.mkdtemp(prefix="everbus-demo-"))
    try:
        held = _shown(folder)
    finally:
        _leave(folder, keep)
    if not held:
        raise typer.Exit(FINDING)


def _shown(folder: Path) -> bool:
    try:
        from compose.folder import StackError
        from compose.stack import EmbeddedStack
    except ModuleNotFoundError as error:
        raise Failed(_NOT_INSTALLED.format(error.name), UNREACHABLE) from error
    # Half a minute, as it is by default, is long to watch.
    extra = {"EVERBUS_LEASE_TTL_S": f"{LEASE_TTL_S}"}
    stack = EmbeddedStack(folder, managers=MANAGERS, extra=extra, say=_aside)
    try:
        return asyncio.run(_until_signal(stack))
    except StackError as error:
        raise Failed(str(error), UNREACHABLE) from error


def _aside(line: str) -> None:
    typer.echo(line, err=True)


def _leave(folder: Path, keep: bool) -> None:
    if keep:
        _aside(f"kept; go on with: everbus dev --data {folder} --managers {MANAGERS}")
    else:
        shutil.rmtree(folder, ignore_errors=True)


async def _until_signal(stack: "EmbeddedStack") -> bool:
    """
    Show everything on *stack*; whether it held.

    Raises:
        Exit: with 128 and the number of the signal that ended it early.
    """
    showing = asyncio.ensure_future(_show(stack))
    asked: list[int] = []

    def end(number: int) -> None:
        if not asked:  # a second Ctrl-C must not leave parts behind
            _aside("stopping; the stack ends in order")
            showing.cancel()
        asked.append(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, end, number)
    with suppress(asyncio.CancelledError):
        return await showing

    raise typer.Exit(128 + asked[0])


async def _show(stack: "EmbeddedStack") -> bool:
    # Late: the scenario loads what `everbus --help` can do without.
    from compose.scenario import Scenario

    typer.echo(
        f"everbus demo: {MANAGERS} managers, archiver, Valkey, SecantusDB, nanio"
    )
    started = time.monotonic()
    async with stack:
        typer.echo(f"   up in {time.monotonic() - started:.1f} s, in {stack.data}")
        held = await Scenario(stack, LEASE_TTL_S, typer.echo).run()
        typer.echo("\nstopping the stack")
    took = f"{time.monotonic() - started:.0f} s"
    if held:
        typer.echo(f"VERDICT: held. Nothing lost, doubled or out of order ({took})")
    else:
        typer.echo(f"VERDICT: FAILED. See the lines marked with FAILED ({took})")

    return held

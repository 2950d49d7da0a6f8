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

from everbus.compose.exit_codes import FINDING, UNREACHABLE, Failed
from everbus.compose.logs import configure_logs
from everbus.compose.settings import load_settings

if TYPE_CHECKING:
    from everbus.compose.stack import EmbeddedStack

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

    The demo runs on a temporary stack of its own, for about 20 seconds. The exit code
    is 1 if a message was lost, doubled or out of order.

    Example: everbus demo --keep
    """
    load_settings(os.environ)
    # The scenario reports the outages itself; the SDK's warnings would repeat them.
    configure_logs("auto", "error")
    folder = Path(tempfile.mkdtemp(prefix="everbus-demo-"))
    try:
        held = _run_demo(folder)
    finally:
        _clean_up(folder, keep)
    if not held:
        raise typer.Exit(FINDING)


def _run_demo(folder: Path) -> bool:
    try:
        from everbus.compose.stack import EmbeddedStack
        from everbus.compose.stack_folder import StackError
    except ModuleNotFoundError as error:
        raise Failed(_NOT_INSTALLED.format(error.name), UNREACHABLE) from error
    # The default of half a minute is too long for a demo.
    extra = {"EVERBUS_LEASE_TTL_S": f"{LEASE_TTL_S}"}
    stack = EmbeddedStack(folder, managers=MANAGERS, extra=extra, say=_notify)
    try:
        return asyncio.run(_until_signal(stack))
    except StackError as error:
        raise Failed(str(error), UNREACHABLE) from error


def _notify(line: str) -> None:
    typer.echo(line, err=True)


def _clean_up(folder: Path, keep: bool) -> None:
    if keep:
        _notify(f"kept; go on with: everbus dev --data {folder} --managers {MANAGERS}")
    else:
        shutil.rmtree(folder, ignore_errors=True)


async def _until_signal(stack: "EmbeddedStack") -> bool:
    """
    Run the scenario on *stack*; whether all its checks hold.

    Raises:
        Exit: with 128 + the number of the signal that ended the demo early.
    """
    showing = asyncio.ensure_future(_run_scenario(stack))
    signals: list[int] = []

    def end(number: int) -> None:
        if not signals:  # a second Ctrl-C must leave no process behind
            _notify("stopping; the stack ends in order")
            showing.cancel()
        signals.append(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, end, number)
    with suppress(asyncio.CancelledError):
        return await showing

    raise typer.Exit(128 + signals[0])


async def _run_scenario(stack: "EmbeddedStack") -> bool:
    # Imported late: `everbus --help` does not need these modules.
    from everbus.compose.scenario import Scenario

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

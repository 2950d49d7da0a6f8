"""
`everbus watch` and `everbus session broadcast`: live events of a session.
"""

import json
from typing import Annotated, Any

import typer

from everbus.bus.client import DEFAULT_TIMEOUT_S
from everbus.bus.events import SessionEvent
from everbus.compose.command_output import (
    OutputOption,
    SessionId,
    Timeout,
    cell_text,
    connected_mad,
    notify,
    print_json,
)
from everbus.compose.replay_command import Output


def watch(
    session_id: SessionId,
    after: Annotated[
        str | None,
        typer.Option(help="Events after this id; 0: all events. Default: from now on."),
    ] = None,
    output: OutputOption = Output.table,
) -> None:
    """
    Print the events of a session as they happen, until Ctrl-C or its deletion.

    Each event comes once, through restarts and takeovers.

    Example: everbus watch 0198a1c2-7b1e-7000-8000-5b8f0c2d1e3f --after 0 -o json
    """
    last = after
    try:
        with connected_mad() as mad:
            for event in mad.watch(session_id, after=after):
                print_event(event, output)
                last = event.id
    finally:
        if last is not None:
            notify(f"to go on: --after {last}")


def broadcast(
    session_id: SessionId,
    message: Annotated[str, typer.Argument(help="A JSON value.")],
    output: OutputOption = Output.table,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """
    Send a message to all subscribers of a session; its state stays as it is.

    Example: everbus session broadcast 0198a1c2-7b1e-7000-8000-5b8f0c2d1e3f '"hello"'
    """
    value = _json(message)
    with connected_mad() as mad:
        event_id = mad.broadcast(session_id, value, timeout=timeout)
    if output is Output.json:
        print_json({"id": event_id})
    else:
        notify(f"sent to the subscribers of {session_id}; event {event_id}")


def print_event(event: SessionEvent, output: Output) -> None:
    """
    Print an event as one line.
    """
    if output is Output.json:
        print_json(event)
        return
    contents = (event.entry, event.message, event.patch)
    content = next((one for one in contents if one is not None), None)
    cells = (event.at, event.id, event.kind, event.mad, content)
    typer.echo("  ".join(cell_text(cell) for cell in cells))


def _json(text: str) -> Any:  # a JSON value
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(
            f"{text!a:.80} is no JSON: {error}. Quote text twice: '\"hello\"'",
            param_hint="MESSAGE",
        ) from error

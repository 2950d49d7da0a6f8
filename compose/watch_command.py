"""
`everbus watch` and `everbus session broadcast`: hear what happens, say something.
"""

import json
from typing import Annotated, Any

import typer

from bus.client import DEFAULT_TIMEOUT_S
from bus.events import SessionEvent
from compose.answers import (
    OutputOption,
    SessionId,
    Timeout,
    a_mad,
    print_json,
    shown,
    tell,
)
from compose.replay_command import Output


def watch(
    session_id: SessionId,
    after: Annotated[
        str | None,
        typer.Option(
            help="Behind this event; 0: all there were. Default: from now on."
        ),
    ] = None,
    output: OutputOption = Output.table,
) -> None:
    """
    Print what happens in a session, as it happens, until Ctrl-C or its end.

    Nothing is left out and nothing comes twice, through restarts and takeovers.

    Example: everbus watch 0198a1c2-7b1e-7000-8000-5b8f0c2d1e3f --after 0 -o json
    """
    last = after
    try:
        with a_mad() as mad:
            for event in mad.watch(session_id, after=after):
                print_event(event, output)
                last = event.id
    finally:
        if last is not None:
            tell(f"to go on: --after {last}")


def broadcast(
    session_id: SessionId,
    message: Annotated[str, typer.Argument(help="A JSON value.")],
    output: OutputOption = Output.table,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """
    Say something to all who watch a session; its state and timeline stay as they are.

    Example: everbus session broadcast 0198a1c2-7b1e-7000-8000-5b8f0c2d1e3f '"hello"'
    """
    said = _json(message)
    with a_mad() as mad:
        event_id = mad.broadcast(session_id, said, timeout=timeout)
    if output is Output.json:
        print_json({"id": event_id})
    else:
        tell(f"{session_id} was told; event {event_id}")


def print_event(event: SessionEvent, output: Output) -> None:
    """
    An event as one line.
    """
    if output is Output.json:
        print_json(event)
        return
    what = next(
        (w for w in (event.entry, event.message, event.patch) if w is not None), None
    )
    cells = (event.at, event.id, event.kind, event.mad, what)
    typer.echo("  ".join(shown(cell) for cell in cells))


def _json(text: str) -> Any:  # a JSON value
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(
            f"{text!a:.80} is no JSON: {error}. Text is quoted twice: '\"hello\"'",
            param_hint="MESSAGE",
        ) from error

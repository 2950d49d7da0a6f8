"""
`everbus timeline`: the entries of a session, page by page.
"""

from datetime import datetime
from typing import Annotated

import typer

from everbus.bus.client import DEFAULT_TIMEOUT_S
from everbus.compose.command_output import (
    OutputOption,
    SessionId,
    Timeout,
    connected_mad,
    notify,
    parse_time,
    print_json,
    print_table,
)
from everbus.compose.replay_command import Output

_After = Annotated[
    int | None,
    typer.Option(min=0, help="Entries after this seq; default: from the beginning."),
]
_Before = Annotated[int | None, typer.Option(min=0, help="Entries before this seq.")]
_Since = Annotated[
    datetime | None,
    typer.Option(
        parser=parse_time, metavar="TIME", help="Entries at this time or later."
    ),
]
_Until = Annotated[
    datetime | None,
    typer.Option(parser=parse_time, metavar="TIME", help="Entries before this time."),
]


def timeline(
    session_id: SessionId,
    after: _After = 0,
    before: _Before = None,
    since: _Since = None,
    until: _Until = None,
    newest_first: Annotated[bool, typer.Option(help="In descending seq.")] = False,
    limit: Annotated[
        int, typer.Option(min=1, max=1000, help="Entries per page.")
    ] = 100,
    output: OutputOption = Output.table,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """
    Print the entries of a session's timeline within all bounds.

    A time without a zone is UTC.

    Example: everbus timeline 0198a1c2-7b1e-7000-8000-5b8f0c2d1e3f --since 2026-03-01
    """
    with connected_mad() as mad:
        page = mad.timeline(
            session_id,
            after=after,
            before=before,
            since=since,
            until=until,
            newest_first=newest_first,
            limit=limit,
            timeout=timeout,
        )
    if output is Output.json:
        print_json(page)
        return
    columns = ["seq", "at", "author", "entry"]
    if any(entry.turn for entry in page.entries):
        columns.insert(3, "turn")
    print_table(columns, ([getattr(e, name) for name in columns] for e in page.entries))
    if page.next is not None:
        notify(f"more: {'--before' if newest_first else '--after'} {page.next}")

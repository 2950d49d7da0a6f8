"""
`everbus timeline`: what was said in a session, page by page.
"""

from datetime import datetime
from typing import Annotated

import typer

from bus.client import DEFAULT_TIMEOUT_S
from compose.answers import (
    OutputOption,
    SessionId,
    Timeout,
    a_mad,
    moment,
    print_json,
    print_table,
    tell,
)
from compose.replay_command import Output

_After = Annotated[
    int | None, typer.Option(min=0, help="Behind this seq; default: the beginning.")
]
_Before = Annotated[int | None, typer.Option(min=0, help="Ahead of this seq.")]
_Since = Annotated[
    datetime | None,
    typer.Option(parser=moment, metavar="TIME", help="At this time or later."),
]
_Until = Annotated[
    datetime | None,
    typer.Option(parser=moment, metavar="TIME", help="Earlier than this time."),
]


def timeline(
    session_id: SessionId,
    after: _After = 0,
    before: _Before = None,
    since: _Since = None,
    until: _Until = None,
    newest_first: Annotated[bool, typer.Option(help="In descending seq.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 100,
    output: OutputOption = Output.table,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """
    Print the entries of a session's timeline within all bounds.

    A time without a zone is UTC.

    Example: everbus timeline 0198a1c2-7b1e-7000-8000-5b8f0c2d1e3f --since 2026-03-01
    """
    with a_mad() as mad:
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
    print_table(
        ("seq", "at", "author", "entry"),
        ((e.seq, e.at, e.author, e.entry) for e in page.entries),
    )
    if page.next is not None:
        tell(f"more: {'--before' if newest_first else '--after'} {page.next}")

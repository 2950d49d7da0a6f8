"""
`everbus session`: sessions found, shown, suspended, ended.
"""

from datetime import datetime
from typing import Annotated

import typer

from bus.client import DEFAULT_TIMEOUT_S
from bus.messages import Session, State
from compose.answers import (
    Expected,
    OutputOption,
    SessionId,
    Timeout,
    a_mad,
    moment,
    print_fields,
    print_json,
    print_table,
    tell,
)
from compose.history_command import (
    at,
    checkpoint,
    checkpoints,
    diff,
    restore,
)
from compose.replay_command import Output
from compose.watch_command import broadcast

_Since = Annotated[
    datetime | None,
    typer.Option(parser=moment, metavar="TIME", help="Active then or later."),
]
_Before = Annotated[
    datetime | None,
    typer.Option(parser=moment, metavar="TIME", help="Last active earlier."),
]


def list_(
    owner: Annotated[str | None, typer.Option(help="Whose they are.")] = None,
    participant: Annotated[str | None, typer.Option(help="A MAD in them.")] = None,
    state: Annotated[State | None, typer.Option(help="In which state.")] = None,
    tag: Annotated[str | None, typer.Option(help="A tag that they have.")] = None,
    text: Annotated[str | None, typer.Option(help="Words in them.")] = None,
    active_since: _Since = None,
    active_before: _Before = None,
    cursor: Annotated[
        str | None, typer.Option(help="Where the page before ended.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 20,
    output: OutputOption = Output.table,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """
    List the sessions to which all filters apply, latest activity first.

    Example: everbus session list --owner ada --state dormant -o json
    """
    with a_mad() as mad:
        page = mad.list_sessions(
            owner=owner,
            participant=participant,
            state=state,
            tag=tag,
            text=text,
            active_since=active_since,
            active_before=active_before,
            cursor=cursor,
            limit=limit,
            timeout=timeout,
        )
    if output is Output.json:
        print_json(page)
        return
    columns = ("id", "owner", "state", "version", "entries", "last active", "tags")
    print_table(columns, (_row(session) for session in page.sessions))
    if page.next is not None:
        tell(f"more: --cursor {page.next}")


def show(
    session_id: SessionId,
    full: Annotated[bool, typer.Option(help="With the full context.")] = False,
    output: OutputOption = Output.table,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """
    Show a session with its newest entries.

    Example: everbus session show 0198a1c2-7b1e-7000-8000-5b8f0c2d1e3f --full
    """
    with a_mad() as mad:
        print_session(mad.get_session(session_id, full=full, timeout=timeout), output)


def suspend(
    session_id: SessionId,
    expected_version: Expected = None,
    output: OutputOption = Output.table,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """
    Let a session rest: out of Redis, safe in MongoDB, until something changes it.

    Example: everbus session suspend 0198a1c2-7b1e-7000-8000-5b8f0c2d1e3f
    """
    with a_mad() as mad:
        rested = mad.suspend_session(
            session_id, expected_version=expected_version, timeout=timeout
        )
    print_session(rested, output)


def resume(
    session_id: SessionId,
    expected_version: Expected = None,
    output: OutputOption = Output.table,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """
    Wake a session that was suspended.

    Example: everbus session resume 0198a1c2-7b1e-7000-8000-5b8f0c2d1e3f
    """
    with a_mad() as mad:
        awake = mad.resume_session(
            session_id, expected_version=expected_version, timeout=timeout
        )
    print_session(awake, output)


def delete(
    session_id: SessionId,
    expected_version: Expected = None,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """
    End a session for good, with its timeline and its archive.

    Example: everbus session delete 0198a1c2-7b1e-7000-8000-5b8f0c2d1e3f
    """
    with a_mad() as mad:
        mad.delete_session(
            session_id, expected_version=expected_version, timeout=timeout
        )
    tell(f"{session_id} is deleted")


def durable(
    session_id: SessionId,
    wait: Annotated[bool, typer.Option(help="Until it is all of it.")] = False,
    output: OutputOption = Output.table,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """
    Tell how much of a session MongoDB holds: its version and its last entry's seq.

    Example: everbus session durable 0198a1c2-7b1e-7000-8000-5b8f0c2d1e3f --wait
    """
    with a_mad() as mad:
        held = mad.durable(session_id, wait=wait, timeout=timeout)
    if output is Output.json:
        print_json(held)
    else:
        print_fields(held)


def stats(
    output: OutputOption = Output.table, timeout: Timeout = DEFAULT_TIMEOUT_S
) -> None:
    """
    Count the sessions, and tell what each tier holds and costs a month.

    Example: everbus session stats -o json
    """
    with a_mad() as mad:
        counted = mad.stats(timeout=timeout)
    if output is Output.json:
        print_json(counted)
        return
    print_table(("state", "sessions"), sorted(counted.states.items()))
    print_table(
        ("tier", "sessions", "bytes", "cost"),
        (
            (name, f"{tier.sessions:,}", f"{tier.bytes:,}", f"{tier.cost:,.2f}")
            for name, tier in counted.tiers.items()
        ),
    )


def print_session(session: Session, output: Output) -> None:
    """
    A session's fields, and under them its newest entries.
    """
    if output is Output.json:
        print_json(session)
        return
    print_fields(session, "recent_timeline", "full_context")
    if session.full_context is not None:
        print_table(("full context",), [(session.full_context,)])
    if session.recent_timeline:
        print_table(
            ("seq", "at", "author", "entry"),
            ((e.seq, e.at, e.author, e.entry) for e in session.recent_timeline),
        )


def _row(session: Session) -> tuple[object, ...]:
    return (
        *(session.id, session.owner_id, session.state, session.version),
        *(session.last_seq, session.last_active, session.tags),
    )


session_app = typer.Typer(
    help="Find, show and change sessions. Example: everbus session list --owner ada",
    no_args_is_help=True,
)
session_app.command("list")(list_)
session_app.command()(show)
session_app.command()(suspend)
session_app.command()(resume)
session_app.command()(delete)
session_app.command()(at)
session_app.command()(diff)
session_app.command()(checkpoint)
session_app.command()(checkpoints)
session_app.command()(restore)
session_app.command()(stats)
session_app.command()(durable)
session_app.command()(broadcast)

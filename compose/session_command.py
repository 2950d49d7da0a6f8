"""
`everbus session`: find, show, suspend, resume and delete sessions.
"""

from datetime import datetime
from typing import Annotated, Any

import typer

from everbus.bus.client import DEFAULT_TIMEOUT_S
from everbus.bus.messages import Session, State
from everbus.compose.command_output import (
    Expected,
    OutputOption,
    SessionId,
    Timeout,
    connected_mad,
    notify,
    parse_time,
    print_fields,
    print_json,
    print_table,
)
from everbus.compose.history_command import (
    at,
    checkpoint,
    checkpoints,
    diff,
    restore,
)
from everbus.compose.json_argument import parse_object
from everbus.compose.replay_command import Output
from everbus.compose.watch_command import broadcast

_Since = Annotated[
    datetime | None,
    typer.Option(
        parser=parse_time, metavar="TIME", help="Last active at this time or later."
    ),
]
_Before = Annotated[
    datetime | None,
    typer.Option(
        parser=parse_time, metavar="TIME", help="Last active before this time."
    ),
]


def list_(
    owner: Annotated[str | None, typer.Option(help="The owner.")] = None,
    participant: Annotated[
        str | None, typer.Option(help="A MAD that takes part.")
    ] = None,
    state: Annotated[State | None, typer.Option(help="The state.")] = None,
    tag: Annotated[str | None, typer.Option(help="A tag.")] = None,
    text: Annotated[str | None, typer.Option(help="Words to search for.")] = None,
    active_since: _Since = None,
    active_before: _Before = None,
    cursor: Annotated[
        str | None, typer.Option(help="The end of the previous page.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Rows per page.")] = 20,
    output: OutputOption = Output.table,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """
    List the sessions that match all filters, latest activity first.

    Example: everbus session list --owner ada --state dormant -o json
    """
    with connected_mad() as mad:
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
        notify(f"more: --cursor {page.next}")


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
    with connected_mad() as mad:
        print_session(mad.get_session(session_id, full=full, timeout=timeout), output)


def create(
    user_id: Annotated[str, typer.Argument(help="The owner.", metavar="USER")],
    session_id: Annotated[
        str | None, typer.Option("--id", help="An id of your choice.")
    ] = None,
    output: OutputOption = Output.table,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """
    Create a session.

    Example: everbus session create ada
    """
    with connected_mad() as mad:
        session = mad.create_session(user_id, session_id=session_id, timeout=timeout)
    print_session(session, output)


def update(
    session_id: SessionId,
    patch: Annotated[
        dict[str, Any],
        typer.Argument(
            parser=parse_object,
            metavar="JSON",
            help="The merge patch (RFC 7396): JSON, @file, or - for stdin.",
        ),
    ],
    expected_version: Expected = None,
    output: OutputOption = Output.table,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """
    Merge a patch into a session.

    Example: everbus session update ID '{"tags": ["sea"]}' --expected-version 3
    """
    with connected_mad() as mad:
        session = mad.update_session(
            session_id, patch, expected_version=expected_version, timeout=timeout
        )
    print_session(session, output)


def suspend(
    session_id: SessionId,
    expected_version: Expected = None,
    output: OutputOption = Output.table,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """
    Suspend a session: it leaves Redis and stays in MongoDB until its next change.

    Example: everbus session suspend 0198a1c2-7b1e-7000-8000-5b8f0c2d1e3f
    """
    with connected_mad() as mad:
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
    Resume a suspended session.

    Example: everbus session resume 0198a1c2-7b1e-7000-8000-5b8f0c2d1e3f
    """
    with connected_mad() as mad:
        awake = mad.resume_session(
            session_id, expected_version=expected_version, timeout=timeout
        )
    print_session(awake, output)


def delete(
    session_id: SessionId,
    expected_version: Expected = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """
    Delete a session for good, with its timeline and its archive.

    Asks first, unless --yes is given.

    Example: everbus session delete 0198a1c2-7b1e-7000-8000-5b8f0c2d1e3f --yes
    """
    if not yes:
        typer.confirm(f"Delete {session_id} for good?", abort=True, err=True)
    with connected_mad() as mad:
        mad.delete_session(
            session_id, expected_version=expected_version, timeout=timeout
        )
    notify(f"{session_id} is deleted")


def durable(
    session_id: SessionId,
    wait: Annotated[
        bool, typer.Option(help="Wait until MongoDB has all of it.")
    ] = False,
    output: OutputOption = Output.table,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """
    Show how much of a session MongoDB holds: its version and its last entry's seq.

    Example: everbus session durable 0198a1c2-7b1e-7000-8000-5b8f0c2d1e3f --wait
    """
    with connected_mad() as mad:
        held = mad.durable(session_id, wait=wait, timeout=timeout)
    if output is Output.json:
        print_json(held)
    else:
        print_fields(held)


def stats(
    output: OutputOption = Output.table, timeout: Timeout = DEFAULT_TIMEOUT_S
) -> None:
    """
    Count the sessions; show the size of each tier and its cost per month.

    Example: everbus session stats -o json
    """
    with connected_mad() as mad:
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
    Print a session's fields, then its newest entries.
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
session_app.command()(create)
session_app.command()(show)
session_app.command()(update)
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

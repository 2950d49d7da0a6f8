"""
`everbus session at|diff|checkpoint|checkpoints|restore`: a session's history.
"""

from typing import Annotated, Literal

import typer

from everbus.bus.client import DEFAULT_TIMEOUT_S
from everbus.bus.messages import Checkpoint
from everbus.compose.command_output import (
    Expected,
    OutputOption,
    SessionId,
    Timeout,
    connected_mad,
    notify,
    print_fields,
    print_json,
    print_table,
)
from everbus.compose.replay_command import Output


def at(
    session_id: SessionId,
    version: Annotated[int, typer.Argument(help="The version.")],
    output: OutputOption = Output.table,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """
    Show the state of a session at a version.

    Example: everbus session at 0198a1c2-7b1e-7000-8000-5b8f0c2d1e3f 7
    """
    with connected_mad() as mad:
        then = mad.session_at(session_id, version, timeout=timeout)
    if output is Output.json:
        print_json(then)
    else:
        print_fields(then, "recent_timeline", "full_context")


def diff(
    session_id: SessionId,
    from_version: Annotated[int, typer.Argument(help="The earlier version.")],
    to_version: Annotated[int, typer.Argument(help="The later version.")],
    output: OutputOption = Output.table,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """
    Show the changes between two versions, each with its author.

    Example: everbus session diff 0198a1c2-7b1e-7000-8000-5b8f0c2d1e3f 3 7
    """
    with connected_mad() as mad:
        found = mad.diff(session_id, from_version, to_version, timeout=timeout)
    if output is Output.json:
        print_json(found)
        return
    print_table(
        ("version", "at", "what", "MAD", "principal", "patch"),
        (
            (step.version, step.at, step.kind, step.mad, step.principal, step.patch)
            for step in found.changes
        ),
    )
    print_table(("together",), [(found.patch,)])


def checkpoint(
    session_id: SessionId,
    name: Annotated[str, typer.Option(help="A name for it.")] = "",
    kind: Annotated[
        Literal["full", "incremental"],
        typer.Option(
            help="The whole state, or the difference from the last checkpoint."
        ),
    ] = "full",
    output: OutputOption = Output.table,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """
    Store a session's present state, for a later restore.

    Example: everbus session checkpoint 0198a1c2-7b1e-7000-8000-5b8f0c2d1e3f --name v1
    """
    with connected_mad() as mad:
        made = mad.create_checkpoint(session_id, name=name, kind=kind, timeout=timeout)
    if output is Output.json:
        print_json(made)
    else:
        print_fields(made)


def checkpoints(
    session_id: SessionId,
    before: Annotated[
        str | None, typer.Option(help="The end of the previous page.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Rows per page.")] = 20,
    output: OutputOption = Output.table,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """
    List a session's checkpoints, newest first.

    Example: everbus session checkpoints 0198a1c2-7b1e-7000-8000-5b8f0c2d1e3f
    """
    with connected_mad() as mad:
        page = mad.checkpoints(session_id, before=before, limit=limit, timeout=timeout)
    if output is Output.json:
        print_json(page)
        return
    columns = ("id", "name", "version", "kind", "at", "author")
    print_table(columns, (_row(kept) for kept in page.checkpoints))
    if page.next is not None:
        notify(f"more: --before {page.next}")


def restore(
    session_id: SessionId,
    checkpoint_id: Annotated[
        str, typer.Argument(help="The checkpoint's id.", metavar="CHECKPOINT")
    ],
    expected_version: Expected = None,
    output: OutputOption = Output.table,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
) -> None:
    """
    Restore summary, work in progress, tags and fields from a checkpoint.

    This makes a new version: the history stays complete. Owner, ACL and participants
    stay as they are.

    Example: everbus session restore 0198a1c2-7b1e-7000-8000-5b8f0c2d1e3f 7d1f.3.42
    """
    with connected_mad() as mad:
        restored = mad.restore_checkpoint(
            session_id,
            checkpoint_id,
            expected_version=expected_version,
            timeout=timeout,
        )
    if output is Output.json:
        print_json(restored)
    else:
        print_fields(restored, "recent_timeline", "full_context")


def _row(kept: Checkpoint) -> tuple[object, ...]:
    return (kept.id, kept.name, kept.version, kept.kind, kept.at, kept.author)

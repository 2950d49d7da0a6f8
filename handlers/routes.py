"""
The kinds of commands and their handlers: one explicit table.

A handler is `(session, command, now) -> Outcome`, or raises a Rejection. No I/O, no
clock, no asyncio: the same command on the same session always has the same outcome.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

import msgspec

from everbus.bus.messages import Session
from everbus.handlers import commands as body
from everbus.handlers.checkpoints import (
    create_checkpoint,
    list_checkpoints,
    restore_checkpoint,
)
from everbus.handlers.commands import Command
from everbus.handlers.live import broadcast_session, watch_session
from everbus.handlers.outcomes import Outcome
from everbus.handlers.participants import (
    add_participant,
    lost_participant,
    remove_participant,
)
from everbus.handlers.queries import (
    diff_session,
    list_sessions,
    read_stats,
    session_at,
)
from everbus.handlers.sessions import (
    archive_session,
    create_session,
    delete_session,
    durable_session,
    get_session,
    resume_session,
    suspend_session,
    update_session,
)
from everbus.handlers.timeline import append_timeline, read_timeline
from everbus.handlers.turns import MAX_ENTRIES, take_turn


class Route(NamedTuple):
    """
    Handler of one kind.

    Attributes:
        body: type of the decoded body.
        writes: whether it may change a session.
        sessionless: whether it needs no session, so that None is not an error.
    """

    body: type[msgspec.Struct]
    handler: Callable[[Session | None, Command, datetime], Outcome]
    writes: bool = True
    sessionless: bool = False


HANDLERS: Mapping[str, Route] = {
    "session.create": Route(body.CreateSession, create_session),
    "session.get": Route(body.GetSession, get_session, writes=False),
    "session.update": Route(body.UpdateSession, update_session),
    "session.turn": Route(body.TakeTurn, take_turn),
    "session.delete": Route(body.DeleteSession, delete_session),
    "session.suspend": Route(body.SuspendSession, suspend_session),
    "session.resume": Route(body.ResumeSession, resume_session),
    "session.archive": Route(body.ArchiveSession, archive_session),
    "session.durable": Route(body.DurableSession, durable_session, writes=False),
    "session.broadcast": Route(body.BroadcastSession, broadcast_session),
    "session.watch": Route(body.WatchSession, watch_session, writes=False),
    "session.at": Route(body.SessionAt, session_at, writes=False),
    "session.diff": Route(body.DiffSession, diff_session, writes=False),
    "session.list": Route(
        body.ListSessions, list_sessions, writes=False, sessionless=True
    ),
    "session.stats": Route(body.ReadStats, read_stats, writes=False, sessionless=True),
    "participant.add": Route(body.AddParticipant, add_participant),
    "participant.remove": Route(body.RemoveParticipant, remove_participant),
    "participant.lost": Route(body.LostParticipant, lost_participant),
    "timeline.append": Route(body.AppendTimeline, append_timeline),
    "timeline.read": Route(body.ReadTimeline, read_timeline, writes=False),
    "checkpoint.create": Route(body.CreateCheckpoint, create_checkpoint),
    "checkpoint.list": Route(body.ListCheckpoints, list_checkpoints, writes=False),
    "checkpoint.restore": Route(body.RestoreCheckpoint, restore_checkpoint),
}


def routes_with(
    fields_type: type[Any] | None, *, turn_max_entries: int = MAX_ENTRIES
) -> Mapping[str, Route]:
    """
    HANDLERS with a type for the sessions' `fields`, checked by every kind that changes
    them; None accepts any fields. A turn has at most *turn_max_entries*.

    A session begins with empty fields, so each field of the type should have a default.
    """
    if fields_type is None and turn_max_entries == MAX_ENTRIES:
        return HANDLERS
    chosen = {
        "session.update": partial(update_session, fields_type=fields_type),
        "session.turn": partial(
            take_turn, fields_type=fields_type, max_entries=turn_max_entries
        ),
        "checkpoint.restore": partial(restore_checkpoint, fields_type=fields_type),
    }
    return {
        kind: route._replace(handler=chosen.get(kind, route.handler))
        for kind, route in HANDLERS.items()
    }

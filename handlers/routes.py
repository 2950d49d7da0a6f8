"""
Which kinds of command there are, and what serves each: one explicit table.

A handler is `(session, command, now) -> Outcome`, or a Rejection. No I/O, no
clock, no asyncio: the same command on the same session always leads to the same
outcome.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

import msgspec

from bus.messages import Session
from handlers import commands as body
from handlers.checkpoints import (
    create_checkpoint,
    list_checkpoints,
    restore_checkpoint,
)
from handlers.commands import Command
from handlers.live import broadcast_session, watch_session
from handlers.outcomes import Outcome
from handlers.participants import (
    add_participant,
    lost_participant,
    remove_participant,
)
from handlers.questions import diff_session, list_sessions, read_stats, session_at
from handlers.sessions import (
    archive_session,
    create_session,
    delete_session,
    durable_session,
    get_session,
    resume_session,
    suspend_session,
    update_session,
)
from handlers.timeline import append_timeline, read_timeline


class Route(NamedTuple):
    """
    How one kind is served.

    Attributes:
        body: the type that its body is decoded to.
        writes: whether it may change a session.
        sessionless: whether it is for no session, so that None is no error.
    """

    body: type[msgspec.Struct]
    handler: Callable[[Session | None, Command, datetime], Outcome]
    writes: bool = True
    sessionless: bool = False


HANDLERS: Mapping[str, Route] = {
    "session.create": Route(body.CreateSession, create_session),
    "session.get": Route(body.GetSession, get_session, writes=False),
    "session.update": Route(body.UpdateSession, update_session),
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


def routes_with(fields_type: type[Any] | None) -> Mapping[str, Route]:
    """
    HANDLERS, with the sessions' `fields` held to *fields_type* by every kind that
    can change them; None: they may hold anything.

    A session begins with empty fields, so each of the type's should have a default.
    """
    if fields_type is None:
        return HANDLERS
    typed = {
        "session.update": partial(update_session, fields_type=fields_type),
        "checkpoint.restore": partial(restore_checkpoint, fields_type=fields_type),
    }
    return {
        kind: route._replace(handler=typed.get(kind, route.handler))
        for kind, route in HANDLERS.items()
    }

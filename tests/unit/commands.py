"""
One-line commands for the handlers, and what becomes of them `LATER`.
"""

from datetime import datetime, timedelta
from typing import Any

import msgspec

from bus.codec import pack
from bus.messages import Session, TimelineEntry
from handlers import commands as body
from handlers.commands import Command, Outcome
from handlers.routes import HANDLERS
from tests.builders import NOW, a_command, a_session

LATER = NOW + timedelta(seconds=5)


def handle(session: Session | None, command: Command, now: datetime = LATER) -> Outcome:
    return HANDLERS[command.kind].handler(session, command, now)


def create(user_id: Any = "ada", *, or_get: bool = False, **fields: Any) -> Command:
    wanted = body.CreateSession(user_id=user_id, or_get=or_get)
    return a_command("session.create", wanted, **fields)


def update(patch: dict[str, Any], **fields: Any) -> Command:
    return a_command("session.update", body.UpdateSession(patch), **fields)


def delete(**fields: Any) -> Command:
    return a_command("session.delete", body.DeleteSession(), **fields)


def get(**fields: Any) -> Command:
    return a_command("session.get", body.GetSession(), **fields)


def add(mad: str, role: str = "", **fields: Any) -> Command:
    wanted = body.AddParticipant(mad=mad, role=role)
    return a_command("participant.add", wanted, **fields)


def remove(mad: str, **fields: Any) -> Command:
    return a_command("participant.remove", body.RemoveParticipant(mad), **fields)


def append(entry: Any, **fields: Any) -> Command:
    raw = entry if isinstance(entry, msgspec.Raw) else msgspec.Raw(pack(entry))
    return a_command("timeline.append", body.AppendTimeline(raw), **fields)


def read(after: int | None = None, limit: int = 100) -> Command:
    return a_command("timeline.read", body.ReadTimeline(after=after, limit=limit))


def a_talk(entries: int, *, of_bytes: int = 10) -> Session:
    session = a_session()
    for n in range(1, entries + 1):
        session = after(session, append({"n": n, "text": "x" * of_bytes}))
    return session


def after(session: Session | None, command: Command, now: datetime = LATER) -> Session:
    changed = handle(session, command, now).session
    assert changed is not None
    return changed


def seqs(encoded: tuple[Any, ...]) -> list[int]:
    return [msgspec.msgpack.decode(e, type=TimelineEntry).seq for e in encoded]


def hot_bytes(session: Session) -> int:
    state = msgspec.structs.replace(session, recent_timeline=())
    return len(pack(state)) + sum(map(len, session.recent_timeline))

"""
One-line commands for the handlers, and what becomes of them `LATER`.
"""

from datetime import datetime, timedelta
from typing import Any

import msgspec

from everbus.bus.messages import Session, TimelineEntry, pack
from everbus.handlers import commands as body
from everbus.handlers.commands import Command
from everbus.handlers.outcomes import Event, Outcome
from everbus.handlers.routes import HANDLERS
from tests.builders import NOW, a_command, a_session

LATER = NOW + timedelta(seconds=5)


def handle(session: Session | None, command: Command, now: datetime = LATER) -> Outcome:
    return HANDLERS[command.kind].handler(session, command, now)


def create(user_id: Any = "ada", *, or_get: bool = False, **fields: Any) -> Command:
    wanted = body.CreateSession(user_id=user_id, or_get=or_get)
    return a_command("session.create", wanted, **fields)


def update(patch: dict[str, Any], **fields: Any) -> Command:
    return a_command("session.update", body.UpdateSession(patch), **fields)


def delete(*, idle_since: datetime | None = None, **fields: Any) -> Command:
    wanted = body.DeleteSession(idle_since=idle_since)
    return a_command("session.delete", wanted, **fields)


def get(*, full: bool = False, **fields: Any) -> Command:
    return a_command("session.get", body.GetSession(full=full), **fields)


def suspend(**fields: Any) -> Command:
    return a_command("session.suspend", body.SuspendSession(), **fields)


def resume(**fields: Any) -> Command:
    return a_command("session.resume", body.ResumeSession(), **fields)


def durable(*, wait: bool = False, **fields: Any) -> Command:
    return a_command("session.durable", body.DurableSession(wait=wait), **fields)


def broadcast(message: Any, **fields: Any) -> Command:
    return a_command("session.broadcast", body.BroadcastSession(message), **fields)


def watch(after: str | None = None, *, fetched: Any = None, **wanted: Any) -> Command:
    asked = body.WatchSession(after=after, **wanted)
    return a_command("session.watch", asked, fetched=fetched)


def archive(session: Session | None = None, **wanted: Any) -> Command:
    """
    The archiver's command for *session* as it is, but for *wanted*.
    """
    seen = session or a_session()
    known: dict[str, Any] = {
        "version": seen.version,
        "last_seq": seen.last_seq,
        "notices": seen.notices,
        "idle_since": seen.last_active + timedelta(days=365),
        "pointer": "s1/manifest",
        "bytes": 1_000,
        "moves": 4,
    }
    fields = {"mad": "gateway", "principal": "gateway"}
    return a_command("session.archive", body.ArchiveSession(**known | wanted), **fields)


def checkpoint(name: str = "", kind: Any = "full", **fields: Any) -> Command:
    wanted = body.CreateCheckpoint(name=name, kind=kind)
    return a_command("checkpoint.create", wanted, **fields)


def checkpoints(before: str | None = None, limit: int = 100, **fields: Any) -> Command:
    wanted = body.ListCheckpoints(before=before, limit=limit)
    return a_command("checkpoint.list", wanted, **fields)


def restore(checkpoint_id: str = "i1.0.9", **fields: Any) -> Command:
    wanted = body.RestoreCheckpoint(checkpoint_id=checkpoint_id)
    return a_command("checkpoint.restore", wanted, **fields)


def at(version: int, **fields: Any) -> Command:
    return a_command("session.at", body.SessionAt(version=version), **fields)


def diff(first: int, second: int, **fields: Any) -> Command:
    wanted = body.DiffSession(from_version=first, to_version=second)
    return a_command("session.diff", wanted, **fields)


def find(*, sees_all: bool = False, fetched: Any = None, **query: Any) -> Command:
    wanted = body.ListSessions(**query)
    return a_command("session.list", wanted, sees_all=sees_all, fetched=fetched)


def add(mad: str, role: str = "", **fields: Any) -> Command:
    """
    As the owner asks; `may_share=False`: as anybody else.
    """
    wanted = body.AddParticipant(mad=mad, role=role)
    return a_command("participant.add", wanted, **{"may_share": True} | fields)


def remove(mad: str, **fields: Any) -> Command:
    return a_command("participant.remove", body.RemoveParticipant(mad), **fields)


def append(
    entry: Any, *, expected_last_seq: int | None = None, **fields: Any
) -> Command:
    raw = entry if isinstance(entry, msgspec.Raw) else msgspec.Raw(pack(entry))
    wanted = body.AppendTimeline(raw, expected_last_seq)
    return a_command("timeline.append", wanted, **fields)


def turn(*entries: Any, patch: dict[str, Any] | None = None, **fields: Any) -> Command:
    """
    A turn of *entries* and *patch*; the other fields are the body's or the command's.
    """
    own = {n: fields.pop(n) for n in ("turn", "expected_last_seq") if n in fields}
    raw = [e if isinstance(e, msgspec.Raw) else msgspec.Raw(pack(e)) for e in entries]
    wanted = body.TakeTurn(entries=raw, patch=patch or {}, **own)
    return a_command("session.turn", wanted, **fields)


def read(after: int | None = None, *, fetched: Any = None, **bounds: Any) -> Command:
    wanted = body.ReadTimeline(after=after, **bounds)
    return a_command("timeline.read", wanted, fetched=fetched)


def a_talk(entries: int, *, of_bytes: int = 10) -> Session:
    session = a_session()
    for n in range(1, entries + 1):
        session = after(session, append({"n": n, "text": "x" * of_bytes}))
    return session


def after(session: Session | None, command: Command, now: datetime = LATER) -> Session:
    changed = handle(session, command, now).session
    assert changed is not None
    return changed


def the_event(outcome: Outcome) -> Event:
    [event] = outcome.events
    return event


def seqs(encoded: tuple[Any, ...]) -> list[int]:
    return [msgspec.msgpack.decode(e, type=TimelineEntry).seq for e in encoded]


def hot_bytes(session: Session) -> int:
    state = msgspec.structs.replace(session, recent_timeline=())
    return len(pack(state)) + sum(map(len, session.recent_timeline))

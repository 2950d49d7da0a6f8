"""
The page of events: those of sessions, and those of the log.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import everbus
from everbus.bus.events import SessionEvent
from everbus.compose.reference.markdown import attributes_of, in_code, page, table

# Kind of event → what has happened; a test compares the kinds with the handlers.
SESSION_EVENTS = {
    "session.created": "the session exists, at version 1",
    "session.updated": "a patch changed the state; `patch` has the difference",
    "session.suspended": "dormant: out of Redis as soon as MongoDB holds it",
    "session.resumed": "active again, by a command or by the next change",
    "session.deleted": "the end of this session; a watch ends after it",
    "session.broadcast": "a message for all subscribers, in `message`",
    "session.archived": "the cold tier holds it; subscribers do not see this",
    "session.rehydrated": "back from the cold tier; subscribers do not see this",
    "participant.added": "a MAD takes part",
    "participant.removed": "a MAD left, or was removed",
    "participant.lost": "the last instance of a MAD was declared lost",
    "timeline.appended": "an entry was appended; `entry` has it, `seq` is its place",
    "checkpoint.created": "a state was stored",
    "checkpoint.restored": "a stored state is the state again, as a new version",
}
LEVELS = ("debug", "info", "warning", "error", "critical", "exception")
ROOMS = ("bus", "gateway", "archiver", "compose")


class LogEvent(NamedTuple):
    """
    One event of the log, as the code writes it.
    """

    name: str
    level: str
    room: str
    fields: tuple[str, ...]


def events_page() -> str:
    """
    Events of sessions with their fields; events of the log.
    """
    kinds = ((in_code(kind), what) for kind, what in SESSION_EVENTS.items())
    meanings = attributes_of(SessionEvent)
    fields = (
        (in_code(name), meanings.get(name, ""))
        for name in SessionEvent.__struct_fields__
    )
    logged = (
        (in_code(one.name), one.level, one.room, ", ".join(one.fields))
        for one in sorted(set(log_events()))
    )

    return page(
        "Events",
        "## Events of a session",
        "`mad.watch`, the edge's streams and `everbus watch` show them, each once and "
        "in order.",
        table(("kind", "what has happened"), kinds),
        table(("field", "meaning"), fields),
        "## Events of the log",
        "The field `event` of a log line. Request, session, MAD and replica are added "
        "where they are known.",
        table(("event", "level", "from", "fields"), logged),
    )


def log_events() -> Iterator[LogEvent]:
    """
    Every `log.<level>("noun.past_verb", field=…)` of the product.
    """
    here = Path(everbus.__file__).parent
    for room in ROOMS:
        for path in sorted((here / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    yield from _logged(node, room)


def _logged(call: ast.Call, room: str) -> Iterator[LogEvent]:
    method = call.func
    if not isinstance(method, ast.Attribute) or method.attr not in LEVELS:
        return
    if not isinstance(method.value, ast.Name) or method.value.id != "log":
        return
    named = call.args and isinstance(call.args[0], ast.Constant)
    if named:
        fields = tuple(sorted(one.arg for one in call.keywords if one.arg))
        name = str(ast.literal_eval(call.args[0]))
        yield LogEvent(name, method.attr, room, fields)

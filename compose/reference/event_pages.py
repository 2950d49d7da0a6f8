"""
The page of events: those of sessions, and those of the log.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import everbus
from everbus.bus.events import SessionEvent
from everbus.compose.catalogue.entries import catalogue
from everbus.compose.reference.markdown import attributes_of, in_code, page, table

# Kind of event → what has happened; a test compares the kinds with the handlers.
SESSION_EVENTS = {
    "session.created": "the session exists, at version 1",
    "session.updated": "a patch changed the state; `patch` has the difference",
    "session.turned": "the end of a turn, behind its entries; `patch` has the "
    "difference of the state, perhaps empty",
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
    told = {one.name: one.meaning for one in catalogue() if one.kind == "log event"}
    logged = (
        (
            in_code(one.name),
            one.level,
            one.room,
            ", ".join(one.fields),
            told.get(one.name, ""),
        )
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
        "where they are known. `everbus explain EVENT` adds the usual reason, and what "
        "to do.",
        table(("event", "level", "from", "fields", "what has happened"), logged),
    )


def log_events() -> Iterator[LogEvent]:
    """
    Every `log.<level>("noun.past_verb", field=…)` of the product.
    """
    here = Path(everbus.__file__).parent
    for room in ROOMS:
        for path in sorted((here / room).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            levels: dict[str, str] = {}
            for name, level in _other_names(tree):
                levels[name] = f"{levels[name]} or {level}" if name in levels else level
            for node in ast.walk(tree):
                if isinstance(node, ast.Call):
                    yield from _logged(node, room, levels)


def _logged(call: ast.Call, room: str, levels: Mapping[str, str]) -> Iterator[LogEvent]:
    level = _level(call.func)
    if not level and isinstance(call.func, ast.Name):
        level = levels.get(call.func.id, "")
    if level and call.args:
        fields = tuple(sorted(one.arg for one in call.keywords if one.arg))
        for name in _constants(call.args[0]):
            yield LogEvent(name, level, room, fields)


def _other_names(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """
    Names that stand for `log.<level>`: `report = log.error if … else log.warning`, and
    functions that log the event they are given.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if not isinstance(node.value, ast.Call):
                levels = dict.fromkeys(filter(None, map(_level, ast.walk(node.value))))
                yield from ((node.targets[0].id, level) for level in levels)
        elif isinstance(node, ast.FunctionDef):
            given = {one.arg for one in node.args.args}
            calls = (one for one in ast.walk(node) if isinstance(one, ast.Call))
            for call in calls:
                passed_on = {ast.unparse(one) for one in call.args} & given
                if passed_on and _level(call.func):
                    yield node.name, _level(call.func)


def _level(function: ast.AST) -> str:
    """
    The level of `log.<level>`; empty for anything else.
    """
    if not isinstance(function, ast.Attribute) or function.attr not in LEVELS:
        return ""
    named = isinstance(function.value, ast.Name) and function.value.id == "log"

    return function.attr if named else ""


def _constants(event: ast.expr) -> Iterator[str]:
    """
    The names that an event may have: one, or two of a condition.
    """
    if isinstance(event, ast.IfExp):
        yield from _constants(event.body)
        yield from _constants(event.orelse)
    elif isinstance(event, ast.Constant) and isinstance(event.value, str):
        yield event.value

"""
The rules of a mapping file, and their checks before any row is read.
"""

import hashlib
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

from everbus.bus.errors import Rejection
from everbus.bus.messages import check_mad
from everbus.compose.exit_codes import USAGE, Failed
from everbus.compose.migration.values import FieldRule

Rule = str | FieldRule
# What the preset `openai` says by itself.
_OPENAI: dict[str, dict[str, Any]] = {
    "source": {
        "conversations": "agent_sessions",
        "messages": "agent_messages",
        "id": "session_id",
        "conversation": "session_id",
        "order": "id",
    },
    "session": {"id": "session_id"},
    "entry": {"whole": {"field": "message_data", "type": "json"}},
}


class MappingError(Failed):
    """
    The mapping file, or the store that it names, is wrong: where, what, what is wanted.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, USAGE)


class SourceRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """
    The old store.

    Attributes:
        path: of the file; relative to the mapping file.
        url_env: name of the variable that holds MongoDB's URL.
        conversations: table or collection.
        messages: table or collection; with *embedded* the field that holds the list.
        id: unique column of a conversation.
        conversation: column of a message that holds the conversation's id.
        order: columns that order the messages of a conversation, ascending.
    """

    kind: Literal["jsonl", "sqlite", "mongodb", "openai"]
    path: str = ""
    url_env: str = ""
    database: str = ""
    conversations: str = "conversations"
    messages: str = "messages"
    embedded: bool = False
    id: str = "id"
    conversation: str = "conversation_id"
    order: str | list[str] = "id"

    @property
    def ordering(self) -> list[str]:
        """
        The ordering columns, as a list.
        """
        return [self.order] if isinstance(self.order, str) else list(self.order)


class SessionRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """
    What a conversation becomes.

    Attributes:
        prefix: begin of every session's id.
        mads: MADs that may use every session, beside the copying MAD.
        title: becomes `context_summary.title`.
    """

    owner: Rule
    id: Rule = "id"
    prefix: str = ""
    tenant: Rule | None = None
    tags: Rule | None = None
    title: Rule | None = None
    mads: list[str] = []
    fields: dict[str, Rule] = {}
    context_summary: dict[str, Rule] = {}
    full_context: dict[str, Rule] = {}


class EntryRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """
    What a message becomes: an object of *fields*, or *whole*.

    Attributes:
        whole: true: the message as it is; or the field whose value is the entry.
        fields: key of the entry → field of the message.
        rest: key under which all other fields of the message go, if any.
        leave_out: fields that *rest* and *whole* leave out.
    """

    whole: bool | Rule = False
    fields: dict[str, Rule] = {}
    rest: str = ""
    leave_out: list[str] = []


class MappingRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """
    A whole mapping file.
    """

    source: SourceRules
    session: SessionRules
    entry: EntryRules


def read_rules(path: Path) -> tuple["MappingRules", str]:
    """
    The rules in the file *path*, and the hash of the file.

    Raises:
        MappingError: it names the file, line and key, and what is wanted.
    """
    try:
        text = path.read_text("utf-8")
        given = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise MappingError(f"{path}: {error}; wanted a TOML file") from error
    if (
        isinstance(source := given.get("source"), dict)
        and source.get("kind") == "openai"
    ):
        given = {**given, **{k: _OPENAI[k] | given.get(k, {}) for k in _OPENAI}}
    try:
        rules = msgspec.convert(given, MappingRules)
        _check(rules)
    except (msgspec.ValidationError, _Wrong) as error:
        what, _, key = str(error).partition(" - at `$.")
        key = key.rstrip("`")
        line = f", line {n}" if (n := _line_of(text, key)) else ""
        raise MappingError(f"{path}{line}: {key or 'file'}: {what}") from error
    digest = hashlib.sha256(text.encode()).hexdigest()

    return rules, digest


class _Wrong(Exception):
    pass


def _check(rules: MappingRules) -> None:
    source, entry = rules.source, rules.entry
    wanted = "source.url_env" if source.kind == "mongodb" else "source.path"
    if not (source.url_env if source.kind == "mongodb" else source.path):
        raise _Wrong(f"is missing; kind {source.kind!r} needs it - at `$.{wanted}`")
    if source.kind == "mongodb" and not source.database:
        raise _Wrong("is missing; wanted MongoDB's database - at `$.source.database`")
    if source.kind != "mongodb" and source.url_env:
        raise _Wrong("is for kind 'mongodb' only - at `$.source.url_env`")
    if bool(entry.whole) == bool(entry.fields):
        raise _Wrong("wanted either `whole` or `fields` - at `$.entry`")
    if not source.ordering:
        raise _Wrong("is empty; wanted a column that grows - at `$.source.order`")
    for n, mad in enumerate(rules.session.mads):
        try:
            check_mad(mad)
        except Rejection as error:
            raise _Wrong(f"{error.message} - at `$.session.mads[{n}]`") from error


def _line_of(text: str, key: str) -> int:
    """
    The line of a key such as `session.owner`; 0 if it cannot be told.
    """
    *sections, name = re.sub(r"\[.*", "", key).split(".")
    header = ""
    for number, line in enumerate(text.splitlines(), 1):
        if found := re.match(r"\s*\[([\w.]+)\]", line):
            header = found[1]
            if header == key:
                return number
        elif header == ".".join(sections) and re.match(rf"\s*{name}\s*=", line):
            return number
    return 0

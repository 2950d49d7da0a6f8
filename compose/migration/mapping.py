"""
The mapping file: which field of the old store becomes what in everbus.

Pure: from the values of one row to a session or a timeline entry. The same rules serve
backfill, dual write and comparison, or these would disagree.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from everbus.bus.derived_ids import check_reserved
from everbus.bus.errors import Rejection
from everbus.bus.messages import (
    MAX_COMMAND_BYTES,
    check_json,
    check_name,
    check_session_id,
    pack,
)
from everbus.bus.principal_names import check_short_name
from everbus.compose.migration.rules import MappingRules, Rule, read_rules
from everbus.compose.migration.values import FieldRule, RowProblem, as_rule
from everbus.handlers.patches import MAX_TAGS, check_label

MAX_ENTRY_BYTES = MAX_COMMAND_BYTES - 16 * 1024  # envelope and grant travel too
_HASHED = re.compile(r"m-[0-9a-f]{40}")


class SessionPlan(NamedTuple):
    """
    The session that a conversation becomes.

    Attributes:
        state: the patch that makes its state; no nulls, which a patch would remove.
    """

    session_id: str
    owner: str
    tenant: str
    state: dict[str, Any]  # JSON values
    mads: tuple[str, ...] = ()


class MigrationMapping:
    """
    A checked mapping file.

    Attributes:
        digest: hash of the file; a position belongs to one mapping.
    """

    def __init__(self, rules: MappingRules, digest: str, folder: Path) -> None:
        self.source = rules.source
        self.folder = folder
        self.digest = digest
        self._entry = rules.entry
        self._prefix, self._mads = rules.session.prefix, tuple(rules.session.mads)
        session = rules.session
        self._id = as_rule(session.id, "id", required=True)
        self._owner = as_rule(session.owner, "id", required=True)
        self._tenant = as_rule(session.tenant, "id") if session.tenant else None
        self._tags = as_rule(session.tags, "list") if session.tags else None
        summary = dict(session.context_summary)
        if session.title:
            summary["title"] = as_rule(session.title, "text")
        self._state = {
            "fields": _rules(session.fields),
            "context_summary": _rules(summary),
            "full_context": _rules(session.full_context),
        }
        self._fields = _rules(rules.entry.fields)
        self._named = {rule.field for rule in self._fields.values()}

    @property
    def has_tenants(self) -> bool:
        """
        Whether conversations name their tenant.
        """
        return self._tenant is not None

    @property
    def has_context(self) -> bool:
        """
        Whether sessions get a full context.
        """
        return bool(self._state["full_context"])

    @property
    def session_columns(self) -> set[str]:
        """
        The fields of a conversation that the mapping reads; `a.b` is `b` within `a`.
        """
        parts = [rule for part in self._state.values() for rule in part.values()]

        return _columns([self._id, self._owner, self._tenant, self._tags, *parts])

    @property
    def entry_columns(self) -> set[str]:
        """
        As `session_columns`, of a message.
        """
        whole = self._entry.whole
        named = [] if isinstance(whole, bool) else [as_rule(whole, required=True)]

        return _columns([*self._fields.values(), *named])

    def key(self, row: Mapping[str, Any]) -> str:
        """
        The conversation's id in the old store, as text.
        """
        return str(self._id.read(row))

    def session(self, row: Mapping[str, Any]) -> SessionPlan:
        """
        What the conversation in *row* becomes.

        Raises:
            RowProblem: a field has a value that everbus cannot take.
        """
        owner = self._owner.read(row)
        tenant = (self._tenant.read(row) or "") if self._tenant else ""
        try:
            check_name(owner, self._owner.field or "owner")
            if tenant:
                check_short_name(tenant, "tenant")
            plan = SessionPlan(
                session_id_of(self.key(row), self._prefix),
                owner,
                tenant,
                self._state_in(row),
                self._mads,
            )
            check_json(plan.state, "state")
        except Rejection as error:
            field = str(error.details.get("field", "session"))
            raise RowProblem(
                field, error.message.removeprefix(field).strip()
            ) from error
        return plan

    def entry(self, row: Mapping[str, Any]) -> Any:
        """
        The timeline entry that the message in *row* becomes.

        Raises:
            RowProblem: a field has a wrong type, or the entry is too large.
        """
        entry = self._shaped(row)
        try:
            check_json(entry, "entry")
        except Rejection as error:
            raise RowProblem("entry", error.message.removeprefix("entry ")) from error
        size = len(pack(entry))
        if size > MAX_ENTRY_BYTES:
            raise RowProblem("entry", f"is {size} bytes; at most {MAX_ENTRY_BYTES}")

        return entry

    def _shaped(self, row: Mapping[str, Any]) -> Any:
        whole = self._entry.whole
        if whole is True:
            kept = {k: v for k, v in row.items() if k not in self._entry.leave_out}
            return FieldRule(field="row").read({"row": kept})
        if whole is not False:
            return as_rule(whole, required=True).read(row)
        entry = _read_all(self._fields, row)
        if self._entry.rest:
            left_out = {*self._named, *self._entry.leave_out}
            rest = {k: v for k, v in row.items() if k not in left_out and v is not None}
            if rest:
                key = self._entry.rest
                entry[key] = FieldRule(field=key).read({key: rest})
        return entry

    def _state_in(self, row: Mapping[str, Any]) -> dict[str, Any]:
        state: dict[str, Any] = {}
        for part, rules in self._state.items():
            if read := _without_nulls(_read_all(rules, row)):
                state[part] = read
        tags = self._tags.read(row) if self._tags else None
        if tags and self._tags:
            _check_tags(tags, self._tags.field)
            state["tags"] = list(dict.fromkeys(tags))
        return state


def load_mapping(path: Path) -> MigrationMapping:
    """
    The mapping in the file *path*.

    Raises:
        MappingError: it names the file, line and key, and what is wanted.
    """
    return MigrationMapping(*read_rules(path), path.parent)


def session_id_of(key: str, prefix: str = "") -> str:
    """
    The session's id: prefix and *key* where that is a valid id, else a hash of both.

    No two keys have the same: a key that looks like such a hash is hashed as well.
    """
    plain = f"{prefix}{key}"
    try:
        # The forms of UUIDs that follow from names belong to others.
        check_reserved(check_session_id(plain), "", "", "")
        if not _HASHED.fullmatch(plain):
            return plain
    except Rejection:
        pass
    return f"m-{hashlib.sha256(plain.encode()).hexdigest()[:40]}"


def _rules(given: Mapping[str, Rule]) -> dict[str, FieldRule]:
    return {key: as_rule(rule) for key, rule in given.items()}


def _columns(rules: Iterable[FieldRule | None]) -> set[str]:
    return {rule.field for rule in rules if rule and rule.field}


def _read_all(rules: Mapping[str, FieldRule], row: Mapping[str, Any]) -> dict[str, Any]:
    read = {key: rule.read(row) for key, rule in rules.items()}

    return {key: value for key, value in read.items() if value is not None}


def _without_nulls(value: Any) -> Any:
    """
    *value* as a merge patch leaves it: an object's null members mean their removal.
    """
    if not isinstance(value, dict):
        return value
    return {k: _without_nulls(v) for k, v in value.items() if v is not None}


def _check_tags(tags: list[str], field: str) -> None:
    for tag in tags:
        check_label(tag, field)
    if len(set(tags)) > MAX_TAGS:
        raise RowProblem(field, f"has {len(tags)} tags; at most {MAX_TAGS}")

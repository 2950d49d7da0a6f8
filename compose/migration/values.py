"""
One field of the old store as a JSON value: the rule that names it, and its checks.

A rule never guesses: a value of another type is a problem of its row, with the field,
the value and what was wanted.
"""

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from everbus.bus.errors import Rejection
from everbus.bus.messages import check_json
from everbus.bus.quotation import quoted

Kind = Literal[
    "value", "text", "id", "integer", "json", "list", "time", "time_s", "time_ms"
]


class RowProblem(Exception):
    """
    A row of the old store cannot be copied as it is.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field} {reason}")
        self.field = field
        self.reason = reason


class FieldRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """
    Where a value comes from.

    Attributes:
        field: the column or field of the old store; dots lead into objects.
        value: a constant instead of a field.
        type: what the field must hold; `json` is text that holds JSON, `list` is a
            list of texts or one text with commas, `time_s` and `time_ms` count from
            1970.
        required: whether a row without the value is refused; else the key is left out.
    """

    field: str = ""
    value: Any = None  # JSON value
    type: Kind = "value"
    required: bool = False

    def read(self, row: Mapping[str, Any]) -> Any:
        """
        The value in *row*; None if it has none.

        Raises:
            RowProblem: a wrong type, or a required value is missing.
        """
        if not self.field:
            return self.value
        found = _inside(row, self.field)
        if found is None:
            if self.required:
                raise RowProblem(self.field, f"is missing; wanted {self.type}")
            return None
        try:
            value = _READERS[self.type](found)
            check_json(value, self.field)
        except Rejection as error:
            what = error.message.removeprefix(self.field).strip()
            raise RowProblem(self.field, what) from error
        except (ValueError, OverflowError, RecursionError) as error:
            raise RowProblem(
                self.field, f"is {quoted(found)}; wanted {_WANTED[self.type]}"
            ) from error
        return value


def as_rule(given: str | FieldRule, kind: Kind = "value", **options: Any) -> FieldRule:
    """
    The rule for *given*; a name alone is a field of type *kind*.
    """
    if isinstance(given, FieldRule):
        changed = {"type": kind} if given.type == "value" else {}
        return msgspec.structs.replace(given, **changed, **options)
    return FieldRule(field=given, type=kind, **options)


def _inside(row: Mapping[str, Any], name: str) -> Any:
    if name in row:
        return row[name]
    found: Any = row
    for part in name.split("."):
        if not isinstance(found, Mapping):
            return None
        found = found.get(part)
    return found


def _value(found: Any) -> Any:
    if isinstance(found, datetime):
        return _time(found)
    if isinstance(found, Mapping):
        return {key: _value(inner) for key, inner in found.items()}
    if isinstance(found, list):
        return [_value(inner) for inner in found]
    if isinstance(found, bytes):
        raise ValueError  # noqa: TRY004 - one error for every wrong value
    return found


def _text(found: Any) -> str:
    if not isinstance(found, str):
        raise ValueError  # noqa: TRY004 - one error for every wrong value
    return found


def _id(found: Any) -> str:
    if isinstance(found, int) and not isinstance(found, bool):
        return str(found)
    if not _text(found):
        raise ValueError
    return found  # type: ignore[no-any-return]


def _integer(found: Any) -> int:
    if isinstance(found, bool) or not isinstance(found, int):
        raise ValueError  # noqa: TRY004 - one error for every wrong value
    return found


def _json(found: Any) -> Any:
    return msgspec.json.decode(_text(found))


def _list(found: Any) -> list[str]:
    if isinstance(found, str):
        return [part.strip() for part in found.split(",") if part.strip()]
    if not isinstance(found, list):
        raise ValueError  # noqa: TRY004 - one error for every wrong value
    return [_text(item) for item in found]


def _time(found: Any) -> str:
    at = found if isinstance(found, datetime) else datetime.fromisoformat(_text(found))
    aware = at if at.tzinfo else at.replace(tzinfo=UTC)

    return aware.astimezone(UTC).isoformat()


def _counted(per_second: int) -> Callable[[Any], str]:
    def read(found: Any) -> str:
        number = isinstance(found, int | float) and not isinstance(found, bool)
        if not number or not math.isfinite(found):
            raise ValueError
        try:
            return datetime.fromtimestamp(found / per_second, UTC).isoformat()
        except OSError as error:
            raise ValueError from error

    return read


_READERS: dict[Kind, Callable[[Any], Any]] = {
    "value": _value,
    "text": _text,
    "id": _id,
    "integer": _integer,
    "json": _json,
    "list": _list,
    "time": _time,
    "time_s": _counted(1),
    "time_ms": _counted(1_000),
}
_WANTED: dict[Kind, str] = {
    "value": "a JSON value in UTF-8",
    "text": "text in UTF-8",
    "id": "text or an integer",
    "integer": "an integer",
    "json": "text that holds JSON",
    "list": "a list of texts, or text with commas",
    "time": "a time in ISO 8601, UTC without a time zone",
    "time_s": "seconds since 1970",
    "time_ms": "milliseconds since 1970",
}

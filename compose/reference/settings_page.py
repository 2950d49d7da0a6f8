"""
The page of settings: every `EVERBUS_…` variable of every process.
"""

from enum import Enum
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from everbus.compose.reference.markdown import in_code, page, table
from everbus.compose.setting_meanings import MEANINGS, TOPICS
from everbus.compose.settings import FROM_FILE, PREFIX, Settings

# Type of a limit → its sign, and the name of its value.
SIGNS = {Ge: ("≥", "ge"), Gt: (">", "gt"), Le: ("≤", "le"), Lt: ("<", "lt")}
HEAD = ("variable", "value", "default", "what")


def settings_page() -> str:
    """
    All settings by topic.
    """
    parts: list[str] = []
    for topic, names in TOPICS.items():
        parts += [f"## {topic}", table(HEAD, map(_row, names))]

    return page(
        "Settings",
        "Settings come from the environment only. An unknown variable that begins with "
        f"`{PREFIX}` is refused with the nearest name; an empty one counts as not set. "
        "A value marked *file* may come as `…_FILE`, the path of a file with it.",
        *parts,
    )


def _row(name: str) -> tuple[str, str, str, str]:
    field = Settings.model_fields[name]
    variable = in_code(PREFIX + name.upper())
    mark = " *file*" if name in FROM_FILE else ""

    return variable + mark, _value(field), in_code(_default(field)), MEANINGS[name]


def _default(field: FieldInfo) -> str:
    value = field.default
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, Enum):
        value = value.value
    return str(value).lower() if isinstance(value, bool) else str(value)


def _value(field: FieldInfo) -> str:
    """
    Type and range of a setting.
    """
    kind: Any = field.annotation
    if get_origin(kind) is Literal:
        return ", ".join(in_code(one) for one in get_args(kind) if one)
    name = {"str": "text", "SecretStr": "secret", "int": "integer", "float": "number"}
    bounds = (_bound(limit) for limit in field.metadata if type(limit) in SIGNS)

    return " ".join((name.get(kind.__name__, kind.__name__), *bounds))


def _bound(limit: Any) -> str:
    """
    A limit of annotated_types as text.
    """
    sign, name = SIGNS[type(limit)]

    return f"{sign} {getattr(limit, name)}"

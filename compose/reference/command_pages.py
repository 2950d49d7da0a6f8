"""
The page of the `everbus` command, from the declarations of its parameters.
"""

from collections.abc import Iterator
from enum import Enum
from inspect import cleandoc
from typing import Any, Literal, get_args, get_origin

from everbus.compose.cli import Everbus
from everbus.compose.reference.markdown import in_code, page, table

HEAD = ("argument or option", "value", "default", "what")


def cli_page() -> str:
    """
    Every command with its arguments and options.
    """
    root = Everbus(name="everbus")
    parts = (part for name in root.table for part in _sections(name, root.load(name)))

    return page(
        "Commands",
        "Answers go to stdout; notices, logs and progress go to stderr. Exit codes: 0 "
        "ok, 1 finding, 2 usage, 3 unreachable, 4 denied, 5 conflict, 130 Ctrl-C. Each "
        "command has `--help`. `everbus --context NAME COMMAND` takes what the "
        "environment leaves open from a context (`everbus context`).",
        *parts,
    )


def _sections(name: str, command: Any) -> Iterator[str]:  # typer's own click
    """
    The section of a command, and those of a group's commands.
    """
    inner = getattr(command, "commands", {})
    if not inner or command.invoke_without_command:
        yield from _section(name, command)
    for below, one in inner.items():
        yield from _sections(f"{name} {below}", one)


def _section(name: str, command: Any) -> Iterator[str]:  # typer's own click
    yield f"## everbus {name}"
    yield _text(command.help)
    rows = [_row(parameter) for parameter in command.params if not parameter.is_eager]
    if rows:
        yield table(HEAD, rows)


def _text(text: str) -> str:
    """
    The help, with its example as code.
    """
    about, _, example = cleandoc(text).partition("\n\nExample: ")

    return f"{about}\n\n```\n{example}\n```" if example else about


def _row(parameter: Any) -> tuple[str, str, str, str]:
    is_option = parameter.opts[0].startswith("-")
    names = [*parameter.opts, *parameter.secondary_opts]
    shown = names if is_option else [parameter.metavar or parameter.name.upper()]
    default = parameter.default
    if isinstance(default, Enum):
        default = default.value
    hidden = default is None or default is False or callable(default)
    text = "required" if parameter.required else "" if hidden else in_code(str(default))

    return (
        ", ".join(map(in_code, shown)),
        _values(parameter.type_descriptor.annotation),
        text,
        parameter.help or "",
    )


def _values(kind: Any) -> str:
    """
    What a parameter takes: its choices, or its type.
    """
    if get_origin(kind) is Literal:
        return ", ".join(map(in_code, get_args(kind)))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(in_code(str(one.value)) for one in kind)
    if get_args(kind):
        return " or ".join(
            filter(None, (_values(one) for one in get_args(kind) if one is not None))
        )
    name = getattr(kind, "__name__", "")

    return {"bool": "flag", "str": "text", "NoneType": "", "Any": ""}.get(name, name)

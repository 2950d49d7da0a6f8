"""
Commands that are imported when they run: `everbus --help` needs none of their modules.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, ClassVar, NamedTuple

from typer import Typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command


class LazyCommand(NamedTuple):
    """
    Where a command lives, and its line in the list of commands.

    Attributes:
        place: `module:name` of a function or of a Typer application.
    """

    place: str
    line: str


def read_table(text: str, package: str) -> dict[str, LazyCommand]:
    """
    Commands by name, from lines of name, place below *package*, and line.
    """
    rows = (row.split(maxsplit=2) for row in text.strip().splitlines())

    return {name: LazyCommand(f"{package}.{at}", line) for name, at, line in rows}


class LazyGroup(TyperGroup):
    """
    A group whose commands stand in `table`; a subclass sets it.
    """

    table: ClassVar[Mapping[str, LazyCommand]]

    def list_commands(self, ctx: Any) -> list[str]:
        """
        The names, in the order of the table.
        """
        return list(self.table)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """
        A stand-in with the command's line, which is all that a list of them shows.
        """
        entry = self.table.get(cmd_name)
        if entry is None:
            return None
        return TyperCommand(cmd_name, help=entry.line)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """
        The command that is about to run, imported now.
        """
        name, stand_in, rest = super().resolve_command(ctx, args)
        if stand_in is None or name is None:
            return name, stand_in, rest
        return name, self.load(name), rest

    def load(self, name: str) -> Any:
        """
        The real command.
        """
        module, _, attribute = self.table[name].place.partition(":")
        found = getattr(import_module(module), attribute)
        if not isinstance(found, Typer):
            single = Typer(add_completion=False, pretty_exceptions_enable=False)
            single.command(name)(found)
            found = single
        command = get_command(found)
        command.name = name

        return command

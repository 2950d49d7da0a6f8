"""
The house as source text: each file parsed once, with what it imports.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

HOUSE = Path(__file__).parent.parent
# What is installed; the rooms below it are the customer's top-level folders.
INSTALLED = "everbus"
PACKAGES = ("bus", "handlers", "gateway", "archiver", "compose")
ROOMS = (*PACKAGES, "tests")
FOLDERS = (*ROOMS, INSTALLED, "docs")

# Marks an import of a room by the name that is not installed.
BARE = "bare:"


class Module(NamedTuple):
    """
    One source file: its dotted name, its code, what it imports.
    """

    name: str
    tree: ast.Module
    imports: frozenset[str]


@cache
def modules(root: Path, rooms: tuple[str, ...] = PACKAGES) -> tuple[Module, ...]:
    files = (path for room in rooms for path in sorted((root / room).rglob("*.py")))

    return tuple(read(root, path) for path in files)


@cache
def read(root: Path, path: Path) -> Module:
    parts = path.relative_to(root).with_suffix("").parts
    package = parts[:-1]
    name = ".".join(package if parts[-1] == "__init__" else parts)
    tree = ast.parse(path.read_text(), str(path))
    imported = (name for node in ast.walk(tree) for name in targets(node, package))

    return Module(name, tree, frozenset(imported))


def targets(node: ast.AST, package: tuple[str, ...]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (inside(alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.level:
        parts = [*package[: len(package) - node.level + 1]]
        base = ".".join(parts + ([node.module] if node.module else []))
        yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (inside(f"{node.module}.{alias.name}") for alias in node.names)
    elif isinstance(node, ast.Call) and called(node) in {"import_module", "__import__"}:
        yield from (
            inside(str(argument.value))
            for argument in node.args[:1]
            if isinstance(argument, ast.Constant)
        )


def inside(name: str) -> str:
    """
    The name below the installed package: a room, or a stranger marked by its place.
    """
    if top(name) in PACKAGES:
        return f"{BARE}{name}"
    return name.removeprefix(f"{INSTALLED}.")


def called(node: ast.Call) -> str:
    function = node.func
    return getattr(function, "attr", None) or getattr(function, "id", "")


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def top(name: str) -> str:
    return name.partition(".")[0]

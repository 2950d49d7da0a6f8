"""
The rooms of DESIGN.md section 1, enforced from the code's own imports.

Each rule is a function from a source tree to the list of its violations, so
that every rule is tried on a small fake tree that breaks it as well.
"""

import ast
import graphlib
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

HOUSE = Path(__file__).parent.parent
PACKAGES = ("bus", "handlers", "gateway", "archiver", "compose")
ROOMS = (*PACKAGES, "tests")

# What each room may import of ours; the longest room name that fits counts.
OURS = {
    "bus": ("bus",),
    "handlers": ("handlers", "bus.messages", "bus.errors", "bus.events"),
    "gateway": ("gateway", "bus", "handlers"),
    "gateway.edge": (
        "gateway.edge",
        "gateway.identity",
        "gateway.policy",
        "gateway.store",
        "bus",
        "handlers",
    ),
    "archiver": (
        *("archiver", "bus", "handlers.commands", "handlers.outcomes"),
        *("gateway.store", "gateway.metrics", "gateway.tracing"),
    ),
    "compose": PACKAGES,
}

BUS_PARTIES = frozenset(
    {"hiredis", "msgspec", "pydantic", "pydantic_settings", "redis", "structlog"}
    | {"opentelemetry", "uuid_utils"}
)
GATEWAY_PARTIES = BUS_PARTIES | {
    *("motor", "pymongo", "bson"),
    *("boto3", "botocore"),
    *("backports", "compression"),
    *("jwt", "prometheus_client"),
}
PARTIES = {
    "bus": BUS_PARTIES,
    "handlers": frozenset({"msgspec", "pydantic"}),
    "gateway": GATEWAY_PARTIES,
    "gateway.edge": GATEWAY_PARTIES | {"anyio", "fastapi", "starlette", "uvicorn"},
    "archiver": frozenset({"msgspec", "structlog", "redis", "uuid_utils"}),
    "compose": None,  # everything
}
# Drivers behind one door: at most one file, or the one that is named.
DOORS = {"motor": None, "boto3": None, "jwt": "gateway.identity.keys"}
# Without these the house is not whole.
DOORS_THAT_EXIST = frozenset({"motor", "boto3", "jwt"})

# No I/O, no clock, no chance: what is left of the standard library.
PURE = frozenset(
    {"collections", "dataclasses", "datetime", "enum", "functools", "hashlib"}
    | {"itertools", "json", "math", "re", "types", "typing", "unicodedata"}
)
IMPURE_CALLS = frozenset({"now", "utcnow", "today", "open", "print", "input"})
PICKLES = frozenset({"pickle", "_pickle", "cloudpickle", "dill", "shelve", "marshal"})
VAGUE_NAMES = frozenset(
    {"util", "utils", "helper", "helpers", "common", "base", "core", "misc"}
)
# Made by tools, never committed.
PRODUCTS = frozenset({"__pycache__", "build", "dist", "htmlcov", "venv"})

Rule = Callable[[Path], list[str]]


class Module(NamedTuple):
    """
    One source file: its dotted name, its room, its code, what it imports.
    """

    name: str
    room: str
    tree: ast.Module
    imports: frozenset[str]


@cache
def modules(root: Path, rooms: tuple[str, ...] = PACKAGES) -> tuple[Module, ...]:
    files = (path for room in rooms for path in sorted((root / room).rglob("*.py")))

    return tuple(read(root, path) for path in files)


def read(root: Path, path: Path) -> Module:
    parts = path.relative_to(root).with_suffix("").parts
    package = parts[:-1]
    name = ".".join(package if parts[-1] == "__init__" else parts)
    tree = ast.parse(path.read_text(), str(path))
    imported = (name for node in ast.walk(tree) for name in targets(node, package))

    return Module(name, room_of(name), tree, frozenset(imported))


def room_of(name: str) -> str:
    return "gateway.edge" if within(name, "gateway.edge") else name.partition(".")[0]


def targets(node: ast.AST, package: tuple[str, ...]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parts = [*package[: len(package) - node.level + 1]] if node.level else []
        base = ".".join(parts + ([node.module] if node.module else []))
        yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and called(node) in {"import_module", "__import__"}:
        yield from (
            str(argument.value)
            for argument in node.args[:1]
            if isinstance(argument, ast.Constant)
        )


def called(node: ast.Call) -> str:
    function = node.func
    return getattr(function, "attr", None) or getattr(function, "id", "")


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def top(name: str) -> str:
    return name.partition(".")[0]


def foreign_rooms(root: Path) -> list[str]:
    """
    Modules that import of ours what their room may not.
    """
    return [
        f"{module.name} imports {name}"
        for module in modules(root)
        for name in sorted(module.imports)
        if top(name) in ROOMS
        if not any(within(name, allowed) for allowed in OURS[module.room])
        or (module.room == "gateway" and within(name, "gateway.edge"))
    ]


def foreign_parties(root: Path) -> list[str]:
    """
    Modules that import third parties which their room may not.
    """
    return [
        f"{module.name} imports {name}"
        for module in modules(root)
        for name in sorted(module.imports)
        if top(name) not in ROOMS and top(name) not in sys.stdlib_module_names
        if (allowed := PARTIES[module.room]) is not None and top(name) not in allowed
    ]


def open_doors(root: Path) -> list[str]:
    """
    Drivers that are imported in more than their one file, or in another one.
    """
    found = []
    for driver, door in DOORS.items():
        users = [m.name for m in modules(root) if driver in map(top, m.imports)]
        if len(users) > 1:
            found.append(f"{driver} is imported in {', '.join(users)}")
        if any(top(user) != "gateway" for user in users):
            found.append(f"{driver} is imported outside gateway, in {users}")
        if door is not None and users not in ([], [door]):
            found.append(f"{driver} belongs into {door}, not {users}")
    return found


def missing_doors(root: Path) -> list[str]:
    """
    Drivers that the customer asked for and nobody imports.
    """
    imported = {top(name) for module in modules(root) for name in module.imports}

    return [f"{driver} is not used" for driver in sorted(DOORS_THAT_EXIST - imported)]


def impure_handlers(root: Path) -> list[str]:
    """
    Handlers that do I/O, ask a clock or rely on chance.
    """
    found = []
    for module in (m for m in modules(root) if m.room == "handlers"):
        found.extend(
            f"{module.name} imports {name}"
            for name in sorted(module.imports)
            if top(name) in sys.stdlib_module_names - PURE
        )
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and called(node) in IMPURE_CALLS:
                found.append(f"{module.name} calls {called(node)}")
            if isinstance(node, ast.AsyncFunctionDef):
                found.append(f"{module.name} waits in {node.name}")
    return found


def pickles(root: Path) -> list[str]:
    """
    Imports of pickle and its kin; tests count too.
    """
    return [
        f"{module.name} imports {name}"
        for module in modules(root, ROOMS)
        for name in sorted(module.imports)
        if top(name) in PICKLES
    ]


def vague_names(root: Path) -> list[str]:
    """
    Files and folders whose name says nothing.
    """
    return [
        f"{path.relative_to(root)} has a vague name"
        for room in ROOMS
        for path in sorted((root / room).rglob("*"))
        if path.name.partition(".")[0].lower().strip("_") in VAGUE_NAMES
    ]


def strange_folders(root: Path) -> list[str]:
    """
    Top-level folders beyond the rooms, and rooms that are missing.
    """
    there = {
        path.name
        for path in root.iterdir()
        if path.is_dir() and path.name not in PRODUCTS
        if not path.name.startswith(".") and path.suffix != ".egg-info"
    }
    return [f"{name}/ is strange or missing" for name in sorted(there ^ set(ROOMS))]


def undocumented_rooms(root: Path) -> list[str]:
    """
    Rooms without a page for their reader.
    """
    return [
        f"{room}/README.md is missing or empty"
        for room in ROOMS
        if not holds_text(root / room / "README.md")
    ]


def untyped_rooms(root: Path) -> list[str]:
    """
    Packages that do not tell type checkers that they are typed.
    """
    return [
        f"{room}/py.typed is missing"
        for room in PACKAGES
        if not (root / room / "py.typed").is_file()
    ]


def import_cycles(root: Path) -> list[str]:
    """
    Modules that import each other, directly or by way of others.
    """
    names = {module.name for module in modules(root)}
    graph = {
        module.name: {owner_of(name, names) for name in module.imports}
        - {module.name, None}
        for module in modules(root)
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [" imports ".join(reversed(error.args[1]))]
    return []


def owner_of(name: str, names: set[str]) -> str | None:
    while name and name not in names:
        name = name.rpartition(".")[0]
    return name or None


def holds_text(path: Path) -> bool:
    return path.is_file() and bool(path.read_text().strip())


RULES: tuple[Rule, ...] = (
    foreign_rooms,
    foreign_parties,
    open_doors,
    missing_doors,
    impure_handlers,
    pickles,
    vague_names,
    strange_folders,
    undocumented_rooms,
    untyped_rooms,
    import_cycles,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_obeys(rule):
    assert rule(HOUSE) == []


def test_the_checker_reads_the_whole_house():
    """
    A checker that looked into the wrong folder would find nothing wrong.
    """
    names = {module.name for module in modules(HOUSE)}

    assert {"bus", "bus.codec", "handlers.routes", "gateway.store.names"} <= names


SOUND: dict[str, str] = {
    **{f"{room}/README.md": "What lives here.\n" for room in ROOMS},
    **{f"{package}/py.typed": "" for package in PACKAGES},
    **{f"{package}/__init__.py": "" for package in PACKAGES},
    "bus/messages.py": "import msgspec\n",
    "bus/errors.py": "",
    "bus/chain.py": "from bus import link",
    "bus/link.py": "from bus import errors",
    "bus/client.py": "import redis.asyncio\nfrom bus import messages\n",
    "handlers/routes.py": "import re\nfrom bus.messages import Session\n",
    "gateway/identity/__init__.py": "",
    "gateway/identity/keys.py": "import jwt\n",
    "gateway/policy.py": "import structlog\nfrom handlers import routes\n",
    "gateway/store/__init__.py": "",
    "gateway/store/warm.py": "import motor\nfrom gateway.store import cold",
    "gateway/store/cold.py": "import boto3\nimport gateway.policy",
    "gateway/edge/__init__.py": "",
    "gateway/edge/rest.py": "import fastapi\nfrom gateway.store import warm\n",
    "archiver/drain.py": "from gateway.store import warm\n",
    "compose/cli.py": "import typer\nimport archiver.drain, gateway.edge.rest\n",
    "tests/test_any.py": "import bus\n",
    ".git/config": "",
    "everbus.egg-info/x": "",
}


def a_house(root: Path, **changes: str | None) -> Path:
    for name, text in (SOUND | changes).items():
        if text is not None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
    return root


def test_a_sound_house_breaks_no_rule(tmp_path):
    house = a_house(tmp_path)

    found = [violation for rule in RULES for violation in rule(house)]

    assert found == []


@pytest.mark.parametrize(
    ("rule", "name", "text"),
    [
        (foreign_rooms, "bus/x.py", "import handlers.routes"),
        (foreign_rooms, "bus/x.py", "def f():\n    from gateway import policy"),
        (
            foreign_rooms,
            "bus/x.py",
            "import importlib\nimportlib.import_module('tests')",
        ),
        (foreign_rooms, "handlers/x.py", "from bus import client"),
        (foreign_rooms, "handlers/x.py", "import bus"),
        (foreign_rooms, "handlers/x.py", "from bus.messages_of_old import Session"),
        (foreign_rooms, "handlers/x.py", "from ..bus import client"),
        (foreign_rooms, "gateway/x.py", "from archiver import drain"),
        (foreign_rooms, "gateway/x.py", "from gateway.edge import rest"),
        (foreign_rooms, "gateway/x.py", "from .edge import rest"),
        (foreign_rooms, "gateway/edge/x.py", "from gateway import lanes"),
        (foreign_rooms, "gateway/edge/x.py", "from .. import lanes"),
        (foreign_rooms, "archiver/x.py", "from gateway import policy"),
        (foreign_rooms, "archiver/x.py", "from handlers import routes"),
        (foreign_rooms, "compose/x.py", "from tests import test_any"),
        (foreign_parties, "bus/x.py", "import pymongo"),
        (foreign_parties, "bus/x.py", "from prometheus_client import Counter"),
        (foreign_parties, "handlers/x.py", "import structlog"),
        (foreign_parties, "gateway/x.py", "import fastapi"),
        (foreign_parties, "gateway/edge/x.py", "import typer"),
        (foreign_parties, "archiver/x.py", "from pymongo import UpdateOne"),
        (
            open_doors,
            "gateway/x.py",
            "from motor.motor_asyncio import AsyncIOMotorClient",
        ),
        (open_doors, "gateway/x.py", "import boto3.session"),
        (open_doors, "gateway/x.py", "from jwt import decode"),
        (open_doors, "compose/x.py", "import motor"),
        (missing_doors, "gateway/store/warm.py", "import pymongo"),
        (missing_doors, "gateway/identity/keys.py", ""),
        *[
            (impure_handlers, "handlers/x.py", f"import {name}")
            for name in ("asyncio", "time", "random", "socket", "os", "pathlib", "uuid")
        ],
        (
            impure_handlers,
            "handlers/x.py",
            "from datetime import datetime as d\nd.now()",
        ),
        (impure_handlers, "handlers/x.py", "import datetime\ndatetime.date.today()"),
        (impure_handlers, "handlers/x.py", "open('/etc/passwd')"),
        (impure_handlers, "handlers/x.py", "async def f(): ..."),
        (pickles, "gateway/x.py", "import pickle"),
        (pickles, "compose/x.py", "from shelve import open as o"),
        (pickles, "tests/unit/test_x.py", "def f():\n    import cloudpickle"),
        *[
            (vague_names, name, "")
            for name in (
                "bus/utils.py",
                "tests/unit/helpers.py",
                "gateway/common/__init__.py",
                "archiver/base.py",
                "compose/core.yaml",
                "handlers/_misc.py",
            )
        ],
        (strange_folders, "docs/index.md", "text"),
        (strange_folders, "src/x.py", ""),
        *[(undocumented_rooms, f"{room}/README.md", " \n") for room in ROOMS],
        *[(undocumented_rooms, f"{room}/README.md", None) for room in ROOMS],
        *[(untyped_rooms, f"{package}/py.typed", None) for package in PACKAGES],
        (import_cycles, "bus/messages.py", "from bus.client import connect"),
        (import_cycles, "bus/errors.py", "from bus.chain import a"),
        (import_cycles, "gateway/policy.py", "from .store.warm import a"),
    ],
)
def test_the_checker_finds(rule, name, text, tmp_path):
    """
    Each rule fails on a house that is sound but for one violation of it.
    """
    house = a_house(tmp_path, **{name: text})

    assert len(rule(house)) >= 1


@pytest.mark.parametrize("room", ROOMS)
def test_the_checker_misses_a_room(room, tmp_path):
    house = a_house(tmp_path)

    (house / room).rename(house / ".gone")

    assert [f"{room}/ is strange or missing"] == strange_folders(house)

"""
The rooms of DESIGN.md section 1, enforced from the code's own imports.

Each rule is a function from a source tree to the list of its violations, so
that every rule is tried on a small fake tree that breaks it as well.
"""

import ast
import graphlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.name_rules import RULES as NAME_RULES
from tests.name_rules import (
    dangling_imports,
    names_that_only_tests_use,
    twice_named_classes,
    unlisted_modules,
    vanished_modules,
)
from tests.source_tree import (
    BARE,
    FOLDERS,
    HOUSE,
    INSTALLED,
    PACKAGES,
    ROOMS,
    called,
    modules,
    top,
    within,
)

# What each room may import of ours; the longest room name that fits counts.
# In gateway/ these are the arrows between its rooms: each points down, none back.
OURS: dict[str, tuple[str, ...]] = {
    "bus": ("bus",),
    "handlers": ("handlers", "bus.messages", "bus.errors", "bus.events"),
    "gateway": (
        *("gateway.lane", "gateway.presence"),
        *("gateway.store", "gateway.telemetry", "bus", "handlers"),
    ),
    "gateway.failpoints": ("bus",),
    "gateway.telemetry": ("gateway.telemetry", "bus", "handlers"),
    "gateway.identity": ("gateway.identity", "gateway.telemetry", "bus", "handlers"),
    # Below the store: it seals values, and knows no tier.
    "gateway.sealing": ("gateway.sealing", "bus"),
    "gateway.store": (
        *("gateway.store", "gateway.sealing"),
        *("gateway.telemetry", "gateway.failpoints"),
        *("bus", "handlers"),
    ),
    "gateway.lane": (
        *("gateway.lane", "gateway.store", "gateway.identity"),
        *("gateway.telemetry", "gateway.failpoints", "bus", "handlers"),
    ),
    "gateway.presence": (
        # Of the lanes only what ends one, and the command that names the lost.
        *("gateway.presence", "gateway.lane.connection", "gateway.lane.fencing"),
        *("gateway.store", "gateway.telemetry", "gateway.failpoints"),
        *("bus", "handlers"),
    ),
    "gateway.health": (
        *("gateway.health", "gateway.store", "gateway.identity"),
        *("gateway.telemetry", "bus", "handlers"),
    ),
    "gateway.edge": (
        *("gateway.edge", "gateway.health", "gateway.store"),
        *("gateway.identity", "gateway.telemetry", "bus", "handlers"),
    ),
    "archiver": (
        *("archiver", "bus", "handlers.commands", "handlers.outcomes"),
        *("gateway.store", "gateway.telemetry"),
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
    "cachetools",
    *("backports", "compression"),
    *("cryptography", "jwt", "prometheus_client", "regex"),
}
PARTIES = {
    "bus": BUS_PARTIES,
    "handlers": frozenset({"msgspec", "pydantic"}),
    "gateway": GATEWAY_PARTIES,
    "gateway.health": GATEWAY_PARTIES | {"h11", "starlette", "uvicorn"},
    "gateway.edge": GATEWAY_PARTIES | {"anyio", "fastapi", "starlette", "uvicorn"},
    "archiver": frozenset({"msgspec", "structlog", "redis", "uuid_utils"}),
    "compose": None,  # everything
}
# Drivers behind one door: at most one file, or the one that is named.
DOORS = {
    "motor": None,
    # S3 through one file of the cold tier; KMS has a door of its own.
    "boto3": ("gateway.sealing.aws_kms", "gateway.store.cold"),
    "jwt": ("gateway.identity.keys",),
    # Encryption at rest, and the seals of grants.
    "cryptography": ("gateway.sealing.cipher", "gateway.identity.grant_keys"),
}
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


def room_of(name: str) -> str:
    inner = (room for room in OURS if "." in room and within(name, room))

    return next(inner, top(name))


def foreign_rooms(root: Path) -> list[str]:
    """
    Modules that import of ours what their room may not.
    """
    return [
        f"{module.name} imports {name}"
        for module in modules(root)
        for name in sorted(module.imports)
        if top(name) in ROOMS
        if not any(within(name, allowed) for allowed in OURS[room_of(module.name)])
    ]


def second_names(root: Path) -> list[str]:
    """
    Imports of a room past the installed package: a second copy of every module.
    """
    return [
        f"{module.name} imports {name.removeprefix(BARE)}, not {INSTALLED}'s"
        for module in modules(root, (*ROOMS, INSTALLED))
        for name in sorted(module.imports)
        if name.startswith(BARE)
    ]


def foreign_parties(root: Path) -> list[str]:
    """
    Modules that import third parties which their room may not.
    """
    return [
        f"{module.name} imports {name}"
        for module in modules(root)
        for name in sorted(module.imports)
        if top(name) not in FOLDERS and top(name) not in sys.stdlib_module_names
        if not name.startswith(BARE)
        if (allowed := parties_of(room_of(module.name))) is not None
        if top(name) not in allowed
    ]


def parties_of(room: str) -> frozenset[str] | None:
    """
    The third parties that *room* may import; None: any.
    """
    return PARTIES[room] if room in PARTIES else PARTIES[top(room)]


def open_doors(root: Path) -> list[str]:
    """
    Drivers that are imported in more than their one file, or in another one.
    """
    found = []
    for driver, door in DOORS.items():
        users = [m.name for m in modules(root) if driver in map(top, m.imports)]
        if len(users) > len(door or (1,)):
            found.append(f"{driver} is imported in {', '.join(users)}")
        if any(top(user) != "gateway" for user in users):
            found.append(f"{driver} is imported outside gateway, in {users}")
        if door is not None and not all(
            any(within(user, one) for one in door) for user in users
        ):
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
    for module in (m for m in modules(root) if top(m.name) == "handlers"):
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
    strange = there - set(FOLDERS) | set(FOLDERS) - there - {"docs"}

    return [f"{name}/ is strange or missing" for name in sorted(strange)]


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
    An installed package that does not tell type checkers that it is typed.
    """
    marker = root / INSTALLED / "py.typed"

    return [] if marker.is_file() else [f"{INSTALLED}/py.typed is missing"]


def missing_links(root: Path) -> list[str]:
    """
    Rooms that are not linked into the installed package.
    """
    return [
        f"{INSTALLED}/{room} is no link to ../{room}"
        for room in PACKAGES
        if not (link := root / INSTALLED / room).is_symlink()
        or link.readlink() != Path("..", room)
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
    second_names,
    missing_links,
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
    *NAME_RULES,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_obeys(rule):
    assert rule(HOUSE) == []


def test_the_checker_reads_the_whole_house():
    """
    A checker that looked into the wrong folder would find nothing wrong.
    """
    names = {module.name for module in modules(HOUSE)}

    assert {
        "bus",
        "bus.messages",
        "handlers.routes",
        "gateway.store.key_names",
    } <= names


def page_of(room: str, texts: Iterable[str]) -> str:
    """
    A README whose file table has those of *texts* that are modules of *room*.
    """
    rows = [n.removeprefix(f"{room}/") for n in texts if n.startswith(f"{room}/")]
    table = [f"| `{row}` | what it holds |" for row in rows if row.endswith(".py")]
    return "\n".join(["What lives here.", "", *table])


SOUND: dict[str, str] = {
    "everbus/py.typed": "",
    "everbus/__init__.py": "",
    **{f"{package}/__init__.py": "" for package in PACKAGES},
    "bus/messages.py": "import msgspec\nclass Session: ...\n",
    "bus/errors.py": "",
    "bus/chain.py": "from everbus.bus import link",
    "bus/link.py": "from everbus.bus import errors",
    "bus/client.py": "import redis.asyncio\nfrom everbus.bus import messages\n",
    "handlers/routes.py": "import re\nfrom everbus.bus.messages import Session\n",
    "gateway/identity/__init__.py": "",
    "gateway/identity/keys.py": "import jwt\n",
    "gateway/manager.py": "import structlog\nimport everbus.gateway.lane.loop\n",
    "gateway/telemetry/metrics.py": "from everbus.handlers import routes\n",
    "gateway/lane/loop.py": "from everbus.gateway.store import warm\n",
    "gateway/lane/connection.py": "class LaneLost(Exception): ...",
    "gateway/health/status.py": "from everbus.gateway.identity import keys\n",
    "gateway/presence/lane.py": "from everbus.gateway.lane.connection "
    "import LaneLost\n",
    "gateway/store/__init__.py": "",
    "gateway/store/warm.py": "import motor\nfrom everbus.gateway.store import cold",
    "gateway/store/cold.py": "import boto3\nimport everbus.gateway.telemetry.metrics",
    "gateway/edge/__init__.py": "",
    "gateway/edge/rest.py": "import fastapi\nimport everbus.gateway.health.status\n",
    "archiver/drain.py": "from everbus.gateway.store import warm\n",
    "compose/cli.py": "import typer\nimport everbus.archiver.drain\n"
    "import everbus.gateway.edge.rest\n",
    "tests/test_any.py": "import everbus.bus\n",
    ".git/config": "",
    "everbus.egg-info/x": "",
}
SOUND |= {f"{room}/README.md": page_of(room, SOUND) for room in ROOMS}


def a_house(root: Path, **changes: str | None) -> Path:
    for name, text in (SOUND | changes).items():
        if text is not None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
    for room in PACKAGES:
        (root / INSTALLED / room).symlink_to(Path("..", room))
    return root


def test_a_sound_house_breaks_no_rule(tmp_path):
    house = a_house(tmp_path)

    found = [violation for rule in RULES for violation in rule(house)]

    assert found == []


@pytest.mark.parametrize(
    ("rule", "name", "text"),
    [
        (foreign_rooms, "bus/x.py", "import everbus.handlers.routes"),
        (foreign_rooms, "bus/x.py", "def f():\n    from everbus.gateway import edge"),
        (
            foreign_rooms,
            "bus/x.py",
            "import importlib\nimportlib.import_module('tests')",
        ),
        (foreign_rooms, "handlers/x.py", "from everbus.bus import client"),
        (foreign_rooms, "handlers/x.py", "import everbus.bus"),
        (
            foreign_rooms,
            "handlers/x.py",
            "from everbus.bus.messages_of_old import Session",
        ),
        (foreign_rooms, "handlers/x.py", "from ..bus import client"),
        (foreign_rooms, "gateway/x.py", "from everbus.archiver import drain"),
        (foreign_rooms, "gateway/x.py", "from everbus.gateway.edge import rest"),
        (foreign_rooms, "gateway/x.py", "from .edge import rest"),
        (foreign_rooms, "gateway/edge/x.py", "from everbus.gateway import lanes"),
        (foreign_rooms, "gateway/edge/x.py", "from .. import lanes"),
        (foreign_rooms, "gateway/edge/x.py", "from ..lane import loop"),
        (foreign_rooms, "gateway/health/x.py", "from ..edge import rest"),
        (foreign_rooms, "gateway/health/x.py", "from ..lane import loop"),
        (foreign_rooms, "gateway/identity/x.py", "from ..store import warm"),
        (foreign_rooms, "gateway/lane/x.py", "from ..presence import lane"),
        (foreign_rooms, "gateway/lane/x.py", "import everbus.gateway.manager"),
        (foreign_rooms, "gateway/presence/x.py", "from ..lane.loop import Lane"),
        (foreign_rooms, "gateway/store/x.py", "from ..lane import errors"),
        (foreign_rooms, "gateway/store/x.py", "from ..identity import keys"),
        (foreign_rooms, "gateway/telemetry/x.py", "from ..store import warm"),
        (foreign_rooms, "archiver/x.py", "from everbus.gateway import manager"),
        (foreign_rooms, "archiver/x.py", "from everbus.handlers import routes"),
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
        (strange_folders, "src/x.py", ""),
        *[(undocumented_rooms, f"{room}/README.md", " \n") for room in ROOMS],
        *[(undocumented_rooms, f"{room}/README.md", None) for room in ROOMS],
        (untyped_rooms, "everbus/py.typed", None),
        (second_names, "bus/x.py", "from bus import errors"),
        (second_names, "gateway/x.py", "import bus.errors"),
        (
            second_names,
            "tests/test_x.py",
            "import importlib\nimportlib.import_module('bus')",
        ),
        (second_names, "everbus/x.py", "from gateway.store import warm"),
        (twice_named_classes, "gateway/x.py", "class Session: ..."),
        (dangling_imports, "gateway/x.py", "from everbus.bus.messages import Reply"),
        (dangling_imports, "tests/x.py", "import everbus.bus.gone"),
        (dangling_imports, "tests/x.py", "import everbus.bus\neverbus.bus.gone.X"),
        (dangling_imports, "tests/x.py", 'P = """\nfrom everbus.bus.gone import X"""'),
        (
            dangling_imports,
            "tests/x.py",
            'def f(m): m.setattr("everbus.bus.messages.GONE", 1)',
        ),
        (names_that_only_tests_use, "gateway/x.py", "def unused(): ..."),
        (
            names_that_only_tests_use,
            "gateway/x.py",
            "class _A:\n    def unused(self): ...",
        ),
        (import_cycles, "bus/messages.py", "from everbus.bus.client import connect"),
        (import_cycles, "bus/errors.py", "from everbus.bus.chain import a"),
        (import_cycles, "gateway/telemetry/metrics.py", "from ..store.warm import a"),
    ],
)
def test_the_checker_finds(rule, name, text, tmp_path):
    """
    Each rule fails on a house that is sound but for one violation of it.
    """
    house = a_house(tmp_path, **{name: text})

    assert len(rule(house)) >= 1


@pytest.mark.parametrize("room", PACKAGES)
def test_the_checker_misses_a_link(room, tmp_path):
    house = a_house(tmp_path)

    (house / INSTALLED / room).unlink()

    assert [f"everbus/{room} is no link to ../{room}"] == missing_links(house)


@pytest.mark.parametrize("room", [*ROOMS, INSTALLED])
def test_the_checker_misses_a_room(room, tmp_path):
    house = a_house(tmp_path)

    (house / room).rename(house / ".gone")

    assert [f"{room}/ is strange or missing"] == strange_folders(house)


def test_a_module_that_the_nearest_page_leaves_out_is_found_with_its_remedy(tmp_path):
    house = a_house(tmp_path, **{"gateway/store/README.md": "| `warm.py` | MongoDB |"})

    assert unlisted_modules(house) == [
        "gateway/store/cold.py is not in gateway/store/README.md: add a row "
        "| `cold.py` | what it holds | there"
    ]


def test_a_row_whose_module_is_gone_is_found(tmp_path):
    page = "| `warm.py`, `gone.py` | MongoDB, once by `old.py` |\n| `cold.py` | S3 |"
    house = a_house(tmp_path, **{"gateway/store/README.md": page})

    assert vanished_modules(house) == [
        "gateway/store/README.md lists gone.py, which is not there: mend its row"
    ]

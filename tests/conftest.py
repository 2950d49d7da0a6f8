"""
What holds for every test.
"""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

from everbus.compose import stack_folder

# How long an example takes is the machine's affair: no test judges time.
settings.register_profile("everbus", deadline=None)
settings.load_profile("everbus")

# A shell ignores Ctrl-C for what it starts in the background; so would each of our
# processes, and the tests of Ctrl-C would fail.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Rich takes 0.3 s for a traceback with its locals, while a lane's lease runs on.
*_, _console = structlog.get_config()["processors"]
_console.exception_formatter = structlog.dev.plain_traceback

# The contexts of whoever runs the tests are not theirs.
os.environ["XDG_CONFIG_HOME"] = "/nonexistent"

# A port is free until its server binds it a second later: two workers that choose
# alike in that second would disturb each other, so each has ports of its own.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
stack_folder.PORT_RANGE = stack_folder.PORT_RANGE[_WORKER % _WORKERS :: _WORKERS]

# The longest files begin first, so that all workers end together.
LONG = ("embedded", "drain", "takeover", "archiving", "degradations", "disk_full")
FOLDERS = ("chaos", "integration", "contracts")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    What waits for servers before what computes.
    """
    items.sort(key=lambda item: _rank(item.path))


def _rank(path: Path) -> tuple[int, int]:
    folder = next((n for n, name in enumerate(FOLDERS) if name in path.parts), 9)
    name = path.stem.removeprefix("test_")

    return (0, LONG.index(name)) if name in LONG else (1, folder)


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """
    A command that a test runs in this process sets up the logs for all of it.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)

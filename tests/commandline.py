"""
The everbus command on a real bus: in a thread of this process, or as its own.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import structlog
from typer.testing import CliRunner

from everbus.compose import bus_access, cli, exit_codes
from tests.processes import DEVNULL, PIPE, start_python
from tests.servers import inherited

PROGRAM = "from everbus.compose.cli import main; main()"


class Ended(NamedTuple):
    """
    How a command ended, and what it said.
    """

    code: int
    said: str
    talk: str

    @property
    def json(self) -> Any:
        return json.loads(self.said)


class CommandLine:
    """
    Runs commands on the bus at *url*.
    """

    def __init__(self, url: str) -> None:
        self._env = {"EVERBUS_REDIS_URL": url, "COLUMNS": "200"}

    async def __call__(self, *arguments: str, typed: str = "") -> Ended:
        return await asyncio.to_thread(self._run, arguments, typed)

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        """
        A process of its own, which whoever starts it ends.
        """
        return await start_python(
            *("-c", PROGRAM, *arguments),
            env={**inherited(), **self._env},
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
        )

    def _run(self, arguments: tuple[str, ...], typed: str) -> Ended:
        ran = CliRunner().invoke(cli.app, arguments, input=typed, env=self._env)
        error = ran.exception
        if error is None or isinstance(error, SystemExit):
            return Ended(ran.exit_code, ran.stdout, ran.stderr)
        code = exit_codes.exit_code_of(error)  # as compose.cli.main does
        if code is None:
            raise error
        return Ended(code, ran.stdout, ran.stderr + exit_codes.describe(error))


@pytest.fixture
def own_logs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """
    Keeps this process's log, that of managers in it, out of what commands print.
    """
    monkeypatch.setattr(bus_access, "configure_logs", lambda *_: None)
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(sys.stderr))
    yield
    structlog.reset_defaults()

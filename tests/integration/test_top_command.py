"""
`everbus top` on a running manager: one snapshot, and a screen that is redrawn.
"""

import asyncio
import os
import pty

import pytest

from everbus.bus import connect
from tests.commandline import PROGRAM, CommandLine, own_logs
from tests.integration.conftest import PARTITIONS, WITHIN_S, a_token
from tests.processes import start_python
from tests.servers import inherited

__all__ = ["own_logs"]
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.usefixtures("own_logs", "manager"),
]


async def test_a_snapshot_has_lanes_with_owners_and_mads(bus):
    everbus = CommandLine(bus.url)
    async with connect(bus.url, mad="ann", token=a_token("ann")) as ann:
        await ann.create_session("ada")
        found = (await everbus("top", "--json")).json

    lanes = {lane["name"]: lane for lane in found["lanes"]}
    assert {str(p) for p in range(PARTITIONS)} <= set(lanes)
    assert lanes["0"]["owner"]
    assert "ann" in {mad["mad"] for mad in found["mads"]}
    assert set(found["rates"]) == {"commands", "drained", "heartbeats", "dead_letters"}
    assert found["reply_ms"] > 0


async def test_a_pipe_gets_one_snapshot_within_80_columns(bus):
    everbus = CommandLine(bus.url)
    everbus._env["COLUMNS"] = "80"

    piped = await everbus("top")

    assert piped.code == 0
    assert "oldest pending" in piped.said
    assert max(map(len, piped.said.splitlines())) <= 80
    assert "\x1b" not in piped.said


async def test_a_bus_that_is_away_is_one_line():
    away = await CommandLine("redis://127.0.0.1:1")("top", "--once")

    assert (away.code, away.said) == (3, "")
    assert "no connection to the bus" in away.talk


async def test_a_terminal_is_redrawn_until_ctrl_c(bus):
    """
    Two pictures, then Ctrl-C: the screen is given back, and there is no traceback.
    """
    ours, theirs = pty.openpty()
    process = await start_python(
        *("-c", PROGRAM, "top", "--interval", "0.5"),
        env={**inherited(), "EVERBUS_REDIS_URL": bus.url, "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    try:
        seen = await _read_until(ours, "everbus top", times=2)
        process.send_signal(2)
        seen += await _read_to_the_end(ours)
        code = await asyncio.wait_for(process.wait(), WITHIN_S)
    finally:
        os.close(ours)
        if process.returncode is None:
            process.kill()
            await process.wait()

    assert code == 130
    assert "Traceback" not in seen
    assert "\x1b[?1049l" in seen


async def _read_until(terminal: int, text: str, *, times: int) -> str:
    seen = ""
    async with asyncio.timeout(2 * WITHIN_S):
        while seen.count(text) < times:
            seen += await _read(terminal)
    return seen


async def _read_to_the_end(terminal: int) -> str:
    seen = ""
    async with asyncio.timeout(WITHIN_S):
        while more := await _read(terminal):
            seen += more
    return seen


async def _read(terminal: int) -> str:
    try:
        read = await asyncio.to_thread(os.read, terminal, 65_536)
    except OSError:  # how Linux tells that the other side has closed
        return ""
    return read.decode(errors="replace")

"""
`everbus demo`, as a user starts it: it ends well, and leaves nothing behind.
"""

import asyncio
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path

from tests.servers import inherited

HOUSE = Path(__file__).parent.parent.parent
VERDICT = "VERDICT: held. Nothing lost, doubled or out of order"


@asynccontextmanager
async def a_demo(folder, *arguments):
    """
    The command in a process of its own; ended in order if it still runs.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "everbus", "demo", *arguments),
        cwd=HOUSE,
        env=inherited() | {"TMPDIR": str(folder)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            await process.communicate()


async def test_the_demo_holds_and_says_so(tmp_path):
    async with a_demo(tmp_path) as process:
        out, err = (text.decode() for text in await process.communicate())

    assert process.returncode == 0, out + err
    lines = out.splitlines()
    assert lines[-1].startswith(VERDICT)
    assert 15 <= len(lines) <= 40
    assert any("kill -9" in line for line in lines)
    assert "500 of 500 messages are there" in out
    assert list(tmp_path.glob("everbus-demo-*")) == []


async def test_ctrl_c_ends_the_demo_and_its_stack(tmp_path):
    """
    A second Ctrl-C does not leave parts behind.
    """
    async with a_demo(tmp_path) as process:
        async with asyncio.timeout(30):
            await process.stdout.readuntil(b"up in")
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            await asyncio.sleep(0.1)
        _, err = await process.communicate()

    assert process.returncode == 130
    assert b"Traceback" not in err
    assert list(tmp_path.glob("everbus-demo-*")) == []

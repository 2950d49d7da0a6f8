"""
A MAD in its own process, so that the demo can kill it.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from everbus.compose.exit_codes import UNREACHABLE, Failed

JOIN_WITHIN_S = 20.0
WORK = "answer"

# Bus, name and token are in its environment, which no process list shows.
_PROGRAM = """
import asyncio
import sys

from everbus.bus import connect


async def main(session, work):
    async with connect() as mad:
        await mad.join(session)
        patch = {"work_in_progress": {work: {"owner": mad.name, "text": "so far"}}}
        await mad.update_session(session, patch)
        print("in", flush=True)
        await asyncio.sleep(60)


asyncio.run(main(*sys.argv[1:]))
"""


@asynccontextmanager
async def worker_process(
    url: str, name: str, token: str, session: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """
    A MAD process that has joined *session* and does the work WORK there.

    Raises:
        Failed: the MAD could not join.
    """
    known = {"EVERBUS_REDIS_URL": url, "EVERBUS_MAD": name, "EVERBUS_TOKEN": token}
    own = {k: v for k, v in os.environ.items() if not k.startswith("EVERBUS_")}
    paths = os.pathsep.join(filter(None, sys.path))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _PROGRAM, session, WORK),
        env=own | known | {"PYTHONPATH": paths},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await _wait_until_joined(process, name)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _wait_until_joined(process: asyncio.subprocess.Process, name: str) -> None:
    reply = b""
    if process.stdout is not None:
        async with asyncio.timeout(JOIN_WITHIN_S):
            reply = await process.stdout.readline()
    if reply.strip() != b"in":
        raise Failed(
            f"the MAD {name} could not join; see the managers' logs", UNREACHABLE
        )

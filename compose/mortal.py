"""
A MAD in a process of its own, so that the demo can kill it.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from compose.exits import UNREACHABLE, Failed

BEGIN_WITHIN_S = 20.0
WORK = "answer"

# It finds bus, name and token in its environment, where no process list shows them.
_PROGRAM = """
import asyncio
import sys

from bus import connect


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
async def mortal(
    url: str, name: str, token: str, session: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """
    A MAD that has joined *session* and does the piece of work WORK there.

    Raises:
        Failed: it could not begin.
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
        await _begun(process, name)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _begun(process: asyncio.subprocess.Process, name: str) -> None:
    told = b""
    if process.stdout is not None:
        async with asyncio.timeout(BEGIN_WITHIN_S):
            told = await process.stdout.readline()
    if told.strip() != b"in":
        raise Failed(f"the MAD {name} could not join; see the managers", UNREACHABLE)

"""
Client processes of the measures of scale: `python -m tests.bench.scale_clients`.

A process holds many MADs, each an instance of its own with its own connections. Its
plan comes as a file, then it is told by lines what to do: it says `ready`, and `done`
after each line. What became of its commands goes into the plan's report.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import uvloop

from everbus.bus import connect
from tests.bench.scale_rig import MANAGER_TIMEOUT_S
from tests.bench.scale_work import Hammer, Mix, Plan, Report, read_report
from tests.bench.tier_rig import TIMEOUT_S
from tests.processes import HOUSE
from tests.replicas import a_token
from tests.servers import inherited


class Client:
    """
    A client process, seen from the one that started it.
    """

    def __init__(self, plan: Plan, process: asyncio.subprocess.Process) -> None:
        self._plan = plan
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    async def tell(self, line: str) -> None:
        """
        Have it do something; return when that is done.
        """
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(f"{line}\n".encode())
        await self.said("done")

    async def said(self, line: str) -> None:
        """
        Wait for this line.
        """
        stdout = self._process.stdout
        assert stdout is not None
        async with asyncio.timeout(MANAGER_TIMEOUT_S):
            heard = (await stdout.readline()).decode().strip()
        if heard != line:
            raise AssertionError(f"a client process said {heard!r}, not {line!r}")

    def report(self) -> Report:
        """
        What it wrote last.
        """
        return read_report(self._plan)


@asynccontextmanager
async def client(plan: Plan) -> AsyncIterator[Client]:
    """
    A client process with its MADs connected; ended by its pid.
    """
    path = Path(plan.report).with_suffix(".plan")
    path.write_bytes(msgspec.msgpack.encode(plan))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.scale_clients", str(path)),
        cwd=HOUSE,
        env=inherited(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        made = Client(plan, process)
        await made.said("ready")
        yield made
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _serve(plan: Plan) -> None:
    async with AsyncExitStack() as connected:
        mads = [
            await connected.enter_async_context(
                connect(plan.url, mad=name, token=a_token(name), timeout=TIMEOUT_S)
            )
            for name in plan.mads
        ]
        worker = {"mix": Mix, "hammer": Hammer}[plan.work](plan, mads)
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            await getattr(worker, line.strip())()
            print("done", flush=True)


if __name__ == "__main__":
    uvloop.run(
        _serve(msgspec.msgpack.decode(Path(sys.argv[1]).read_bytes(), type=Plan))
    )

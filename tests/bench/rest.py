"""
REST next to the SDK: `python -m tests.bench.rest [--pairs N] [--requests N] [--short]`.

The same calls (get, patch, append with its reply) over HTTP through one edge and over
the SDK, in turn, on the same bus with one replica. Then creates and hot gets at a fixed
rate over 1,000 sessions, each latency counted from when the request was due. The HTTP
client is a bare one on kept connections, so that the edge is measured and not a client.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import uvloop

from everbus.bus import Mad, connect
from everbus.compose.stack_folder import free_port
from tests.bench import rig

SESSIONS = 1_000
MAX_CONCURRENT = 64
# At a fixed rate: what a machine of two cores serves with room to spare.
RATE = 200
GOAL_CREATE_S = 0.100
GOAL_GET_S = 0.010
START_S = 20.0

Call = Callable[[int], Awaitable[None]]


class Figures(NamedTuple):
    """
    What one pass came to.
    """

    rate: float
    p50_ms: float
    p99_ms: float


class Http:
    """
    Kept HTTP/1.1 connections to one edge; a request takes whichever is free.
    """

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._head = f"Host: edge\r\nAuthorization: Bearer {token}\r\n"
        self._free: asyncio.LifoQueue[
            tuple[asyncio.StreamReader, asyncio.StreamWriter]
        ] = asyncio.LifoQueue()

    async def open(self, connections: int) -> None:
        """
        Open the connections; a request beyond them waits.
        """
        for _ in range(connections):
            self._free.put_nowait(
                await asyncio.open_connection("127.0.0.1", self._port)
            )

    def close(self) -> None:
        """
        Close all that are free.
        """
        while not self._free.empty():
            self._free.get_nowait()[1].close()

    async def ask(self, method: str, path: str, body: object = None) -> bytes:
        """
        The body of a 2xx answer.
        """
        told = b"" if body is None else json.dumps(body).encode()
        kind = "Content-Type: application/json\r\n" if told else ""
        head = (
            f"{method} {path} HTTP/1.1\r\n{self._head}{kind}"
            f"Content-Length: {len(told)}\r\n\r\n"
        )
        reader, writer = await self._free.get()
        if reader.at_eof():
            # The edge closes what nobody has used for some seconds.
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(head.encode() + told)
        status, _, fields = (await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")
        size = next(
            int(line.partition(b":")[2])
            for line in fields.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        )
        answer = await reader.readexactly(size)
        self._free.put_nowait((reader, writer))
        if not status.split()[1].startswith(b"2"):
            raise SystemExit(f"{method} {path}: {status.decode()} {answer.decode()}")
        return answer


@contextmanager
def edge(url: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """
    One edge process on *port*; ended in order, by pid.
    """
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "EVERBUS_REDIS_URL": url,
        "EVERBUS_JWT_SECRET": rig.SECRET,
        "EVERBUS_LOG_LEVEL": "warning",
        "EVERBUS_EDGE_PORT": str(port),
        # The limits are not what is measured.
        **{
            f"EVERBUS_EDGE_{name}": "1000000"
            for name in ("RATE", "TENANT_RATE", "CONCURRENCY", "TENANT_CONCURRENCY")
        },
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "everbus", "edge"], env=environment
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=20)


@asynccontextmanager
async def doors(folder: Path) -> AsyncIterator[tuple[Mad, Http, int]]:
    """
    A MAD on a bus with one replica, connections to an edge, and the edge's pid.
    """
    token = rig.token("bench")
    async with rig.bus(folder) as server:
        with rig.replica(server.url):
            port = free_port()
            async with connect(server.url, mad="bench", token=token, timeout=60) as mad:
                with edge(server.url, port) as process:
                    await until_ready(port)
                    http = Http(port, token)
                    await http.open(MAX_CONCURRENT)
                    try:
                        yield mad, http, process.pid
                    finally:
                        http.close()


async def until_ready(port: int) -> None:
    """
    Return when the edge takes connections and says that it is ready.
    """
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                b"GET /readyz HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n"
            )
            answer = await reader.read()
            writer.close()
        except OSError:
            answer = b""
        if b" 200 " in answer[:20]:
            return
        await asyncio.sleep(0.1)
    raise SystemExit(f"the edge was not ready within {START_S} s")


async def measured(call: Call, requests: int, at_once: int) -> Figures:
    """
    *requests* calls, so many at once.
    """
    took: list[float] = []
    numbers = iter(range(requests))

    async def worker() -> None:
        for n in numbers:
            began = time.perf_counter()
            await call(n)
            took.append(time.perf_counter() - began)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(worker())
    return figures(took, time.perf_counter() - began)


async def paced(call: Call, seconds: float) -> Figures:
    """
    Calls at RATE a second, each counted from when it was due.
    """
    took: list[float] = []
    start = time.perf_counter()

    async def one(n: int) -> None:
        await call(n)
        took.append(time.perf_counter() - (start + n / RATE))

    async with asyncio.TaskGroup() as tasks:
        for n in range(int(seconds * RATE)):
            await asyncio.sleep(max(0.0, start + n / RATE - time.perf_counter()))
            tasks.create_task(one(n))
    return figures(took, time.perf_counter() - start)


def figures(took: list[float], seconds: float) -> Figures:
    """
    Rate and percentiles of latencies.
    """
    ordered = sorted(took)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]

    return Figures(len(took) / seconds, ordered[len(ordered) // 2] * 1000, p99 * 1000)


class Arms:
    """
    The calls that are compared, over both doors.
    """

    def __init__(self, mad: Mad, http: Http, sessions: list[str]) -> None:
        self._mad = mad
        self._http = http
        self._sessions = sessions

    def calls(self) -> dict[str, Call]:
        """
        `<call> <door>` → the call.
        """
        return {
            "get SDK": self._sdk_get,
            "get REST": self.rest_get,
            "patch SDK": self._sdk_patch,
            "patch REST": self._rest_patch,
            "append SDK": self._sdk_append,
            "append REST": self._rest_append,
        }

    async def create(self, _: int) -> None:
        """
        Create a session over REST.
        """
        await self._http.ask("POST", "/sessions", {"user_id": "bench"})

    async def rest_get(self, n: int) -> None:
        """
        Get the n-th session over REST.
        """
        await self._http.ask("GET", f"/sessions/{self._session(n)}")

    async def _sdk_get(self, n: int) -> None:
        await self._mad.get_session(self._session(n))

    async def _sdk_patch(self, n: int) -> None:
        await self._mad.update_session(self._session(n), _patch(n))

    async def _rest_patch(self, n: int) -> None:
        await self._http.ask(
            "PATCH", f"/sessions/{self._session(n)}", {"patch": _patch(n)}
        )

    async def _sdk_append(self, n: int) -> None:
        await self._mad.append_and_wait(self._session(n), {"role": "user", "n": n})

    async def _rest_append(self, n: int) -> None:
        entry = {"entry": {"role": "user", "n": n}}
        await self._http.ask("POST", f"/sessions/{self._session(n)}/timeline", entry)

    def _session(self, n: int) -> str:
        return self._sessions[n % len(self._sessions)]


def _patch(n: int) -> dict[str, object]:
    return {"context_summary": {"topic": "x" * 260, "n": n}}


async def compared(
    calls: dict[str, Call], pid: int, pairs: int, requests: int, at_once: int
) -> None:
    """
    Print a table of *pairs* interleaved passes.
    """
    print(
        f"\n| {at_once} at once, n = {pairs} x {requests} | requests/s | p50 ms | "
        "p99 ms | edge CPU us |\n|---|---|---|---|---|"
    )
    rows: dict[str, list[Figures]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(pairs):
        for name, call in calls.items():
            before = rig.cpu_s(pid)
            rows[name].append(await measured(call, requests, at_once))
            cpu[name].append((rig.cpu_s(pid) - before) / requests * 1e6)
    for name, found in rows.items():
        shown = (
            rig.spread([f.rate for f in found]),
            rig.spread([f.p50_ms for f in found], 2),
            rig.spread([f.p99_ms for f in found], 2),
            rig.spread(cpu[name]) if "REST" in name else "",
        )
        print(f"| {name} | {' | '.join(shown)} |")


async def held(name: str, call: Call, seconds: float, goal_s: float) -> None:
    """
    Print whether *call*, at RATE, keeps within its goal.
    """
    found = await paced(call, seconds)
    verdict = "met" if found.p99_ms <= goal_s * 1000 else "NOT MET"
    print(
        f"{name}, {RATE}/s over {SESSIONS} sessions: p50 {found.p50_ms:.2f} ms, "
        f"p99 {found.p99_ms:.2f} ms (asked: < {goal_s * 1000:.0f} ms: {verdict})"
    )


async def main(pairs: int, requests: int, seconds: float) -> None:
    """
    Print the tables.
    """
    with tempfile.TemporaryDirectory() as folder:
        async with doors(Path(folder)) as (mad, http, pid):
            made = [await mad.create_session("bench") for _ in range(SESSIONS)]
            arms = Arms(mad, http, [session.id for session in made])
            await compared(arms.calls(), pid, pairs, requests, MAX_CONCURRENT)
            await compared(arms.calls(), pid, pairs, requests // 10, 1)
            await held("create", arms.create, seconds, GOAL_CREATE_S)
            await held("hot get", arms.rest_get, seconds, GOAL_GET_S)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--requests", type=int, default=5_000)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--short", action="store_true")
    given = parser.parse_args()
    if given.short:
        given.pairs, given.requests, given.seconds = 1, 1_000, 3
    uvloop.run(main(given.pairs, given.requests, given.seconds))

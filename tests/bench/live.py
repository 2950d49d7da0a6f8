"""
How long from a commit until those who follow hear of it, and what a stream costs.

    python -m tests.bench.live [streams] [events]

One manager and one edge as processes, the streams spread over SESSIONS sessions, one
MAD that broadcasts. What is timed is from before the broadcast is sent until the last
byte of it was read by a WebSocket client in this process, by one clock: so it counts
the way to the manager as well; that from the commit on is the difference to the reply.
"""

import asyncio
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from websockets.asyncio.client import ClientConnection, connect

from everbus.bus import Mad
from everbus.bus import connect as connect_mad
from everbus.compose.stack_folder import free_port
from everbus.gateway.identity.tokens import mint
from tests.bench.rig import SECRET, bus, replica

SESSIONS = 100
MAX_CONCURRENT = 50


def token() -> str:
    """
    One that may do everything.
    """
    who = {"name": "bench", "role": "admin", "issuer": "everbus", "audience": "everbus"}
    return mint(SECRET, **who, ttl_s=3600, now=time.time())  # type: ignore[arg-type]


@asynccontextmanager
async def edge(url: str) -> AsyncIterator[tuple[str, int]]:
    """
    An edge process: its URL and its pid.
    """
    port = free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "EVERBUS_REDIS_URL": url,
        "EVERBUS_JWT_SECRET": SECRET,
        "EVERBUS_EDGE_PORT": str(port),
        "EVERBUS_EDGE_STREAMS": "100000",
        "EVERBUS_EDGE_RATE": "100000",
        "EVERBUS_EDGE_TENANT_RATE": "100000",
        "EVERBUS_LOG_LEVEL": "warning",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "everbus", "edge"), env=environment
    )
    try:
        await until_served(port)
        yield f"ws://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 30)


async def until_served(port: int) -> None:
    """
    Return when somebody listens.
    """
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.05)
            else:
                return writer.close()


def resident_kb(pid: int) -> int:
    """
    The memory of a process.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    [line] = [one for one in status.splitlines() if one.startswith("VmRSS")]
    return int(line.split()[1])


class Followers:
    """
    WebSockets, and when they heard of what.
    """

    def __init__(self) -> None:
        self.heard: list[float] = []

    async def follow(self, socket: ClientConnection) -> None:
        async for text in socket:
            now = time.perf_counter()
            message = json.loads(text)["message"]
            self.heard.append(now - message["sent"])


async def opened(
    url: str, sessions: list[str], count: int, closing: AsyncExitStack
) -> list[ClientConnection]:
    """
    That many streams, AT_ONCE at a time, each past its opening message.
    """
    headers = {"Authorization": f"Bearer {token()}"}
    turns = asyncio.Semaphore(MAX_CONCURRENT)

    async def one(n: int) -> ClientConnection:
        async with turns:
            path = f"{url}/sessions/{sessions[n % len(sessions)]}/live"
            socket = await closing.enter_async_context(
                connect(path, additional_headers=headers, compression=None)
            )
            await socket.recv()
            return socket

    return await asyncio.gather(*(one(n) for n in range(count)))


async def timed(
    mad: Mad, sessions: list[str], events: int, followers: Followers, each: float
) -> list[float]:
    """
    Broadcast *events* times, a little apart; how long each reply took.
    """
    replies = []
    for n in range(events):
        began = time.perf_counter()
        await mad.broadcast(sessions[n % len(sessions)], {"sent": began})
        replies.append(time.perf_counter() - began)
        await asyncio.sleep(0.01)
    async with asyncio.timeout(30):
        while len(followers.heard) < events * each:
            await asyncio.sleep(0.01)
    return replies


def share(values: list[float], part: float) -> str:
    """
    The value below which *part* of them lies, in ms.
    """
    ordered = sorted(values)
    return f"{ordered[min(len(ordered) - 1, int(len(ordered) * part))] * 1000:.2f} ms"


async def main(count: int, events: int) -> None:
    """
    Run it once and print.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20_000), hard))
    folder = Path(tempfile.mkdtemp())
    async with AsyncExitStack() as closing:
        server = await closing.enter_async_context(bus(folder))
        closing.enter_context(replica(server.url))
        url, pid = await closing.enter_async_context(edge(server.url))
        mad = await closing.enter_async_context(
            connect_mad(server.url, mad="bench", token=token())
        )
        number = min(SESSIONS, count)
        sessions = [(await mad.create_session(user_id="b")).id for _ in range(number)]
        first = await opened(url, sessions, number, closing)
        before = resident_kb(pid)
        rest = await opened(url, sessions, count - number, closing)
        # Until each has asked the managers once: from then on it is pushed to.
        await asyncio.sleep(2)
        grown = resident_kb(pid) - before
        followers = Followers()
        following = [
            asyncio.create_task(followers.follow(socket)) for socket in first + rest
        ]
        replies = await timed(mad, sessions, events, followers, count / number)
        print(f"streams            {count} over {number} sessions")
        if rest:
            print(f"memory a stream    {grown / len(rest):.1f} KiB")
        print(f"sent → reply       p50 {share(replies, 0.5)}")
        for part in (0.5, 0.99):
            print(f"sent → subscriber  p{part * 100:g} {share(followers.heard, part)}")
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main(*(int(one) for one in [*sys.argv[1:], "1000", "500"][:2])))

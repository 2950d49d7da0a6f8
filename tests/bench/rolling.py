"""
A rolling restart under load: `python -m tests.bench.rolling [--rounds N] [--short]`.

Three replicas, each in turn stopped by SIGTERM and started again, while requests are
made at a fixed rate. A request's latency counts from when it was due, so a stall is
not hidden by the requests that it kept from being made. Exits with 1 if any client
saw an error or a request is missing from the sessions' versions.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from subprocess import Popen

import uvloop

from everbus.bus import Mad, connect
from everbus.bus.errors import EverbusError
from everbus.bus.wire import Wire
from everbus.gateway.store import key_names
from tests.bench import rig

REPLICAS = 3
MADS = 4
SESSIONS = 200
RATE = 2000
# How long it is quiet before the first restart, and between two.
PAUSE_S = 2.0
GOAL_P99_S = 1.0


class Load:
    """
    Requests at a fixed rate from several MADs, each on its own sessions.

    Attributes:
        took_s: (when it was due, how long it took) of each request.
        errors: how often clients saw which code.
        updates: session id → how many updates were acknowledged.
    """

    def __init__(self, mads: list[Mad], sessions: dict[str, Mad]) -> None:
        self.took_s: list[tuple[float, float]] = []
        self.errors: Counter[str] = Counter()
        self.updates: Counter[str] = Counter()
        self._sessions = list(sessions.items())
        self._mads = mads
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """
        Make no more requests.
        """
        self._stop.set()

    async def run(self) -> None:
        """
        Make requests until stopped, then wait for their replies.
        """
        started, n = time.perf_counter(), 0
        async with asyncio.TaskGroup() as under_way:
            while not self._stop.is_set():
                due = int((time.perf_counter() - started) * RATE)
                for n in range(n, due):  # noqa: B020 - it goes on where it was
                    under_way.create_task(self._request(n, started + n / RATE))
                n = max(n, due)
                await asyncio.sleep(0.002)

    async def _request(self, n: int, due: float) -> None:
        session, mad = self._sessions[n % len(self._sessions)]
        try:
            await mad.update_session(session, {"work_in_progress": {"n": n}})
        except EverbusError as error:
            self.errors[error.code] += 1
        else:
            self.updates[session] += 1
        self.took_s.append((due, time.perf_counter() - due))


async def rolled(
    url: str, replicas: dict[str, Popen[bytes]], stack: ExitStack
) -> list[float]:
    """
    Restart each replica in turn; how many seconds each took to exit.
    """
    exits = []
    for name in list(replicas):
        await asyncio.sleep(PAUSE_S)
        started = time.perf_counter()
        replicas[name].terminate()
        while replicas[name].poll() is None:
            await asyncio.sleep(0.005)
        exits.append(time.perf_counter() - started)
        if replicas[name].returncode != 0:
            raise SystemExit(f"{name} ended with {replicas[name].returncode}")
        replicas[name] = stack.enter_context(rig.replica(url, name))
        await until_living(url, set(replicas))
    await asyncio.sleep(PAUSE_S)
    return exits


async def until_living(url: str, wanted: set[str]) -> None:
    """
    Return when all of *wanted* are replicas and every lane has an owner.
    """
    wire = Wire(url)
    owners = [key_names.owner(p) for p in range(rig.PARTITIONS)]
    try:
        while True:
            living = await wire.call("ZRANGE", key_names.REPLICAS, 0, -1)
            owned = await wire.call("EXISTS", *owners)
            if wanted <= {name.decode() for name in living} and owned == len(owners):
                return
            await asyncio.sleep(0.01)
    finally:
        await wire.close()


async def measured(folder: Path, rounds: int) -> tuple[Load, list[float], int]:
    """
    The load, the seconds that each exit took, and how many updates are missing.
    """
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(rig.bus(folder))
        processes = stack.enter_context(ExitStack())
        replicas = {
            name: processes.enter_context(rig.replica(server.url, name))
            for name in (f"r{n}" for n in range(1, REPLICAS + 1))
        }
        await until_living(server.url, set(replicas))
        mads = [
            await stack.enter_async_context(
                connect(server.url, mad=f"mad{n}", token=rig.token(f"mad{n}"))
            )
            for n in range(MADS)
        ]
        sessions = {
            (await mads[n % MADS].create_session("ada")).id: mads[n % MADS]
            for n in range(SESSIONS)
        }
        load = Load(mads, sessions)
        running = asyncio.create_task(load.run())
        exits: list[float] = []
        for _ in range(rounds):
            exits += await rolled(server.url, replicas, processes)
        load.stop()
        await running
        missing = 0
        for session, mad in sessions.items():
            version = (await mad.get_session(session)).version
            missing += abs(version - 1 - load.updates[session])
        return load, exits, missing


def share(values: list[float], of: float) -> float:
    """
    The value below which the share *of* of *values* lies.
    """
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * of))]


def main() -> int:
    """
    Measure, print, and say whether it was clean.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--short", action="store_true", help="one round")
    options = parser.parse_args()
    rounds = 1 if options.short else options.rounds
    with tempfile.TemporaryDirectory() as folder:
        load, exits, missing = uvloop.run(measured(Path(folder), rounds))
    took = [seconds for _, seconds in load.took_s]
    clean = not load.errors and not missing
    print(f"{len(took):,} requests at {RATE:,}/s, {len(exits)} restarts of {REPLICAS}")
    for of, name in ((0.5, "p50"), (0.99, "p99"), (0.999, "p99.9"), (1, "max")):
        print(f"  {name:6} {share(took, of) * 1000:8.1f} ms")
    print(f"  SIGTERM to exit {rig.spread(exits, 2)} s")
    print(f"  errors {dict(load.errors)}, updates not accounted for: {missing}")
    goal = "within" if share(took, 0.99) < GOAL_P99_S else "OVER"
    print(f"{'clean' if clean else 'NOT CLEAN'}; p99 {goal} {GOAL_P99_S:g} s")
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())

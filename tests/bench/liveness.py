"""
How fast silence is noticed, and what heartbeats cost: `python -m tests.bench.liveness`.

Detection: instances fall silent at random moments; how long after its deadline is
each declared lost, by the server's own clock? With the sweep alone and with
notifications, quiet and beside a million other volatile keys. Cost: what 1,000 living
instances ask of server and owner, over the same time without them. Takeover: from a
replica's SIGKILL until another owns its lane, for every lane it had.
"""

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import uvloop

from everbus.bus import keys
from everbus.bus.messages import SCHEMA, Envelope, pack, pack_envelope
from everbus.bus.wire import Command, Wire
from everbus.gateway.store import key_names, lease_records
from tests.bench import rig
from tests.replicas import Part, manager, replica_in
from tests.servers import RealServer

LANES: tuple[int | str, ...] = (keys.PRESENCE, *range(rig.PARTITIONS))
SILENT_TTL_S = 2
LANE_TTL_MS = 5_000
# On average, between two that fall silent: far enough apart that the look that one
# causes is not what finds the next.
APART_S = 1.0
MADS = 100
FILL = """
for i = tonumber(ARGV[1]), tonumber(ARGV[2]) do
  redis.call('SET', 'other:' .. i, '', 'PX', 3600000 + i)
end
"""
FILL_CHUNK = 20_000
WITHIN_S = 60.0


class Sizes(NamedTuple):
    """
    How much is measured.
    """

    instances: int = 60
    others: int = 1_000_000
    beating: int = 1_000
    beating_s: float = 60.0
    kills: int = 50


SHORT = Sizes(instances=10, others=50_000, beating=200, beating_s=5.0, kills=2)


class Bus(NamedTuple):
    """
    An empty server, a connection to it, and where its managers log.
    """

    server: RealServer
    wire: Wire
    folder: Path

    def manager(self, name: str, **settings: Any) -> AbstractAsyncContextManager[Part]:
        """
        A manager process with the lanes and TTLs of production, but for *settings*.
        """
        known = {
            "partitions": rig.PARTITIONS,
            "lane_ttl_ms": LANE_TTL_MS,
            "log_level": "error",
            "redis_unsafe": "true",
        }
        return manager(self.folder, self.server.url, name, **known | settings)


@asynccontextmanager
async def a_bus() -> AsyncIterator[Bus]:
    """
    A bus of which nobody knows anything yet.
    """
    with tempfile.TemporaryDirectory() as folder:
        async with rig.bus(Path(folder)) as server:
            wire = Wire(server.url)
            try:
                yield Bus(server, wire, Path(folder))
            finally:
                await wire.close()


async def until_owned(wire: Wire) -> dict[int | str, str]:
    """
    Lane → owner, once every lane has one.
    """
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        values = await wire.call("MGET", *map(key_names.owner, LANES))
        if all(values):
            return {
                lane: value.decode() for lane, value in zip(LANES, values, strict=True)
            }
        await asyncio.sleep(0.01)
    raise AssertionError(f"not every lane owned within {WITHIN_S} s")


def heartbeat(kind: str, mad: str, instance: str) -> Command:
    """
    The command that publishes one heartbeat, as the SDK does.
    """
    body = msgspec.Raw(pack({"instance": instance, "epoch": 1}))
    packed = pack_envelope(
        Envelope(v=SCHEMA, id=f"{instance}.1.1", kind=f"instance.{kind}", body=body)
    )

    return ("XADD", keys.ingress(keys.PRESENCE, mad), "*", "c", packed)


async def detection(flags: str, others: int, instances: int) -> list[float]:
    """
    Seconds from each deadline to the loss, of *instances* that join once and never
    beat; *flags* are the server's `notify-keyspace-events`.
    """
    async with a_bus() as bus:
        wire = bus.wire
        await wire.call("CONFIG", "SET", "notify-keyspace-events", flags)
        await wire.call("HSET", keys.MADS, "ann", "{}")
        for first in range(0, others, FILL_CHUNK):
            last = min(others, first + FILL_CHUNK) - 1
            await wire.call("EVAL", FILL, 0, first, last, timeout_s=60)
        async with bus.manager("bench", lease_ttl_s=SILENT_TTL_S):
            await until_owned(wire)
            # Behind the first sweep's grace, which nothing here is about.
            await asyncio.sleep(SILENT_TTL_S + 1)
            await _join_all(wire, instances)
            return await _lateness(wire, instances)


async def _join_all(wire: Wire, instances: int) -> None:
    began = time.monotonic()
    moments = sorted(random.uniform(0, APART_S * instances) for _ in range(instances))
    for n, due_s in enumerate(moments):
        await asyncio.sleep(max(0.0, began + due_s - time.monotonic()))
        await wire.call(*heartbeat("join", "ann", f"i{n}"))


async def _lateness(wire: Wire, instances: int) -> list[float]:
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        found = await lease_records.instances(wire)
        if len(found) == instances and all(one.state == "lost" for one in found):
            ttl_ms = SILENT_TTL_S * 1000
            noticed = sum(one.noticed == "event" for one in found)
            print(f"  noticed by event: {noticed} of {instances}", file=sys.stderr)
            return [(one.ended_ms - one.heard_ms - ttl_ms) / 1000 for one in found]
        await asyncio.sleep(0.1)
    raise AssertionError(f"not all lost within {WITHIN_S} s")


class Spent(NamedTuple):
    """
    What was spent in a while, per second, and the memory at its end.
    """

    server_cpu: float
    owner_cpu: float
    commands: float
    bytes: int


async def heartbeat_cost(instances: int, seconds: float) -> dict[str, float]:
    """
    What *instances* that beat each ten seconds cost, beyond an idle replica.
    """
    async with a_bus() as bus:
        wire = bus.wire
        mads = [f"mad{n}" for n in range(MADS)]
        await wire.exchange([("HSET", keys.MADS, mad, "{}") for mad in mads])
        async with bus.manager("bench") as owner:
            await until_owned(wire)
            # Until every lane has made its groups for every MAD.
            await asyncio.sleep(5)
            pids = bus.server.pid, owner.pid
            idle = await _spent(wire, pids, seconds, asyncio.sleep(seconds))
            living = [(mads[n % MADS], f"i{n}") for n in range(instances)]
            await _beat(wire, "join", living, 1.0)
            beats = _beat_for(wire, living, seconds)
            busy = await _spent(wire, pids, seconds, beats)
            watch = await lease_records.watch(wire)
            if watch.living != instances:
                raise AssertionError(f"{watch.living} of {instances} live")
    return {
        "server CPU %": 100 * (busy.server_cpu - idle.server_cpu),
        "owner CPU %": 100 * (busy.owner_cpu - idle.owner_cpu),
        "idle owner CPU %": 100 * idle.owner_cpu,
        "commands/s, scripts' own included": busy.commands - idle.commands,
        "bytes an instance": (busy.bytes - idle.bytes) / instances,
    }


async def _spent(wire: Wire, pids: tuple[int, int], seconds: float, work: Any) -> Spent:
    server, owner = pids
    before = rig.cpu_s(server), rig.cpu_s(owner), await _commands(wire)
    await work
    after = rig.cpu_s(server), rig.cpu_s(owner), await _commands(wire)
    rates = [(b - a) / seconds for a, b in zip(before, after, strict=True)]
    used = (await _info(wire, "memory"))["used_memory"]

    return Spent(*rates, bytes=int(used))


async def _commands(wire: Wire) -> float:
    told = await _info(wire, "commandstats")
    counts = (stats.split(",")[0].removeprefix("calls=") for stats in told.values())

    return sum(map(float, counts))


async def _info(wire: Wire, section: str) -> dict[str, str]:
    text = (await wire.call("INFO", section)).decode()

    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


async def _beat_for(wire: Wire, living: list[tuple[str, str]], seconds: float) -> None:
    ends = time.monotonic() + seconds
    while (left_s := ends - time.monotonic()) > 0:
        # A third of the TTL apart: each beats once in ten seconds.
        count = max(1, int(len(living) * min(10.0, left_s) / 10))
        await _beat(wire, "beat", living[:count], min(10.0, left_s))


async def _beat(
    wire: Wire, kind: str, living: list[tuple[str, str]], over_s: float
) -> None:
    """
    One heartbeat of each, spread evenly over *over_s*, each in a write of its own.
    """
    began = time.monotonic()
    for n, (mad, instance) in enumerate(living):
        due = began + over_s * n / len(living)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        await wire.call(*heartbeat(kind, mad, instance))
    await asyncio.sleep(max(0.0, began + over_s - time.monotonic()))


async def takeovers(kills: int) -> list[float]:
    """
    Seconds from SIGKILL until each lane of the dead replica has another owner.
    """
    took: list[float] = []
    async with a_bus() as bus, AsyncExitStack() as living:
        replicas: dict[str, Part] = {}
        for number in range(kills):
            while len(replicas) < 2:
                name = f"bench-{number}-{len(replicas)}"
                replicas[name] = await living.enter_async_context(bus.manager(name))
            await _until_owners(bus.wire, set(replicas))
            victim = random.choice(sorted(replicas))
            replicas.pop(victim).send(signal.SIGKILL)
            took += await _taken(bus.wire, victim)
            print(f"  kill {number + 1} of {kills}", file=sys.stderr)
    return took


async def _until_owners(wire: Wire, wanted: set[str]) -> None:
    """
    Return once every lane is owned and each of *wanted* owns some.
    """
    deadline = time.monotonic() + WITHIN_S
    while {replica_in(owner) for owner in (await until_owned(wire)).values()} != wanted:
        if time.monotonic() > deadline:
            raise AssertionError(f"lanes not shared by {wanted} within {WITHIN_S} s")
        await asyncio.sleep(0.05)


async def _taken(wire: Wire, victim: str) -> list[float]:
    began = time.monotonic()
    owners = await wire.call("MGET", *map(key_names.owner, LANES))
    waiting = {
        lane
        for lane, owner in zip(LANES, owners, strict=True)
        if owner and replica_in(owner.decode()) == victim
    }
    took = []
    while waiting:
        if time.monotonic() - began > WITHIN_S:
            raise AssertionError(f"{waiting} not taken over within {WITHIN_S} s")
        await asyncio.sleep(0.005)
        lanes = sorted(waiting, key=str)
        owners = await wire.call("MGET", *map(key_names.owner, lanes))
        for lane, owner in zip(lanes, owners, strict=True):
            if owner and replica_in(owner.decode()) != victim:
                took.append(time.monotonic() - began)
                waiting.discard(lane)
    return took


def quantiles(seconds: list[float]) -> dict[str, float]:
    """
    n, p50, p99 and the maximum.
    """
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]

    return {
        "n": len(ordered),
        "p50": rig.median(ordered),
        "p99": p99,
        "max": ordered[-1],
    }


async def measure(sizes: Sizes) -> dict[str, dict[str, float]]:
    """
    All of it; seconds, but for the cost.
    """
    results: dict[str, dict[str, float]] = {}
    for others in (0, sizes.others):
        for word, flags in (("sweep", ""), ("event", "Kx")):
            name = f"detection by {word}, {others:,} other volatile keys, s"
            print(name, file=sys.stderr)
            late = await detection(flags, others, sizes.instances)
            results[name] = quantiles(late)
    name = f"heartbeats of {sizes.beating:,} instances"
    print(name, file=sys.stderr)
    results[name] = await heartbeat_cost(sizes.beating, sizes.beating_s)
    name = "takeover of a lane after SIGKILL, s"
    print(name, file=sys.stderr)
    results[name] = quantiles(await takeovers(sizes.kills))

    return results


def table(results: dict[str, dict[str, float]]) -> str:
    """
    A Markdown table, a row a figure.
    """
    lines = ["| figure | |", "|---|---|"]
    for name, figures in results.items():
        told = ", ".join(f"{key} {value:,.4g}" for key, value in figures.items())
        lines.append(f"| {name} | {told} |")
    return "\n".join(lines)


def main() -> None:
    """
    Measure, and print the table and one line of JSON.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="a small part of the work")
    sizes = SHORT if parser.parse_args().short else Sizes()
    results = uvloop.run(measure(sizes))
    print(table(results))
    print(json.dumps(results))


if __name__ == "__main__":
    main()

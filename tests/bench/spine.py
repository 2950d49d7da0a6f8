"""
How fast the spine is: `python -m tests.bench.spine [--pairs N] [--short]`.

Arms are interleaved in one run, since this kind of machine has fast and slow
phases: judge the ratios. After each pass the sum of the session versions must
equal the commands sent: a fast loss is no result.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import redis.asyncio as redis
import uvloop

from bus import connect, keys
from bus.client import Mad
from bus.codec import pack
from bus.errors import Overloaded
from bus.messages import SCHEMA, Envelope
from bus.wire import Wire
from gateway.progress import Progress
from tests.bench import rig, watch_loop

SESSIONS = 1000
PATCH = {"work_in_progress": {"a": "x" * 100, "b": "y" * 100, "c": "z" * 60}}
BODY = pack({"patch": PATCH})
WATCH = "WATCH per command, 1 a read, /s"


class Spine:
    """
    One MAD, one replica, one server, and the arms that are measured on them.
    """

    def __init__(self, mad: Mad, url: str, server: int, worker: int) -> None:
        self._mad = mad
        self._wire = Wire(url)
        self._client = watch_loop.client_for(url)
        self._server = server
        self._worker = worker
        self.ids: list[str] = []
        self.results: dict[str, list[float]] = {}

    async def open(self) -> None:
        """
        Create the sessions.
        """
        made = await asyncio.gather(
            *(self._mad.create_session(f"u{i}", timeout=60) for i in range(SESSIONS))
        )
        self.ids = [session.id for session in made]

    async def close(self) -> None:
        """
        Close what this opened.
        """
        await self._wire.close()
        await self._client.aclose()

    def note(self, name: str, value: float) -> None:
        """
        Keep one figure of one pass.
        """
        self.results.setdefault(name, []).append(value)

    async def no_reply(self, count: int) -> None:
        """
        Updates that want no reply, from the first publish to the last commit.
        """
        before = await self._settled()
        cpu = rig.cpu_s(self._worker), rig.cpu_s(self._server)
        started = time.perf_counter()
        for i in range(count):
            await self._publish("session.update", self.ids[i % SESSIONS], BODY)
        while await self._settled() < before + count:
            await asyncio.sleep(0.01)
        took = time.perf_counter() - started
        self.note("no reply, commands/s", count / took)
        used = rig.cpu_s(self._worker) - cpu[0], rig.cpu_s(self._server) - cpu[1]
        self.note("worker CPU us a command", used[0] / count * 1e6)
        self.note("server CPU us a command", used[1] / count * 1e6)

    async def with_reply(self, count: int, in_flight: int = 1000) -> None:
        """
        Requests, *in_flight* at once in one process.
        """

        async def caller(first: int) -> None:
            for i in range(first, count, in_flight):
                await self._mad.update_session(
                    self.ids[i % SESSIONS], PATCH, timeout=60
                )

        started = time.perf_counter()
        await asyncio.gather(*(caller(first) for first in range(in_flight)))
        self.note("with reply, requests/s", count / (time.perf_counter() - started))

    async def appends(self, count: int) -> None:
        """
        Fire-and-forget appends of one publisher, until they are on the bus.
        """
        started = time.perf_counter()
        for i in range(count):
            while True:
                try:
                    self._mad.append(self.ids[i % SESSIONS], {"text": "x" * 200})
                    break
                except Overloaded:
                    await self._mad.flush(timeout=60)
        await self._mad.flush(timeout=60)
        self.note("appends published/s", count / (time.perf_counter() - started))
        await self._quiet()

    async def one_session(self, writers: int, each: int) -> None:
        """
        Many writers on one session, no expected version.
        """
        session = await self._mad.create_session("crowd")

        async def writer() -> None:
            for _ in range(each):
                await self._mad.update_session(session.id, PATCH, timeout=60)

        started = time.perf_counter()
        await asyncio.gather(*(writer() for _ in range(writers)))
        took = time.perf_counter() - started
        self.note(f"{writers} writers on one session, /s", writers * each / took)
        last = await self._mad.get_session(session.id)
        if last.version != 1 + writers * each:
            raise AssertionError(f"lost updates: version {last.version}")

    async def watch(self, count: int, at_once: int) -> None:
        """
        The same work with WATCH/MULTI/EXEC per command on 16 lanes.
        """
        await watch_loop.prepare(self._client, self.ids, count, BODY)
        started = time.perf_counter()
        done = await watch_loop.run(self._client, at_once)
        took = time.perf_counter() - started
        self.note(f"WATCH per command, {at_once} a read, /s", done / took)
        stale = [key async for key in self._client.scan_iter("watch:*", count=1000)]
        await self._client.unlink(*stale)

    async def latency(self, count: int, url: str) -> None:
        """
        Request to reply with one in flight, each beside a bare PING of redis-py.

        In turns, so that both find the cores asleep: back to back, the PING keeps
        them awake and takes half as long.
        """
        bare = redis.Redis.from_url(url)
        requests: list[float] = []
        pings: list[float] = []
        for i in range(count):
            started = time.perf_counter()
            await self._mad.update_session(self.ids[i % SESSIONS], PATCH)
            between = time.perf_counter()
            await bare.ping()
            requests.append((between - started) * 1e6)
            pings.append((time.perf_counter() - between) * 1e6)
        await bare.aclose()
        requests.sort()
        self.note("request p50 us", rig.median(requests))
        self.note("request p99 us", requests[int(0.99 * count)])
        self.note("PING p50 us", rig.median(pings))
        self.note("request p50 : PING p50", rig.median(requests) / rig.median(pings))

    async def check(self, sent: int) -> None:
        """
        The versions must tell of every command once.
        """
        found = await asyncio.gather(
            *(self._mad.get_session(i, timeout=60) for i in self.ids)
        )
        applied = sum(session.version - 1 for session in found)
        if applied != sent:
            raise AssertionError(f"{sent} updates sent, {applied} applied")
        await rig.empty(self._wire)

    async def _publish(self, kind: str, session_id: str, body: bytes) -> None:
        envelope = Envelope(
            v=SCHEMA,
            id="",
            kind=kind,
            session=session_id,
            body=msgspec.Raw(body),
        )
        partition = keys.partition_of(session_id, rig.PARTITIONS)
        while True:
            try:
                self._mad._requests._publisher.publish(envelope, partition)
            except Overloaded:
                await self._mad.flush(timeout=60)
            else:
                return

    async def _settled(self) -> int:
        replies = await self._wire.exchange(
            [("HVALS", f"eb:{{{p}}}:publishers") for p in range(rig.PARTITIONS)]
        )
        return sum(Progress.parse(v).mark for values in replies for v in values)

    async def _quiet(self) -> None:
        before = -1
        while (now := await self._settled()) != before:
            before = now
            await asyncio.sleep(0.3)
        await rig.empty(self._wire)


async def measure(pairs: int, scale: float) -> dict[str, list[float]]:
    """
    All arms, *pairs* times, interleaved.
    """
    with tempfile.TemporaryDirectory() as folder:
        async with rig.bus(Path(folder)) as server:
            with rig.replica(server.url) as worker:
                async with connect(
                    server.url, mad="bench", token=rig.token("bench"), timeout=60
                ) as mad:
                    spine = Spine(mad, server.url, server.pid, worker.pid)
                    await spine.open()
                    await _passes(spine, server.url, pairs, scale)
                    await spine.close()
                    return spine.results


async def _passes(spine: Spine, url: str, pairs: int, scale: float) -> None:
    sent = 0
    for number in range(pairs):
        print(f"pass {number + 1} of {pairs}", file=sys.stderr)
        counts = {"no": int(80_000 * scale), "yes": int(40_000 * scale)}
        await spine.no_reply(counts["no"])
        await spine.watch(int(5_000 * scale), 1)
        await spine.watch(int(5_000 * scale), 100)
        await spine.with_reply(counts["yes"])
        await spine.latency(int(2_000 * scale), url)
        sent += counts["no"] + counts["yes"] + int(2_000 * scale)
        await spine.check(sent)
        await spine.appends(int(100_000 * scale))
        await spine.one_session(50, int(200 * scale))


def ratios(results: dict[str, list[float]]) -> dict[str, list[float]]:
    """
    Ratios of the arms of each pass.
    """

    def over(one: str, other: str) -> list[float]:
        return [a / b for a, b in zip(results[one], results[other], strict=True)]

    return {
        "no reply : WATCH": over("no reply, commands/s", WATCH),
        "no reply : WATCH, 100 a read": over(
            "no reply, commands/s", "WATCH per command, 100 a read, /s"
        ),
        "with reply : WATCH": over("with reply, requests/s", WATCH),
        "worker : server CPU": over(
            "worker CPU us a command", "server CPU us a command"
        ),
    }


def table(results: dict[str, list[float]]) -> str:
    """
    A Markdown table, median [min-max].
    """
    rows = {**results, **ratios(results)}
    lines = ["| figure | median [min-max] | n |", "|---|---|---|"]
    for name, values in rows.items():
        digits = 2 if max(values) < 100 else 0
        lines.append(f"| {name} | {rig.spread(values, digits)} | {len(values)} |")
    return "\n".join(lines)


def main() -> None:
    """
    Measure, and print the table and one line of JSON.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="passes of all arms")
    parser.add_argument("--short", action="store_true", help="a tenth of the work")
    arguments = parser.parse_args()
    results: dict[str, Any] = uvloop.run(
        measure(arguments.pairs, 0.1 if arguments.short else 1.0)
    )
    print(table(results))
    print(json.dumps(results))


if __name__ == "__main__":
    main()

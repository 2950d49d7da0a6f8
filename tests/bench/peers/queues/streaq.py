"""
streaq: streams and Lua through coredis.
"""

import itertools
from typing import Any

from streaq import Worker

from tests.bench.peers import script

CHUNK = 500


def worker_for(
    url: str, tally: script.Tally | None = None, results: bool = False
) -> tuple["Worker[Any]", Any]:
    """
    The worker and its one task.
    """
    worker: Worker[Any] = Worker(redis_url=url, queue_name="peer", concurrency=16)

    @worker.task(name="noop", ttl=60 if results else 0)
    async def noop(body: str) -> None:
        if tally:
            tally.took(body)

    return worker, noop


async def fill(url: str, count: int) -> None:
    """
    Queue in bulk.
    """
    worker, noop = worker_for(url)
    waiting = script.bodies(count)
    async with worker:
        while chunk := list(itertools.islice(waiting, CHUNK)):
            await worker.enqueue_many([noop.enqueue(body) for body in chunk])


async def work(url: str, tally: script.Tally, results: bool) -> None:
    """
    Work until ended.
    """
    worker, _ = worker_for(url, tally, results)
    await worker.run_async()


async def ask(url: str, count: int) -> list[float]:
    """
    Wait for each result.
    """
    worker, noop = worker_for(url, results=True)

    async def one(body: str) -> None:
        job = await noop.enqueue(body)
        await job.result(10)

    async with worker:
        return await script.in_turns(one, count)


if __name__ == "__main__":
    script.run(fill, work, ask)

"""
dramatiq: its worker with threads, without its command's second process.
"""

import asyncio
import os

# Read when dramatiq is imported; the default of two a thread is slower.
os.environ.setdefault("dramatiq_queue_prefetch", "1000")

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from tests.bench.peers import script

THREADS = 8
ASK_MS = 10_000


def actor_for(
    url: str, tally: script.Tally | None, results: bool
) -> "dramatiq.Actor[..., None]":
    """
    The one actor on a broker of its own.
    """
    broker = RedisBroker(url=url)
    if results:
        broker.add_middleware(Results(backend=RedisBackend(url=url)))
    options = {"store_results": True} if results else {}
    dramatiq.set_broker(broker)

    @dramatiq.actor(broker=broker, **options)
    def noop(body: str) -> None:
        if tally:
            tally.took(body)

    return noop


async def fill(url: str, count: int) -> None:
    """
    Queue one by one: there is neither a bulk call nor an asynchronous one.
    """
    noop = actor_for(url, None, results=False)
    for body in script.bodies(count):
        noop.send(body)


async def work(url: str, tally: script.Tally, results: bool) -> None:
    """
    Work until ended.
    """
    broker = actor_for(url, tally, results).broker
    worker = dramatiq.Worker(broker, worker_threads=THREADS)
    worker.start()
    await asyncio.Event().wait()


async def ask(url: str, count: int) -> list[float]:
    """
    Wait for each result.
    """
    noop = actor_for(url, None, results=True)

    async def one(body: str) -> None:
        noop.send(body).get_result(block=True, timeout=ASK_MS)

    return await script.in_turns(one, count)


if __name__ == "__main__":
    script.run(fill, work, ask)

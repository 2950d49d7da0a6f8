"""
saq: lists, moved with BLMOVE.
"""

from typing import Any

from saq import Queue, Worker

from tests.bench.peers import script

AT_ONCE = 100
# How often an ask looks beside being notified; the default is 0.5 s.
POLL_S = 0.001


async def fill(url: str, count: int) -> None:
    """
    Queue, 50 at once.
    """
    queue = Queue.from_url(url, name="peer", max_concurrent_ops=50)
    await queue.connect()
    await script.at_once(lambda body: queue.enqueue("noop", body=body, ttl=-1), count)
    await queue.disconnect()


async def work(url: str, tally: script.Tally, results: bool) -> None:
    """
    Work until ended; a job of ttl -1 leaves no result.
    """

    async def noop(_: Any, *, body: str) -> None:
        tally.took(body)

    queue = Queue.from_url(url, name="peer", max_concurrent_ops=AT_ONCE)
    await queue.connect()
    await Worker(queue, [("noop", noop)], concurrency=AT_ONCE).start()


async def ask(url: str, count: int) -> list[float]:
    """
    Wait for each result.
    """
    queue = Queue.from_url(url, name="peer")
    await queue.connect()
    took = await script.in_turns(
        lambda body: queue.apply("noop", timeout=10, poll_interval=POLL_S, body=body),
        count,
    )
    await queue.disconnect()
    return took


if __name__ == "__main__":
    script.run(fill, work, ask)

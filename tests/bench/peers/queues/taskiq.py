"""
taskiq with its stream broker.
"""

from taskiq import AsyncTaskiqDecoratedTask
from taskiq.api import run_receiver_task
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from tests.bench.peers import script

AT_ONCE = 500
# The result is polled for; the default of 0.2 s would be all that is measured.
POLL_S = 0.001


def task_for(
    url: str, tally: script.Tally | None, results: bool
) -> "AsyncTaskiqDecoratedTask[[str], None]":
    """
    The one task on a broker of its own.
    """
    broker = RedisStreamBroker(
        url, queue_name="peer", consumer_id="0", xread_count=AT_ONCE
    )
    if results:
        broker = broker.with_result_backend(RedisAsyncResultBackend(url))

    @broker.task(task_name="noop")
    async def noop(body: str) -> None:
        if tally:
            tally.took(body)

    return noop


async def fill(url: str, count: int) -> None:
    """
    Queue, 50 at once.
    """
    noop = task_for(url, None, results=False)
    await noop.broker.startup()
    await script.at_once(noop.kiq, count)
    await noop.broker.shutdown()


async def work(url: str, tally: script.Tally, results: bool) -> None:
    """
    Work until ended.
    """
    broker = task_for(url, tally, results).broker
    await run_receiver_task(
        broker, max_async_tasks=AT_ONCE, max_prefetch=AT_ONCE, run_startup=True
    )


async def ask(url: str, count: int) -> list[float]:
    """
    Wait for each result.
    """
    noop = task_for(url, None, results=True)
    await noop.broker.startup()

    async def one(body: str) -> None:
        sent = await noop.kiq(body)
        await sent.wait_result(check_interval=POLL_S, timeout=10)

    took = await script.in_turns(one, count)
    await noop.broker.shutdown()
    return took


if __name__ == "__main__":
    script.run(fill, work, ask)

"""
arq: a sorted set that is polled.
"""

from typing import Any

from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker, func

from tests.bench.peers import script

AT_ONCE = 500
READ = 1_000
# How often it looks when nothing waits; the default of 0.5 s would be all of an ask.
POLL_S = 0.001


async def fill(url: str, count: int) -> None:
    """
    Queue, 50 at once.
    """
    pool = await create_pool(RedisSettings.from_dsn(url))
    await script.at_once(lambda body: pool.enqueue_job("noop", body), count)
    await pool.aclose()


async def work(url: str, tally: script.Tally, results: bool) -> None:
    """
    Work until ended.
    """

    async def noop(_: Any, body: str) -> None:
        tally.took(body)

    worker = Worker(
        [func(noop, name="noop")],
        redis_settings=RedisSettings.from_dsn(url),
        max_jobs=AT_ONCE,
        queue_read_limit=READ,
        poll_delay=POLL_S if results else 0.5,
        keep_result=60 if results else 0,
        log_results=False,
    )
    await worker.async_run()


async def ask(url: str, count: int) -> list[float]:
    """
    Wait for each result.
    """
    pool = await create_pool(RedisSettings.from_dsn(url))

    async def one(body: str) -> None:
        job = await pool.enqueue_job("noop", body)
        await job.result(timeout=10, poll_delay=POLL_S)

    took = await script.in_turns(one, count)
    await pool.aclose()
    return took


if __name__ == "__main__":
    script.run(fill, work, ask)

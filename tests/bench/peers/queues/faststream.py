"""
faststream on a stream with a group: one message a call, each acknowledged.
"""

import asyncio
from typing import Any

from faststream.redis import RedisBroker, StreamSub

from tests.bench.peers import script

STREAM, GROUP = "peer", "workers"
READ = 500


def subscription(**options: Any) -> StreamSub[Any]:
    """
    What the worker reads, from the stream's beginning.
    """
    return StreamSub(
        STREAM, group=GROUP, consumer="one", last_id="0", max_records=READ, **options
    )


async def fill(url: str, count: int) -> None:
    """
    Publish, 50 at once.
    """
    async with RedisBroker(url, logger=None) as broker:
        await script.at_once(lambda body: broker.publish(body, stream=STREAM), count)


async def work(url: str, tally: script.Tally, results: bool) -> None:
    """
    Work until ended.
    """
    broker = RedisBroker(url, logger=None)

    @broker.subscriber(stream=subscription())
    async def noop(body: str) -> str:
        tally.took(body)
        return "ok"

    await broker.start()
    await asyncio.Event().wait()


async def ask(url: str, count: int) -> list[float]:
    """
    Wait for each reply.
    """
    async with RedisBroker(url, logger=None) as broker:
        return await script.in_turns(
            lambda body: broker.request(body, stream=STREAM, timeout=10), count
        )


if __name__ == "__main__":
    script.run(fill, work, ask)

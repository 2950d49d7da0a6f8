"""
faststream on a stream with a group: a list of messages a call, acknowledged at once.

It does nothing per message but parse it, so it is no peer of a commit per command;
it tells what the reading costs.
"""

import asyncio

from faststream.redis import RedisBroker

from tests.bench.peers import script
from tests.bench.peers.queues.faststream import ask, fill, subscription


async def work(url: str, tally: script.Tally, results: bool) -> None:
    """
    Work until ended.
    """
    broker = RedisBroker(url, logger=None)

    @broker.subscriber(stream=subscription(batch=True))
    async def noop(bodies: list[str]) -> None:
        for body in bodies:
            tally.took(body)

    await broker.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    script.run(fill, work, ask)

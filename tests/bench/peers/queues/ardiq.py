"""
ardiq: its core in Rust reads and acknowledges, and keeps each result.
"""

import itertools

from ardiq import Ardiq

from tests.bench.peers import script

CHUNK = 1_000
ASK_S = 10.0


def app_for(url: str, tally: script.Tally | None = None) -> Ardiq:
    """
    The app with its one task.
    """
    app = Ardiq(redis_url=url, queue_name="peer", concurrency=100)

    @app.task(name="noop")
    async def noop(body: str) -> None:
        if tally:
            tally.took(body)

    return app


async def fill(url: str, count: int) -> None:
    """
    Queue in bulk.
    """
    app = app_for(url)
    noop = app.ref("noop")
    waiting = script.bodies(count)
    while chunk := list(itertools.islice(waiting, CHUNK)):
        await app.enqueue_many([noop.prepare(body) for body in chunk])


async def work(url: str, tally: script.Tally, results: bool) -> None:
    """
    Work until ended; results are always kept.
    """
    await app_for(url, tally).run()


async def ask(url: str, count: int) -> list[float]:
    """
    Wait for each result.
    """
    app = app_for(url)

    async def one(body: str) -> None:
        job = await app.send("noop", body)
        await job.result(timeout=ASK_S)

    return await script.in_turns(one, count)


if __name__ == "__main__":
    script.run(fill, work, ask)

"""
What encryption at rest costs: `python -m tests.bench.sealed [--pairs N] [--count N]`.

Two buses with a manager each, one of which seals; their arms take turns in one run.
Each update changes the context summary, so that the hash field and the outbox record
are sealed. The archiver, which opens the records and seals MongoDB's documents, is no
part of this.
"""

import argparse
import base64
from contextlib import AsyncExitStack

import uvloop

from tests.bench import goals, rig
from tests.bench.arms import Arms
from tests.bench.spine import BACKLOG, WITH_REPLY, WORKER

KEK = "bench:" + base64.b64encode(b"k" * 32).decode()
SEALED = "sealed, "
RATIOS = {
    f"sealed : plain, {name}": goals.Ratio(SEALED + name, name, higher=higher)
    for name, higher in (
        (BACKLOG, True),
        (WITH_REPLY, True),
        (f"backlog, {WORKER}", False),
    )
}
GOALS = (goals.Goal(f"sealed : plain, {BACKLOG}", 0.9),)


async def measure(pairs: int, count: int) -> goals.Figures:
    """
    The figures of both, by name.
    """
    figures: dict[str, list[float]] = {}
    async with AsyncExitStack() as stack:
        plain = await stack.enter_async_context(rig.station())
        seal = {"EVERBUS_SEALING_KEK": KEK}
        sealed = await stack.enter_async_context(rig.station(settings=seal))
        arms = [Arms(plain, figures), Arms(sealed, figures, SEALED)]
        for one in arms:
            await one.open()
            stack.push_async_callback(one.close)
            await one.backlog(count)
        figures.clear()
        for n in range(pairs):
            for one in arms[:: 1 if n % 2 else -1]:
                await one.backlog(count)
                await one.with_reply(count // 2)
        for one in arms:
            await one.check()
    return figures


def main() -> None:
    """
    Measure, and print the tables.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="passes of both")
    parser.add_argument("--count", type=int, default=20_000, help="commands a pass")
    arguments = parser.parse_args()
    figures = uvloop.run(measure(arguments.pairs, arguments.count))
    found = goals.ratios(figures, RATIOS)
    print(goals.table(figures), goals.table(found), sep="\n\n")
    print(goals.verdicts({**figures, **found}, GOALS))


if __name__ == "__main__":
    main()

"""
What a peer's script has in common, with nothing but the standard library.

`fill URL N` queues N messages of 300 bytes, `work URL N` is the one worker, `answer
URL N` is the worker that keeps results, and `ask URL N` waits for N of them, one in
flight. Each tells what it found in lines of JSON on its standard output, so counting
asks nothing of the server and two writes of the worker: at its first message and at
its last. Scripts run under the peers' own Python, which need not have everbus.
"""

import argparse
import asyncio
import itertools
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

MESSAGE_BYTES = 300
DIGITS = 8
TAIL = "x" * (MESSAGE_BYTES - DIGITS)
# Asks before those that count: the worker may still be starting.
WARMING = 20

Fill = Callable[[str, int], Awaitable[None]]
Work = Callable[[str, "Tally", bool], Awaitable[None]]
Ask = Callable[[str, int], Awaitable[list[float]]]


def tell(**found: Any) -> None:
    """
    One line of JSON for the benchmark.
    """
    print(json.dumps(found), flush=True)


def bodies(count: int) -> Iterator[str]:
    """
    Messages of MESSAGE_BYTES that begin with their number.
    """
    return (f"{number:0{DIGITS}d}{TAIL}" for number in range(count))


class Tally:
    """
    Counts messages in the worker's own memory, from several threads if need be.

    A message that comes again is counted apart: peers deliver at least once.
    """

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._seen = bytearray(expected)
        self._count = itertools.count(1)
        self._repeated = 0

    def took(self, body: str) -> None:
        """
        Count one message; the whole work of every no-op handler.
        """
        number = int(body[:DIGITS])
        if self._seen[number]:
            self._repeated += 1
            return
        self._seen[number] = 1
        handled = next(self._count)
        if handled == 1 or handled == self._expected:
            at = time.monotonic()
            tell(at=at, handled=sum(self._seen), repeated=self._repeated)


async def in_turns(
    ask: Callable[[str], Awaitable[object]], count: int, warming: int = WARMING
) -> list[float]:
    """
    The seconds that each of *count* asks took, one in flight.
    """
    took: list[float] = []
    for body in bodies(count + warming):
        began = time.perf_counter()
        await ask(body)
        took.append(time.perf_counter() - began)
    return took[warming:]


async def at_once(
    put: Callable[[str], Awaitable[object]], count: int, lanes: int = 50
) -> None:
    """
    Queue *count* messages, so many at once, for a peer that has no bulk call.
    """
    waiting = bodies(count)

    async def lane() -> None:
        for body in waiting:
            await put(body)

    await asyncio.gather(*(lane() for _ in range(lanes)))


def run(fill: Fill, work: Work, ask: Ask) -> None:
    """
    Do what the command line says.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=("fill", "work", "answer", "ask"))
    parser.add_argument("url")
    parser.add_argument("count", type=int)
    given = parser.parse_args()
    logging.disable(logging.WARNING)

    async def main() -> None:
        began = time.monotonic()
        if given.verb == "fill":
            await fill(given.url, given.count)
            tell(took_s=time.monotonic() - began)
        elif given.verb == "ask":
            tell(asked_s=await ask(given.url, given.count))
        else:
            expected = given.count + WARMING * (given.verb == "answer")
            await work(given.url, Tally(expected), given.verb == "answer")

    loop()(main())


def loop() -> Callable[[Any], Any]:
    """
    What runs a coroutine: uvloop where it is installed.
    """
    try:
        import uvloop
    except ImportError:
        return asyncio.run
    run: Callable[[Any], Any] = uvloop.run
    return run

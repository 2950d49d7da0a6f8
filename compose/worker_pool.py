"""
A worker pool: many items, so many workers at once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def each(
    work: Callable[[T], Awaitable[None]], items: Iterable[T], at_once: int
) -> None:
    """
    Do *work* on each of *items*, *at_once* at a time; the first error ends it.
    """
    left = iter(items)

    async def worker() -> None:
        for item in left:
            await work(item)

    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(at_once):
                workers.create_task(worker())
    except BaseExceptionGroup as group:
        # The group is an implementation detail; the caller wants the error.
        raise group.exceptions[0] from None

"""
Many things done by a few hands.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def each(
    work: Callable[[T], Awaitable[None]], items: Iterable[T], at_once: int
) -> None:
    """
    Do *work* on each of *items*, *at_once* of them; the first error ends it.
    """
    left = iter(items)

    async def hand() -> None:
        for item in left:
            await work(item)

    try:
        async with asyncio.TaskGroup() as hands:
            for _ in range(at_once):
                hands.create_task(hand())
    except BaseExceptionGroup as group:
        # The group is how we work, no affair of the caller's.
        raise group.exceptions[0] from None

"""
Waiting for an event, with a deadline.
"""

import asyncio

import pytest

from everbus.bus.waits import set_within


async def test_an_event_that_is_set_is_not_waited_for():
    event = asyncio.Event()
    event.set()

    assert await set_within(event, 0.0)


async def test_an_event_that_is_set_in_time_ends_the_wait():
    event = asyncio.Event()
    asyncio.get_running_loop().call_soon(event.set)

    assert await set_within(event, 60.0)


@pytest.mark.parametrize("seconds", [0.001, 0.0, -1.0])
async def test_a_deadline_that_passes_says_so(seconds):
    assert not await set_within(asyncio.Event(), seconds)


async def test_without_a_deadline_only_the_event_ends_the_wait():
    event = asyncio.Event()
    waiting = asyncio.create_task(set_within(event, None))
    await asyncio.sleep(0)
    assert not waiting.done()

    event.set()

    assert await waiting


async def test_a_cancelled_wait_is_cancelled():
    """
    A deadline of its own must not swallow the cancellation of its task.
    """
    waiting = asyncio.create_task(set_within(asyncio.Event(), 60.0))
    await asyncio.sleep(0)

    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting

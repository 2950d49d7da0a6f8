"""
Waiting for an event, with a deadline.
"""

import asyncio


async def set_within(event: asyncio.Event, seconds: float | None) -> bool:
    """
    Wait until *event* is set, for at most *seconds*; return whether it is set.

    Args:
        seconds: None waits without a deadline.
    """
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False

    return True

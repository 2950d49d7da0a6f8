"""
Waiting that ends early when the process is told to stop.
"""

import asyncio


async def pause(stop: asyncio.Event, seconds: float) -> bool:
    """
    Wait *seconds*, or until *stop* is set; whether it is.
    """
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return False
    return True

"""
What a replica holds of the lower tiers' answers is bounded over all lanes.
"""

import asyncio

from everbus.bus.errors import Unavailable
from everbus.gateway.lane.fetch_budget import FetchBudget, bytes_of
from everbus.handlers.timeline_pages import page_of


async def test_a_read_waits_until_others_are_committed():
    budget = FetchBudget(most_bytes=20, page_bytes=10)
    await budget.take()
    await budget.take()
    third = asyncio.create_task(budget.take())
    await asyncio.sleep(0)
    # The second answer came and took less than a page, which is not enough room.
    budget.give(7)
    await asyncio.sleep(0)
    assert not third.done()

    budget.give(10)

    await third


async def test_a_single_read_always_fits():
    await FetchBudget(most_bytes=1, page_bytes=10).take()


def test_an_answer_counts_as_its_reply_has_it():
    assert bytes_of(page_of((b"\xa3abc", b"\x01"), None)) == 5
    assert bytes_of({"a": 1}) == 4
    assert bytes_of(Unavailable("MongoDB is away")) == 0

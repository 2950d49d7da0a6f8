"""
Pages of timeline entries from MongoDB: small first batches, nothing missing or twice.
"""

from datetime import UTC, datetime

import pytest

from everbus.gateway.store.mongo import warm
from everbus.gateway.store.mongo.warm import FIRST_BATCH, MongoWarm
from everbus.gateway.store.read_bound import ReadBound

GENERATION = datetime(2026, 1, 1, tzinfo=UTC)


class CountingMongo:
    """
    Entries 1 to 100 of one size, found as MongoDB would.
    """

    def __init__(self):
        self.asked = []

    async def find(self, _, where, *, sort, limit=0, goes_on=None, batch_size=0):
        self.asked.append(batch_size or limit)
        [(_, step)] = sort
        seqs = [
            n
            for n in range(1, 101)
            if where["seq"]["$gte"] <= n <= where["seq"]["$lte"]
        ][::step]
        for n in seqs[:limit] if limit else seqs:
            if not goes_on({"seq": n}):
                break
        return []


@pytest.fixture
def tier(monkeypatch):
    monkeypatch.setattr(warm, "packed_entry", lambda one: b"%1000d" % one["seq"])
    tier = object.__new__(MongoWarm)
    tier._mongo = CountingMongo()
    return tier


async def page(tier, most_bytes, *, newest_first=False, first=1, last=100):
    bound = ReadBound(most_bytes, newest_first=newest_first)
    found = await tier.entries("s", GENERATION, first, last, bound)
    return [int(one) for one in found]


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("count", [3, FIRST_BATCH, FIRST_BATCH + 1, 50, 200])
async def test_a_page_has_each_entry_once_and_in_order(tier, count, newest_first):
    found = await page(tier, 1000 * count, newest_first=newest_first)

    taken = min(count, 100)
    expected = range(101 - taken, 101) if newest_first else range(1, taken + 1)
    assert found == [*expected]


async def test_mongodb_sends_no_more_at_once_than_may_fit(tier):
    await page(tier, 50_000)

    assert tier._mongo.asked == [FIRST_BATCH, 50]

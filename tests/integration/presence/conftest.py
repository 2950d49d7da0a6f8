"""
What the tests of the leases begin with.
"""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.integration.conftest import Bus
from tests.integration.presence.leases import LeaseBook, a_book, hurry


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Several passes and sweeps in the time of one, where timing is not the point.
    """
    hurry(monkeypatch)


@pytest_asyncio.fixture(loop_scope="module")
async def book(bus: Bus) -> AsyncIterator[LeaseBook]:
    """
    An empty bus that tells of expired keys, and that somebody has just swept.
    """
    async with a_book(bus) as made:
        yield made

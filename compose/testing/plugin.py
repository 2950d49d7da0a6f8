"""
The pytest plugin: a bus in memory, a MAD on it, and a stack of real servers.

pytest loads it wherever everbus is installed, so nothing is imported before a fixture
is asked for.
"""

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from everbus.bus import Mad
    from everbus.testing import RealBus, TestBus

MAD = "tested_mad"


@pytest.fixture
def everbus_bus() -> "Iterator[TestBus]":
    """
    A whole bus in memory, new for each test.
    """
    from everbus.testing import TestBus

    with TestBus() as bus:
        yield bus


async def _connected_mad(everbus_bus: "TestBus") -> "AsyncIterator[Mad]":
    """
    A MAD on `everbus_bus`, by the name `tested_mad`.
    """
    async with everbus_bus.connect(mad=MAD) as mad:
        yield mad


@pytest.fixture(scope="session")
def everbus_stack(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[RealBus]":
    """
    The real servers and processes of `everbus dev`, one set for all tests.
    """
    from everbus.testing import RealBus

    with RealBus(tmp_path_factory.mktemp("everbus")) as bus:
        yield bus


def _async_fixture() -> Any:  # the decorators of both kinds are typed differently
    try:
        import pytest_asyncio
    except ModuleNotFoundError:
        # Another plugin, as anyio's, runs async fixtures that are plain ones.
        return pytest.fixture
    return pytest_asyncio.fixture


everbus_mad = _async_fixture()(name="everbus_mad")(_connected_mad)

"""
An old store, and a bus in memory.
"""

import pytest

from everbus.testing import TestBus
from tests.unit.migration.old_store import OldSqlite, a_mapping_file


@pytest.fixture
def old(tmp_path):
    store = OldSqlite(tmp_path)
    yield store
    store.close()


@pytest.fixture
def mapping_file(tmp_path, old):
    return a_mapping_file(tmp_path)


@pytest.fixture(scope="package")
def bus():
    with TestBus() as running:
        yield running


@pytest.fixture
async def mad(bus):
    async with bus.connect(mad="fiedler", role="admin", lease=False) as connected:
        yield connected

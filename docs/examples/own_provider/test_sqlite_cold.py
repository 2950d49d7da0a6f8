"""
The provider keeps the contract, and a bus archives into it and reads from it.
"""

import sqlite3
from contextlib import closing

import pytest
from sqlite_cold import SqliteCold

from everbus.bus.errors import Unavailable
from everbus.compose.testing.contracts.cold import CHECKS
from everbus.testing import TestBus

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_the_provider_keeps_the_contract(check, tmp_path):
    await check(lambda: SqliteCold(tmp_path / "cold.db"))


async def test_a_file_that_cannot_be_used_is_unavailable(tmp_path):
    tier = SqliteCold(tmp_path / "cold.db")
    (tmp_path / "cold.db").unlink()
    (tmp_path / "cold.db").mkdir()

    with pytest.raises(Unavailable, match=r"cold\.db"):
        await tier.put("k", b"v")


async def test_a_session_is_archived_in_the_file_and_comes_back(tmp_path, monkeypatch):
    monkeypatch.setenv("SQLITE_COLD", str(tmp_path / "cold.db"))
    settings = {"EVERBUS_COLD_STORE": "sqlite_cold:SqliteCold"}

    async with TestBus(settings=settings) as bus, bus.connect(mad="ada") as ada:
        session = await ada.create_session("ada")
        await ada.append_and_wait(session.id, {"text": "hi"})
        await ada.suspend_session(session.id)
        bus.archive()
        stored = keys_in(tmp_path / "cold.db")
        page = await ada.timeline(session.id)

    assert [key for key in stored if session.id in key]
    assert [one.entry for one in page.entries] == [{"text": "hi"}]


def keys_in(path):
    with closing(sqlite3.connect(path)) as file:
        return [key for (key,) in file.execute("SELECT key FROM objects")]

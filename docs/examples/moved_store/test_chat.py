"""
The whole way, from a store of one's own to its end, on a bus in memory.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chat import Chats, OldChats

from everbus.migration import DualStore

HERE = Path(__file__).parent
WITHIN_S = 30


@pytest.fixture
def folder(tmp_path, monkeypatch):
    shutil.copy(HERE / "migrate.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def old(folder):
    chats = OldChats()
    yield chats
    chats.close()


@pytest.fixture
def migrate(everbus_bus, folder):
    """
    `everbus migrate …` as an operator runs it, with the key of tokens.
    """
    environment = {
        **os.environ,
        "EVERBUS_REDIS_URL": everbus_bus.url,
        "EVERBUS_JWT_SECRET": everbus_bus.secret,
        "EVERBUS_DEVELOPMENT": "true",
    }

    def run(*arguments):
        ran = subprocess.run(
            [sys.executable, "-m", "everbus", "migrate", *arguments, "-o", "json"],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=False,
        )
        assert ran.stdout, ran.stderr
        return ran.returncode, json.loads(ran.stdout)

    return run


@pytest.mark.asyncio
async def test_a_mad_moves_out_of_its_store(everbus_bus, folder, old, migrate):
    old.open("tides", "ada")
    for n in range(3):
        await old.write("tides", {"role": "user", "body": f"{n}", "created": 1e9})

    assert migrate("backfill", "migrate.toml", "--dry-run")[1]["entries"] == 3
    assert migrate("backfill", "migrate.toml")[1]["appended"] == 3
    assert migrate("backfill", "migrate.toml")[1]["appended"] == 0

    async with (
        everbus_bus.connect(mad="fiedler") as mad,
        DualStore("migrate.toml", mad, old.write, cutover="cutover.json") as store,
    ):
        chats = Chats(old, mad, store)
        await chats.say("tides", "ada", "both have it")

    code, compared = migrate("compare", "migrate.toml")
    assert (code, compared["entries"], compared["counts"]) == (0, 4, {})

    code, plan = migrate("cutover", "cutover.json", "--percent", "100", "--ahead", "5")
    assert (code, plan["next"]["percent"]) == (0, 100)
    passed_s = time.time() - 60
    plan["at_s"] = passed_s
    (folder / "cutover.json").write_text(json.dumps(plan))

    async with (
        everbus_bus.connect(mad="fiedler") as mad,
        DualStore("migrate.toml", mad, old.write, cutover="cutover.json") as store,
    ):
        chats = Chats(old, mad, store)
        await chats.say("tides", "ada", "everbus leads")
        everything = [("user", text) for text in ("0", "1", "2", "both have it")]
        everything.append(("user", "everbus leads"))
        assert await chats.read("tides", "ada") == everything

    assert old.read("tides") == everything
    arguments = ("migrate.toml", "--cutover", "cutover.json")
    code, early = migrate("report", *arguments)
    assert (code, early["ready"]) == (1, False)
    assert early["reasons"] == ["the old store was written to within 7 days"]
    assert migrate("report", *arguments, "--quiet-days", "0")[1]["ready"]

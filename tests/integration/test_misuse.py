"""
A connection that is never closed, whose token ends, or that cannot be made at all.
"""

import asyncio
import os
import sys
import traceback

import pytest

from everbus.bus import EverbusError, Unauthenticated, connect
from tests.integration.conftest import a_token, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
served = pytest.mark.usefixtures("manager")

NEVER_LEFT = {
    "a blocking connection": """
from everbus.bus import sync
connection = sync.connect(mad="ada")
mad = connection.__enter__()
for n in range(300):
    mad.append("SESSION", n)
""",
    "a notebook, whose loop has stopped": """
import asyncio
from everbus import connect
loop = asyncio.new_event_loop()
connection = connect(mad="ada")
mad = loop.run_until_complete(connection.__aenter__())
async def cell():
    for n in range(300):
        mad.append("SESSION", n)
loop.run_until_complete(cell())
""",
    "a main function that returns in the block": """
import asyncio
from everbus import connect
kept = []
async def main():
    kept.append(connect(mad="ada"))
    mad = await kept[0].__aenter__()
    for n in range(300):
        mad.append("SESSION", n)
asyncio.run(main())
""",
}


@served
@pytest.mark.parametrize("program", NEVER_LEFT.values(), ids=NEVER_LEFT)
async def test_what_was_appended_is_sent_at_the_end_of_the_interpreter(
    mad, bus, program
):
    """
    In order and once, whether the loop of the connection still runs or not.
    """
    async with mad("ada") as ada:
        session = await ada.create_session("ada")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program.replace("SESSION", session.id)),
            env=os.environ
            | {"EVERBUS_REDIS_URL": bus.url, "EVERBUS_TOKEN": a_token("ada")},
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert await process.wait() == 0

        async def all_there() -> bool:
            return (await ada.get_session(session.id)).last_seq == 300

        await until(all_there, "every entry is applied", 5)
        found = await ada.get_session(session.id)

    assert [one.entry for one in found.recent_timeline] == list(range(280, 300))


@served
async def test_an_append_after_the_end_of_a_fixed_token_is_refused_at_once(bus):
    token = a_token("ada", ttl_s=1.5)
    taken = 0
    async with connect(bus.url, mad="ada", token=token) as ada:
        session = await ada.create_session("ada")
        refused = None
        while refused is None:
            try:
                ada.append(session.id, taken)
                await ada.flush()
                taken += 1
            except Unauthenticated as error:
                refused = error
        assert "has ended" in refused.message
        with pytest.raises(Unauthenticated, match="has ended"):
            await ada.get_session(session.id)
    async with connect(bus.url, mad="ada", token=a_token("ada")) as reader:
        found = await reader.get_session(session.id)

    assert found.last_seq == taken


@pytest.mark.parametrize(
    "given",
    [
        {"url": "redis://127.0.0.1:1", "token": "t"},
        {"url": "redis://127.0.0.1:1", "token": ""},
    ],
)
async def test_without_a_bus_one_line_says_what_to_set_and_to_start(given):
    with pytest.raises(EverbusError) as refused:
        async with connect(**given, mad="ada", timeout=0.2):
            pass

    shown = "".join(traceback.format_exception(refused.value))
    assert shown.count("Traceback") == 1
    for word in ("EVERBUS_REDIS_URL", "EVERBUS_TOKEN", "everbus dev"):
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)

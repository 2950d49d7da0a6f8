"""
The source files that one hot update enters, from the SDK's call to its reply.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from everbus.bus import connect
from tests.integration.conftest import a_token

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOUSE = Path(__file__).parent.parent.parent
ROOMS = ("bus", "handlers", "gateway", "archiver", "compose")
# It only falls: a reader of the code follows one update through these files.
CEILING = 27


@contextmanager
def files_entered() -> Iterator[set[str]]:
    """
    The product's files in which a function is called, as long as the block runs.
    """
    found: set[str] = set()

    def note(frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call":
            found.add(frame.f_code.co_filename)

    entered: set[str] = set()
    sys.setprofile(note)
    try:
        yield entered
    finally:
        sys.setprofile(None)
        paths = {Path(name).resolve() for name in found if name.endswith(".py")}
        inside = [path for path in paths if path.is_relative_to(HOUSE)]
        names = [path.relative_to(HOUSE) for path in inside]
        entered |= {str(name) for name in names if name.parts[0] in ROOMS}


async def ways_of_updates(bus, updates: int) -> list[set[str]]:
    """
    The files that each of some updates enters, of a session that is hot.
    """
    ways = []
    async with connect(bus.url, mad="ann", token=a_token("ann")) as ann:
        session = await ann.create_session(user_id="u1")
        for n in range(updates):
            with files_entered() as entered:
                await ann.update_session(session.id, {"tags": [str(n)]})
            ways.append(entered)
    return ways


async def test_one_hot_update_enters_few_files(bus, manager):
    """
    The way of a command stays short; the shortest counts, since a heartbeat or a
    replica's tick may fall into any of them.
    """
    shortest = min(await ways_of_updates(bus, 10), key=len)

    assert {"bus/session_calls.py", "gateway/lane/decision.py"} <= shortest
    assert len(shortest) <= CEILING, "\n".join(sorted(shortest))


async def test_the_count_names_a_file_that_is_entered():
    with files_entered() as entered:
        pytest.importorskip("everbus.bus.keys").wake("ann", "1")

    assert entered == {"bus/keys.py"}

"""
A client outside its process, event loop or block: every call is refused at once.
"""

import asyncio
import inspect
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from everbus.bus.client import Mad
from everbus.bus.connection import connect
from everbus.bus.errors import Defect, EverbusError, Invalid, Unavailable
from everbus.bus.requests import ClientAffinity, Requests
from everbus.bus.spool import Spool
from tests.unit.fake_bus import FakeBus, a_publisher_on

# Of every call that sends something: the arguments that it needs.
NEEDED = {
    "session_id": "s1",
    "user_id": "ada",
    "entry": 1,
    "message": 1,
    "patch": {},
    "mad": "ann",
    "version": 1,
    "from_version": 1,
    "to_version": 2,
    "checkpoint_id": "c",
    "command_id": "i.0.1",
    # Of a checkpoint, and of a command of any kind.
    "kind": "full",
}
CALLS = sorted(
    name
    for name, kind in inspect.getmembers(Mad, inspect.isfunction)
    if not name.startswith("_") and name != "acting"
)


def a_mad(affinity):
    publisher = a_publisher_on(FakeBus())
    requests = Requests(publisher, None, 4, affinity=affinity)  # type: ignore[arg-type]

    return Mad("fiedler", requests, instance="i", address="redis://u:secret@bus:1/0")


async def called(mad, name):
    method = getattr(mad, name)
    wanted = inspect.signature(method).parameters
    result = method(**{key: NEEDED[key] for key in wanted if key in NEEDED})

    return await result if inspect.iscoroutine(result) else result


async def code_of(mad, name):
    with pytest.raises(EverbusError) as refused:
        await called(mad, name)
    return refused.value


@pytest.mark.parametrize("name", CALLS)
async def test_every_call_after_the_block_is_refused_at_once(name):
    affinity = ClientAffinity()
    mad = a_mad(affinity)
    affinity.end()

    refused = await code_of(mad, name)

    assert isinstance(refused, Unavailable)
    assert "connect() anew" in refused.message
    assert mad.waiting == 0


async def test_a_connection_is_entered_once():
    connected = connect("redis://127.0.0.1:1", mad="ann", token="t", timeout=1)

    with pytest.raises(Unavailable):
        await connected.__aenter__()
    with pytest.raises(Invalid, match="call connect\\(\\) for each"):
        await connected.__aenter__()


@pytest.mark.parametrize(
    "spool",
    ["a\0b", Path("a\0b"), "\ud800", "a" * 100_000, 5, b"x"],
    ids=lambda one: ascii(one)[:20],
)
def test_what_is_no_path_of_a_spool_is_invalid(spool):
    with pytest.raises(Invalid, match="spool") as refused:
        connect("redis://127.0.0.1:1", mad="ann", token="t", spool=spool)

    assert len(refused.value.message) < 300


@pytest.mark.parametrize("name", CALLS)
async def test_every_call_from_another_event_loop_is_refused_at_once(name):
    mad = a_mad(ClientAffinity())

    refused = await asyncio.to_thread(asyncio.run, code_of(mad, name))

    assert isinstance(refused, Invalid)
    assert "everbus.bus.sync" in refused.message
    assert mad.waiting == 0


async def test_a_thread_without_a_loop_cannot_queue_anything():
    mad = a_mad(ClientAffinity())

    with pytest.raises(Invalid, match=r"everbus\.bus\.sync"):
        await asyncio.to_thread(mad.append, "s1", 1)

    assert mad.waiting == 0


async def test_the_reason_why_a_client_ended_is_what_every_call_says():
    affinity = ClientAffinity()
    affinity.end(Defect("the client broke"))
    affinity.end()

    for _ in range(2):
        with pytest.raises(Defect, match="the client broke") as refused:
            affinity.check()
        # Raised anew each time: one shared error would gather tracebacks for ever.
        assert len(refused.traceback) == 2


def in_a_forked_child(function):
    """
    What *function* returns in a forked child.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = function()
        except BaseException as error:  # noqa: BLE001 - the child says all to its parent
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading, "rb") as pipe:
        return pipe.read().decode()


async def test_a_forked_child_is_refused():
    mad = a_mad(ClientAffinity())

    said = in_a_forked_child(lambda: mad.append("s1", 1))

    assert said.startswith("Unavailable: ")
    assert "connect() anew" in said


def test_a_forked_child_never_touches_the_file_of_the_parents_spool(tmp_path):
    """
    SQLite's locks do not pass to it: a write, or the close at the end of its
    interpreter, would take the log of its parent away.
    """
    path = tmp_path / "spool.db"
    with closing(Spool.open(path, "fiedler")) as spool:
        spool.add(0, b"one", attempted=False)
        before = {one.name: one.stat().st_mtime_ns for one in tmp_path.iterdir()}

        def in_child():
            try:
                spool.add(0, b"two", attempted=False)
            finally:
                spool.close()
            return "stored"

        said = in_a_forked_child(in_child)

        after = {one.name: one.stat().st_mtime_ns for one in tmp_path.iterdir()}
        assert said.startswith("Unavailable: ")
        assert after == before
        spool.add(0, b"three", attempted=False)
    with closing(sqlite3.connect(path)) as db:
        stored = db.execute("SELECT command FROM waiting ORDER BY row").fetchall()
    assert stored == [(b"one",), (b"three",)]


async def test_a_mad_shows_who_and_where_it_is_without_its_password():
    affinity = ClientAffinity()
    mad = a_mad(affinity)

    assert repr(mad) == "<Mad fiedler at bus:1, instance i, open>"
    affinity.end()
    assert repr(mad) == "<Mad fiedler at bus:1, instance i, closed>"

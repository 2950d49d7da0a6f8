"""
The synchronous SDK: the same calls as the asynchronous one, from any thread.
"""

import asyncio
import inspect
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime

import pytest

from everbus.bus import connection, sync
from everbus.bus.client import Mad
from everbus.bus.errors import Invalid, NotFound, Unavailable, VersionConflict
from everbus.bus.events import SessionEvent
from everbus.bus.messages import CommandOutcome, CommittedTurn, Session, TimelinePage
from tests.processes import HOUSE

ENTRY = {"role": "user", "text": "hi"}


PROPERTIES = {"waiting", "losses"}
# For those who are asyncio programs of ours: the edge, the demo.
ONLY_ASYNC = {"acting", "broken", "grant", "trouble"}


def public(kind):
    return {name for name in dir(kind) if not name.startswith("_")} - ONLY_ASYNC


@pytest.mark.parametrize("name", sorted(public(Mad) - PROPERTIES))
def test_every_call_has_the_same_signature(name):
    asynchronous, blocking = getattr(Mad, name), getattr(sync.SyncMad, name)
    wanted = inspect.signature(asynchronous)
    if name == "watch":
        wanted = wanted.replace(return_annotation=Iterator[SessionEvent])
    if name == "turn":
        wanted = wanted.replace(return_annotation=CommittedTurn)

    assert inspect.signature(blocking) == wanted
    assert not inspect.iscoroutinefunction(blocking)
    assert blocking.__doc__


def test_nothing_is_added_and_connect_is_the_same():
    assert public(sync.SyncMad) == public(Mad)
    wanted = inspect.signature(connection.connect).parameters
    assert inspect.signature(sync.connect).parameters == wanted


class FakeMad:
    """
    Answers like a Mad, notes what it was asked, and checks where it runs.
    """

    def __init__(self):
        self.name = "fiedler"
        self.instance = "i"
        self.losses = 3
        self.asked = []
        self.appended = []
        self.left_by = "never"
        self.loop = asyncio.get_running_loop()
        self.entered = threading.Event()
        self.cancelled = threading.Event()

    @property
    def waiting(self):
        return len(self.appended)

    def append(self, session_id, entry, *, expected_last_seq, durability):
        assert asyncio.get_running_loop() is self.loop
        self.asked.append((session_id, entry, expected_last_seq, durability))
        self.appended.append(entry)
        return f"i.0.{len(self.appended)}"

    def update_later(self, session_id, patch, *, expected_version, durability):
        assert asyncio.get_running_loop() is self.loop
        self.asked.append((session_id, patch, expected_version, durability))
        return "i.0.9"

    def watch(self, session_id, *, after=None):
        self.asked.append(("watch", session_id, after))
        return self._watched()

    async def _watched(self):
        assert asyncio.get_running_loop() is self.loop
        try:
            yield 1
            yield 2
            await asyncio.sleep(0)
            raise NotFound("deleted")
        finally:
            self.watch_ended = True

    async def update_session(
        self, session_id, patch, *, expected_version=None, timeout=1
    ):
        raise self.conflict

    async def flush(self, *, timeout):
        self.entered.set()
        try:
            await asyncio.sleep(timeout)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    def __getattr__(self, name):
        async def answer(*arguments, **options):
            assert asyncio.get_running_loop() is self.loop
            self.asked.append((name, arguments, options))
            return RESULTS[name]

        return answer


SESSION = Session(
    id="s",
    version=1,
    owner_id="ada",
    created_at=datetime.now(UTC),
    last_active=datetime.now(UTC),
)
CALLS = {
    "create_session": (("ada",), {"session_id": "s", "durability": "warm"}),
    "get_or_create_session": (("ada",), {"durability": "warm"}),
    "get_session": (("s",), {"full": True}),
    "delete_session": (("s",), {"expected_version": 3, "command_id": "order-7"}),
    "suspend_session": (("s",), {"expected_version": 3, "durability": "hot"}),
    "resume_session": (("s",), {"expected_version": 3, "durability": "warm"}),
    "durable": (("s",), {"wait": True}),
    "list_sessions": ((), {"owner": "ada", "tag": "sea", "cursor": "c", "limit": 7}),
    "stats": ((), {}),
    "add_participant": (("s", "tool"), {"role": "r", "durability": "warm"}),
    "remove_participant": (("s", "tool"), {"durability": "warm"}),
    "join": (("s",), {"role": "r", "durability": "warm"}),
    "leave": (("s",), {"durability": "warm"}),
    "append_and_wait": (("s", ENTRY), {"expected_last_seq": 3, "durability": "warm"}),
    "timeline": (("s",), {"after": None, "newest_first": True, "limit": 7}),
    "session_at": (("s", 3), {}),
    "diff": (("s", 3, 4), {}),
    "create_checkpoint": (("s",), {"name": "n", "kind": "incremental"}),
    "checkpoints": (("s",), {"before": "i.0.1", "limit": 7}),
    "restore_checkpoint": (("s", "i.0.1"), {"expected_version": 3}),
    "broadcast": (("s", ENTRY), {"durability": "warm"}),
    "outcome": (("i.0.1",), {}),
    "cancel": (("i.0.1",), {}),
    "call": (("session.get", "s", {"full": True}), {"durability": "warm"}),
}
RESULTS = {
    **dict.fromkeys(CALLS, SESSION),
    "delete_session": None,
    "turn": CommittedTurn(turn="i.0.1", version=4, seqs=(5,)),
    "append_and_wait": 7,
    "timeline": TimelinePage(()),
    "outcome": CommandOutcome("applied"),
    "cancel": CommandOutcome("cancelled"),
}


def test_every_call_is_tried_here():
    tried = {*CALLS, *PROPERTIES, "append", "flush", "update_later", "update_session"}
    tried |= {"watch", "turn"}

    assert tried == public(Mad)


@pytest.fixture
def made(monkeypatch):
    return fake_mads(monkeypatch)


def fake_mads(monkeypatch):
    """
    The fake Mads that connect() makes instead of real ones.
    """
    mads = []

    @asynccontextmanager
    async def connected(*arguments, **options):
        mads.append(FakeMad())
        try:
            yield mads[-1]
        except BaseException as error:
            mads[-1].left_by = type(error).__name__
            raise
        else:
            mads[-1].left_by = "its end"

    monkeypatch.setattr(connection, "connect", connected)
    return mads


@pytest.mark.parametrize("name", CALLS)
def test_every_call_hands_all_arguments_on_and_its_result_back(made, name):
    arguments, options = CALLS[name]
    options = {**options, "timeout": 1.0}

    with sync.connect() as mad:
        result = getattr(mad, name)(*arguments, **options)

    assert made[0].asked == [(name, arguments, options)]
    assert result is RESULTS[name]


def test_a_connection_is_entered_once(made):
    """
    Also after its block: its loop and its thread are gone.
    """
    connected = sync.connect()

    with connected, pytest.raises(Invalid, match="call connect\\(\\) for each"):
        connected.__enter__()
    with pytest.raises(Invalid, match="call connect\\(\\) for each"):
        connected.__enter__()


def test_an_exception_passes_through_unchanged(made):
    with sync.connect() as mad:
        made[0].conflict = VersionConflict("no", current_version=4)

        with pytest.raises(VersionConflict) as refused:
            mad.update_session("s", {}, expected_version=3)

    assert refused.value is made[0].conflict


def test_appends_of_many_threads_all_arrive_with_ids_of_their_own(made):
    with sync.connect() as mad, ThreadPoolExecutor(8) as threads:
        ids = list(threads.map(lambda n: mad.append("s", n), range(400)))

        assert mad.waiting == 400

    assert len(set(ids)) == 400
    assert sorted(made[0].appended) == list(range(400))


def test_an_append_hands_all_arguments_on(made):
    with sync.connect() as mad:
        mad.append("s", ENTRY, expected_last_seq=3, durability="warm")

    assert made[0].asked == [("s", ENTRY, 3, "warm")]


def test_a_turn_hands_all_arguments_on_and_its_result_back(made):
    options = {
        "expected_version": 3,
        "expected_last_seq": 4,
        "turn_id": "run-7",
        "command_id": "order-7",
        "durability": "warm",
        "timeout": 1.0,
    }
    with sync.connect() as mad:
        told = mad.turn("s", [ENTRY], {"tags": []}, **options)

    assert told is RESULTS["turn"]
    assert made[0].asked == [("turn", ("s", [ENTRY], {"tags": []}), options)]


def test_an_update_for_later_is_handed_on_with_its_id_back(made):
    with sync.connect() as mad:
        patch = {"tags": ["sea"]}
        told = mad.update_later("s", patch, expected_version=4, durability="warm")

    assert told == "i.0.9"
    assert made[0].asked == [("s", patch, 4, "warm")]


def test_a_watch_is_a_loop_that_blocks(made):
    seen = []
    with sync.connect() as mad:
        watch = mad.watch("s", after="0")
        with pytest.raises(NotFound):
            seen.extend(watch)
        for event in mad.watch("s"):
            seen.append(event)
            break

    assert seen[-1:] == [1]
    assert made[0].asked == [("watch", "s", "0"), ("watch", "s", None)]


def test_a_watch_that_is_left_early_is_ended(made):
    with sync.connect() as mad, closing(mad.watch("s")) as watch:
        assert [next(watch), next(watch)] == [1, 2]
        made[0].watch_ended = False
        watch.close()
        assert made[0].watch_ended


def test_appends_of_one_thread_keep_their_order(made):
    with sync.connect() as mad:
        ids = [mad.append("s", n) for n in range(100)]

    assert made[0].appended == list(range(100))
    assert ids == [f"i.0.{n}" for n in range(1, 101)]


def test_an_error_in_the_block_reaches_the_connection_and_the_caller(made):
    with pytest.raises(ZeroDivisionError), sync.connect():
        raise ZeroDivisionError

    assert made[0].left_by == "ZeroDivisionError"


def test_it_tells_which_instance_it_is_and_how_often_that_was_lost(made):
    with sync.connect() as mad:
        assert (mad.name, mad.instance, mad.losses) == ("fiedler", "i", 3)


def test_a_call_from_the_connections_own_thread_is_refused(made):
    """
    As from `on_lost`: it would wait for itself, for ever.
    """
    with sync.connect() as mad:

        async def on_lost():
            mad.flush(timeout=1)

        with pytest.raises(Invalid, match="Set a flag there"):
            mad._loop.call(on_lost)


def test_a_forked_child_is_refused_and_leaves_without_waiting(made, monkeypatch):
    """
    It has none of the threads, and the sockets are its parent's.
    """
    before = threading.active_count()
    with pytest.raises(SystemExit), sync.connect() as mad:  # noqa: PT012
        parent = os.getpid()
        monkeypatch.setattr(os, "getpid", lambda: parent + 1)
        with pytest.raises(Unavailable, match="connect\\(\\) anew"):
            mad.get_session("s")
        raise SystemExit(7)

    assert made[0].left_by != "SystemExit"
    monkeypatch.undo()
    mad._loop.close()
    assert threading.active_count() == before


def test_ctrl_c_in_a_call_leaves_cleanly():
    """
    In a process of its own: a signal reaches whatever the test runner's main thread
    does just then.
    """
    program = (
        "import pytest; from tests.unit import test_sync_facade as us;"
        "us.leave_by_ctrl_c(us.fake_mads(pytest.MonkeyPatch()))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=HOUSE, capture_output=True, check=False
    )

    assert ran.returncode == 0, ran.stderr.decode()


def leave_by_ctrl_c(made):
    """
    The call is cancelled, the connection closed and its thread ended.
    """

    def interrupt():
        made[0].entered.wait(5)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    before = threading.active_count()
    user = threading.Thread(target=interrupt)
    with pytest.raises(KeyboardInterrupt), sync.connect() as mad:  # noqa: PT012
        user.start()
        mad.flush(timeout=30)

    user.join(5)
    assert made[0].cancelled.wait(5)
    assert made[0].left_by == "KeyboardInterrupt"
    assert threading.active_count() == before


def test_a_connection_that_cannot_be_made_leaves_no_thread(monkeypatch):
    @asynccontextmanager
    async def refused(*_, **__):
        raise Unavailable("no bus")
        yield

    monkeypatch.setattr(connection, "connect", refused)
    before = threading.active_count()

    with pytest.raises(Unavailable, match="no bus"), sync.connect():
        raise AssertionError("must not be entered")

    assert threading.active_count() == before


def test_a_call_after_the_end_is_refused(made):
    with sync.connect() as mad:
        pass

    assert made[0].left_by == "its end"
    with pytest.raises(Unavailable, match="closed"):
        mad.get_session("s")


def test_a_call_of_another_thread_ends_with_the_connection(made):
    """
    Nobody waits for ever for a loop that is gone.
    """
    with ThreadPoolExecutor(1) as thread:
        with sync.connect() as mad:
            waiting = thread.submit(mad.flush, timeout=30)
            assert made[0].entered.wait(5)

        with pytest.raises(Unavailable, match="closed during the call"):
            waiting.result(5)

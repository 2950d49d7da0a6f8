"""
The commit call that redis-benchmark repeats.
"""

import os
import threading
import time

import pytest

from everbus.bus.messages import pack
from everbus.bus.wire import Wire
from everbus.gateway.store import key_names
from everbus.gateway.store.scripts import load_scripts
from tests.bench import rig, yardstick
from tests.bench.yardstick import Yardstick, commit_call
from tests.servers import valkey

BODY = pack({"patch": {"work_in_progress": {"a": "x" * 300}}})


def test_no_argument_has_what_a_program_cannot_be_given():
    call = commit_call(40, BODY, sessions=30)

    assert not any(b"\0" in argument for argument in call.command)
    assert (call.size, call.records) == (40, 30)


def test_the_largest_call_fits_into_one_argument():
    call = yardstick.largest(256, BODY, sessions=200)

    assert max(map(len, call.command)) <= yardstick.MAX_ARGUMENT_BYTES
    assert 100 < call.size <= 256


async def test_a_call_commits_as_often_as_it_is_repeated(tmp_path):
    """
    A yardstick whose calls are refused would be a fast one.
    """
    call = commit_call(40, BODY, sessions=30)
    async with valkey(tmp_path, aof=False) as server:
        wire = Wire(server.url)
        try:
            await load_scripts(wire)
            await wire.exchange(call.prepare)
            told = [await wire.call(*call.command) for _ in range(3)]
            held = await wire.call("XLEN", key_names.outbox(0))
        finally:
            await wire.close()

    assert told == [[b"ok", 30, 0], [b"ok", 60, 0], [b"ok", 90, 0]]
    assert held == 3


@pytest.mark.skipif(not yardstick.PROGRAM, reason="no redis-benchmark on the PATH")
async def test_redis_benchmark_is_not_believed_when_calls_were_refused(tmp_path):
    call = commit_call(1, BODY)
    stale = call._replace(prepare=call.prepare[:1])
    async with valkey(tmp_path, aof=False) as server:
        measured = Yardstick(server)
        try:
            rate, cost_us = await measured.measure(call, 256)
            with pytest.raises(AssertionError, match="calls committed"):
                await measured.measure(stale, 256)
        finally:
            await measured.close()

    assert rate > 0
    assert cost_us > 0


def test_cpu_time_counts_every_thread_of_a_process():
    """
    A server writes its AOF, and a driver asks its database, in threads of their own.
    """
    burnt, done = threading.Event(), threading.Event()

    def burn() -> None:
        until = time.thread_time() + 0.05
        while time.thread_time() < until:
            pass
        burnt.set()
        done.wait(10)

    before = rig.cpu_s(os.getpid())
    thread = threading.Thread(target=burn)
    thread.start()
    burnt.wait(10)
    after = rig.cpu_s(os.getpid())
    done.set()
    thread.join()

    assert 0.03 < after - before < 5

"""
The worker as a process, on a bus in memory that goes away and comes back.
"""

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("worker.py")
WITHIN_S = 20


class Worker:
    """
    A worker, and what is typed into it.
    """

    def __init__(self, process):
        self.process = process

    def types(self, *notes):
        """
        Type notes; returns when the worker has kept all of them.
        """
        for text in notes:
            self.process.stdin.write(f"{text}\n")
            self.process.stdin.flush()
            # The SDK's log lines are there, too.
            while (line := self.process.stdout.readline()) != f"kept {text}\n":
                assert line, "the worker has ended"

    def ends(self):
        """
        End its input; it ends by itself.
        """
        self.process.stdin.close()
        assert self.process.wait(WITHIN_S) == 0

    def is_killed(self):
        self.process.kill()
        self.process.wait(WITHIN_S)


@pytest.fixture
def session(everbus_bus):
    with everbus_bus.connect_sync(mad="ada") as ada:
        made = ada.create_session("ada")
        ada.add_participant(made.id, "worker")
        return made.id


@pytest.fixture
def a_worker(everbus_bus, session, tmp_path):
    environment = {**os.environ, **everbus_bus.environment("worker")}

    @contextmanager
    def started():
        with subprocess.Popen(
            [sys.executable, str(WORKER), session],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield Worker(process)
            finally:
                process.kill()

    return started


def until_noted(everbus_bus, session, wanted):
    with everbus_bus.connect_sync(mad="ada") as ada:
        deadline = time.monotonic() + WITHIN_S
        noted = []
        while noted != wanted and time.monotonic() < deadline:
            entries = ada.timeline(session).entries
            noted = [one.entry["note"] for one in entries]
    assert noted == wanted


def test_notes_of_an_outage_arrive_when_the_bus_is_back(everbus_bus, session, a_worker):
    with a_worker() as worker:
        worker.types("before")
        until_noted(everbus_bus, session, ["before"])
        with everbus_bus.outage():
            worker.types("during", "still")
        worker.types("after")
        worker.ends()

    until_noted(everbus_bus, session, ["before", "during", "still", "after"])


def test_notes_survive_the_worker(everbus_bus, session, a_worker):
    with a_worker() as worker:
        worker.types("before")
        until_noted(everbus_bus, session, ["before"])
        with everbus_bus.outage():
            worker.types("killed", "with it")
            worker.is_killed()
    with everbus_bus.outage(), a_worker() as offline:
        offline.types("started offline")
        offline.is_killed()
    with a_worker() as again:
        again.ends()

    until_noted(
        everbus_bus, session, ["before", "killed", "with it", "started offline"]
    )

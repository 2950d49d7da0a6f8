"""
`everbus watch` and `everbus session broadcast`: what they ask and print.
"""

import json
import shlex
import sys
from contextlib import contextmanager

import pytest

from everbus.bus.errors import NotFound
from everbus.bus.events import SessionEvent
from everbus.compose import cli, command_output
from tests.builders import NOW

KNOWN = {"session": "s1", "at": NOW, "mad": "bo", "principal": "bo", "command_id": "i"}
EVENTS = [
    SessionEvent(
        **KNOWN, id="a1-2.0.0", kind="session.updated", version=2, seq=0, patch={"x": 1}
    ),
    SessionEvent(
        **KNOWN,
        id="a1-2.1.0",
        kind="timeline.appended",
        version=2,
        seq=1,
        entry="a\x1b",
    ),
    SessionEvent(
        **KNOWN, id="a1-2.1.1", kind="session.broadcast", version=2, seq=1, message=[1]
    ),
]


class FakeMad:
    """
    Watches as a MAD would, and notes what it was asked.
    """

    def __init__(self):
        self.asked = []
        self.end = None

    def watch(self, session_id, *, after):
        self.asked.append(("watch", session_id, after))
        yield from EVENTS
        if self.end is not None:
            raise self.end

    def broadcast(self, session_id, message, *, timeout):
        self.asked.append(("broadcast", session_id, message, timeout))
        return "a1-2.1.2"


@pytest.fixture
def mad(monkeypatch):
    mad = FakeMad()

    @contextmanager
    def connect(url, **options):
        yield mad

    monkeypatch.setattr(command_output, "connect", connect)
    monkeypatch.setenv("EVERBUS_TOKEN", "t0ken")
    monkeypatch.setenv("EVERBUS_MAD_URL", "redis://{mad}@127.0.0.1:1/0")
    return mad


@pytest.fixture
def everbus(mad, monkeypatch, capsys):
    """
    Runs the command as a shell does; returns exit code, stdout and stderr.
    """

    def run(line):
        monkeypatch.setattr(sys, "argv", ["everbus", *shlex.split(line)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return run


def test_each_event_is_a_line(everbus, mad):
    exit_code, said, talk = everbus("watch s1 --after 0")

    assert (exit_code, mad.asked) == (0, [("watch", "s1", "0")])
    first, second, third = said.splitlines()
    assert first.endswith('a1-2.0.0  session.updated  bo  {"x":1}')
    assert second.endswith("a1-2.1.0  timeline.appended  bo  a\\x1b")
    assert third.endswith("a1-2.1.1  session.broadcast  bo  [1]")
    assert talk == "to go on: --after a1-2.1.1\n"


def test_as_json_each_event_is_a_line_as_well(everbus):
    _, said, _ = everbus("watch s1 -o json")

    ids = [json.loads(line)["id"] for line in said.splitlines()]
    assert ids == ["a1-2.0.0", "a1-2.1.0", "a1-2.1.1"]


@pytest.mark.parametrize(
    ("end", "code"), [(KeyboardInterrupt(), 130), (NotFound("no session s1"), 1)]
)
def test_however_it_ends_it_tells_how_to_go_on(everbus, mad, end, code):
    mad.end = end

    exit_code, _, talk = everbus("watch s1")

    assert exit_code == code
    assert "to go on: --after a1-2.1.1" in talk


def test_a_broadcast_takes_json(everbus, mad):
    exit_code, said, talk = everbus(
        """session broadcast s1 '{"typing": true}' -o json"""
    )

    assert (exit_code, talk) == (0, "")
    assert mad.asked == [("broadcast", "s1", {"typing": True}, 10.0)]
    assert json.loads(said) == {"id": "a1-2.1.2"}


def test_what_is_no_json_is_told_with_the_remedy(everbus, mad):
    exit_code, _, talk = everbus("session broadcast s1 hello")

    assert (exit_code, mad.asked) == (2, [])
    assert "Quote text twice" in " ".join(talk.split())

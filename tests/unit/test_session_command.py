"""
`everbus session` and `everbus timeline`: what they ask, print, and end with.
"""

import json
import sys
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
import typer
from typer.testing import CliRunner

from everbus.bus.errors import (
    Forbidden,
    Invalid,
    NotFound,
    Unavailable,
    VersionConflict,
)
from everbus.bus.messages import (
    Checkpoint,
    CheckpointPage,
    Difference,
    Durable,
    SessionChange,
    SessionPage,
    Stats,
    TierStats,
    TimelineEntry,
    TimelinePage,
)
from everbus.compose import cli, command_output
from everbus.compose.session_command import session_app
from everbus.compose.timeline_command import timeline
from tests.builders import NOW, a_session

ESCAPE = "\x1b[31m"
ENTRY = TimelineEntry(7, NOW, "fiedler", {"text": f"[red]hi{ESCAPE}"})
CHECKPOINT = Checkpoint(
    id="i.0.9",
    name="v1",
    version=3,
    last_seq=7,
    kind="full",
    at=NOW,
    author="fiedler",
    sha256="00ff",
)
CHANGE = SessionChange(
    version=3,
    seq=7,
    kind="session.updated",
    at=NOW,
    mad="fiedler",
    principal="ada",
    command_id="i.0.3",
    patch={"tags": ["sea"]},
)
ANSWERS = {
    "list_sessions": SessionPage((a_session(tags=("sea",)),), "cursor-2"),
    "get_session": a_session(recent_timeline=(ENTRY,), full_context={"deep": 1}),
    "suspend_session": a_session(state="dormant", version=2),
    "resume_session": a_session(version=3),
    "delete_session": None,
    "session_at": a_session(version=2),
    "diff": Difference(
        from_version=2, to_version=3, patch={"tags": ["sea"]}, changes=(CHANGE,)
    ),
    "create_checkpoint": CHECKPOINT,
    "checkpoints": CheckpointPage((CHECKPOINT,), "i.0.9"),
    "restore_checkpoint": a_session(version=9),
    "stats": Stats(
        sessions=3,
        states={"active": 2, "dormant": 1},
        tiers={"cold": TierStats(sessions=1, bytes=12_345, cost=0.5)},
    ),
    "durable": Durable(2, 7),
    "timeline": TimelinePage((ENTRY,), 7),
}


class FakeMad:
    """
    Answers as a manager would, and notes what it was asked.
    """

    def __init__(self):
        self.asked = []
        self.refusal = None

    def __getattr__(self, name):
        def answer(*arguments, **options):
            self.asked.append((name, arguments, options))
            if self.refusal is not None:
                raise self.refusal
            return ANSWERS[name]

        return answer


@pytest.fixture
def mad(monkeypatch):
    """
    The MAD that the command connects as; the environment is that of `everbus dev`.
    """
    mad = FakeMad()

    @contextmanager
    def connect(url, **options):
        mad.connected = (url, options)
        yield mad

    monkeypatch.setattr(command_output, "connect", connect)
    monkeypatch.setenv("EVERBUS_TOKEN", "t0ken")
    monkeypatch.setenv("EVERBUS_MAD_URL", "redis://{mad}@127.0.0.1:1/0")
    monkeypatch.setenv("COLUMNS", "200")
    return mad


@pytest.fixture
def everbus(monkeypatch, capsys):
    """
    Runs the command as a shell does; returns exit code, stdout and stderr.
    """
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.add_typer(session_app, name="session")
    app.command()(timeline)
    monkeypatch.setattr(cli, "app", app)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["everbus", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        output = capsys.readouterr()
        return ended.value.code or 0, output.out, output.err

    return run


WAIT = {"timeout": 10.0}
COMMANDS = [
    (
        "session list --owner ada --state dormant --tag sea --limit 7 --cursor c",
        ("list_sessions", ()),
        {"owner": "ada", "state": "dormant", "tag": "sea", "limit": 7, "cursor": "c"}
        | dict.fromkeys(("participant", "text", "active_since", "active_before")),
    ),
    ("session show s1", ("get_session", ("s1",)), {"full": False}),
    ("session show s1 --full", ("get_session", ("s1",)), {"full": True}),
    ("session suspend s1", ("suspend_session", ("s1",)), {"expected_version": None}),
    (
        "session resume s1 --expected-version 3",
        ("resume_session", ("s1",)),
        {"expected_version": 3},
    ),
    ("session at s1 2", ("session_at", ("s1", 2)), {}),
    ("session diff s1 2 3", ("diff", ("s1", 2, 3)), {}),
    (
        "session checkpoint s1 --name v1 --kind incremental",
        ("create_checkpoint", ("s1",)),
        {"name": "v1", "kind": "incremental"},
    ),
    (
        "session checkpoints s1 --before i.0.9",
        ("checkpoints", ("s1",)),
        {"before": "i.0.9", "limit": 20},
    ),
    (
        "session restore s1 i.0.9",
        ("restore_checkpoint", ("s1", "i.0.9")),
        {"expected_version": None},
    ),
    ("session stats", ("stats", ()), {}),
    ("session durable s1 --wait", ("durable", ("s1",)), {"wait": True}),
    (
        "timeline s1 --after 3 --before 9 --newest-first --limit 7",
        ("timeline", ("s1",)),
        {"after": 3, "before": 9, "newest_first": True, "limit": 7}
        | dict.fromkeys(("since", "until")),
    ),
]


@pytest.mark.parametrize(("line", "call", "options"), COMMANDS)
def test_every_command_asks_what_it_says(everbus, mad, line, call, options):
    exit_code, said, _ = everbus(*line.split())

    assert exit_code == 0
    assert said
    assert mad.asked == [(*call, {**options, **WAIT})]
    url, given = mad.connected
    assert url == "redis://dev@127.0.0.1:1/0"
    assert given == {"mad": "dev", "token": "t0ken", "lease": False}


@pytest.mark.parametrize(("line", "call", "_"), COMMANDS)
def test_every_answer_can_be_had_as_json(everbus, mad, line, call, _):
    exit_code, said, _ = everbus(*line.split(), "-o", "json")

    assert exit_code == 0
    wanted = ANSWERS[call[0]]
    told = json.loads(said)
    assert set(told) == set(wanted.__struct_fields__)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("session list", ["s1", "ada", "active", "sea"]),
        ("session show s1 --full", ["2026-03-01 12:00:00.123Z", '{"deep":1}', "[red]"]),
        ("session diff s1 2 3", ["session.updated", "ada", '{"tags":["sea"]}']),
        ("session checkpoints s1", ["i.0.9", "v1", "full"]),
        ("session stats", ["dormant", "12,345", "0.50"]),
        ("session durable s1", ["version", "2", "seq", "7"]),
        ("timeline s1", ["7", "fiedler", '"[red]hi']),
    ],
)
def test_tables_show_what_matters(everbus, mad, line, shown):
    _, said, _ = everbus(*line.split())

    assert [text for text in shown if text not in said] == []


@pytest.mark.parametrize("line", ["session show s1", "timeline s1"])
def test_what_somebody_wrote_steers_no_terminal(everbus, mad, line):
    _, said, _ = everbus(*line.split())

    assert "hi" in said
    assert "\x1b" not in said


@pytest.mark.parametrize("value", [ESCAPE, "a\nb", "a\x9bb", "a\u2028b"])
def test_control_characters_are_shown_and_not_sent(value):
    assert command_output._CONTROL.search(command_output.cell_text(value)) is None
    assert command_output._CONTROL.search(command_output.cell_text((value,))) is None


def test_nothing_is_cut_off_where_it_is_narrow(everbus, mad, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    long_id = "0198a1c2-7b1e-7000-8000-5b8f0c2d1e3f"
    page = SessionPage((a_session(id=long_id, tags=("sea",) * 9),), None)
    monkeypatch.setitem(ANSWERS, "list_sessions", page)

    _, said, _ = everbus("session", "list")

    assert "…" not in said
    assert long_id in said


@pytest.mark.parametrize(
    ("line", "talk"),
    [
        ("session list", "more: --cursor cursor-2"),
        ("session checkpoints s1", "more: --before i.0.9"),
        ("timeline s1", "more: --after 7"),
        ("timeline s1 --newest-first", "more: --before 7"),
        ("session delete s1 --yes", "s1 is deleted"),
    ],
)
def test_what_to_do_next_is_told_on_stderr(everbus, mad, line, talk):
    exit_code, said, told = everbus(*line.split())

    assert exit_code == 0
    assert talk in told
    assert talk not in said


def test_times_are_utc_unless_they_say_otherwise(everbus, mad):
    everbus("timeline", "s1", "--since", "2026-03-01", "--until", "2026-03-02T01:00+02")

    [(_, _, options)] = mad.asked
    assert options["since"] == datetime(2026, 3, 1, tzinfo=UTC)
    assert options["until"].utcoffset() == timedelta(hours=2)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("timeline s1 --since soon", "wanted a time such as"),
        ("timeline s1 --limit 0", "--limit"),
        ("session list --state asleep", "asleep"),
        ("session at s1 two", "version"),
        ("session show", "ID"),
        ("session nap s1", "nap"),
    ],
)
def test_a_mistake_has_no_traceback(everbus, mad, line, told):
    exit_code, said, talk = everbus(*line.split())

    assert (exit_code, said, mad.asked) == (2, "", [])
    assert told in talk
    assert "Traceback" not in talk


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (NotFound("no session s1; create it first"), 1),
        (Invalid("limit is 0"), 2),
        (Unavailable("the bus is away"), 3),
        (Forbidden("not yours"), 4),
        (VersionConflict("at version 3", current_version=3), 5),
    ],
)
def test_a_refusal_is_told_with_its_exit_code(everbus, mad, refusal, code):
    mad.refusal = refusal

    exit_code, said, talk = everbus("session", "show", "s1")

    assert (exit_code, said) == (code, "")
    assert talk == f"everbus: {refusal}\n"


def test_without_a_token_the_remedy_is_told(everbus, mad, monkeypatch):
    monkeypatch.delenv("EVERBUS_TOKEN")

    exit_code, said, talk = everbus("session", "list")

    assert (exit_code, said, mad.asked) == (2, "", [])
    assert "everbus token" in talk


@pytest.mark.parametrize(
    "name",
    [
        *("list", "show", "suspend", "resume", "delete", "at", "diff", "checkpoint"),
        *("checkpoints", "restore", "stats", "durable"),
    ],
)
def test_every_command_has_help_with_an_example(name):
    result = CliRunner().invoke(session_app, [name, "--help"])

    assert result.exit_code == 0
    assert f"Example: everbus session {name}" in result.output

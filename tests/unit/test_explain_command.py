"""
`everbus explain`: every name that everbus shows has an entry, and no other has one.
"""

import ast
import json
import sys
from pathlib import Path

import pytest

import everbus
from everbus.bus.errors import ERRORS
from everbus.compose import cli
from everbus.compose.catalogue.entries import catalogue
from everbus.compose.reference.event_pages import ROOMS, log_events
from everbus.compose.settings_checks import CHECKS
from everbus.gateway.health.indicators import INDICATORS
from everbus.gateway.telemetry.metrics import CAUSES

MISSING = "without an entry in compose/catalogue; add one paragraph for each"


def causes_in_source():
    """
    Each `Malformed(…, cause="…")`, and those that the archiver buries records with.
    """
    found = {"diverged", "constraint", "undecodable"}
    here = Path(everbus.__file__).parent
    for path in (path for room in ROOMS for path in (here / room).rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "Malformed":
                found |= {
                    one.value.value
                    for one in call.keywords
                    if one.arg == "cause" and isinstance(one.value, ast.Constant)
                }
    return found


@pytest.fixture
def explained(monkeypatch, capsys):
    """
    Runs `everbus explain` as a shell does; returns exit code, stdout and stderr.
    """

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["everbus", "explain", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        output = capsys.readouterr()
        return ended.value.code, output.out, output.err

    return run


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("error code", set(ERRORS)),
        ("cause of dead letters", CAUSES | causes_in_source()),
        ("health indicator", {one.name for one in INDICATORS} | set(CHECKS)),
        ("log event", {one.name for one in log_events()}),
    ],
)
def test_every_name_has_an_entry_and_no_other_has_one(kind, names):
    known = {one.name for one in catalogue() if one.kind == kind}

    assert names - known == set(), MISSING
    assert known - names == set(), "entries of what is no longer there; remove them"


def test_events_with_a_level_of_the_moment_are_found_as_well():
    """
    `report = log.error if … else log.warning`, `"a" if … else "b"`, `_alert(event)`.
    """
    found = {one.name: one.level for one in log_events()}

    assert found["drain.waits"] == "error or warning"
    assert {"mad.disabled", "mad.over_quota", "session.not_purged"} <= set(found)


@pytest.mark.parametrize("entry", catalogue(), ids=lambda one: one.name)
def test_an_entry_is_short_and_whole(entry):
    for text in (entry.meaning, entry.reason, entry.remedy):
        assert text
        assert len(text) <= 320


def test_a_name_of_two_kinds_is_explained_as_both(explained):
    code, said, _ = explained("forbidden")

    assert code == 0
    assert "forbidden  (error code, HTTP 403" in said
    assert "forbidden  (cause of dead letters)" in said


@pytest.mark.parametrize("name", ["lane.disturbed", "poison", "pending_age", "timeout"])
def test_an_entry_says_what_to_do(name, explained):
    code, said, _ = explained(name)

    assert code == 0
    assert "Usual reason: " in said
    assert "What to do:   " in said
    assert json.loads(explained(name, "-o", "json")[1])[0]["remedy"] in said


def test_an_unknown_name_gives_the_nearest(explained):
    code, said, talk = explained("lane.distrubed")

    assert (code, said, talk.count("\n")) == (2, "", 1)
    assert "did you mean lane.disturbed?" in talk

"""
`everbus doctor`: how it ends, what it prints, and what it asks of settings.
"""

import asyncio
import sys

import msgspec
import pytest

from everbus.compose import cli, doctor_command
from everbus.compose.doctor_command import Diagnosis
from everbus.compose.settings import load_settings
from everbus.compose.settings_checks import check_settings
from everbus.gateway.health.verdicts import IndicatorResult
from everbus.gateway.identity.tokens import mint

SECRET = "a secret of the tests, 32 bytes or more"


def a_finding(name="lag", verdict="pass", **fields):
    known = {
        "value": 1.0,
        "unit": "s",
        "shown": "1 s",
        "threshold": "warn 2, fail 10",
        "means": "age of the oldest command",
        "remedy": "" if verdict == "pass" else "start a manager",
    }
    return IndicatorResult(name, verdict, **known | fields)


@pytest.fixture
def everbus(monkeypatch, capsys):
    """
    Runs `everbus doctor` on these findings; exit code, stdout and stderr.
    """

    def run(findings, *arguments):
        async def diagnosed(_):
            verdicts = dict.fromkeys(("pass", "warn", "fail"), 0)
            for one in findings:
                verdicts[one.verdict] += 1
            return Diagnosis(7, verdicts, findings)

        monkeypatch.setattr(doctor_command, "diagnose", diagnosed)
        monkeypatch.setattr(sys, "argv", ["everbus", "doctor", *arguments])
        monkeypatch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as ended:
            cli.main()
        output = capsys.readouterr()
        return ended.value.code, output.out, output.err

    return run


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        (["pass"], 0),
        (["pass", "warn"], 0),
        (["pass", "warn", "fail"], 1),
    ],
)
def test_only_a_failure_is_a_finding(everbus, verdicts, code):
    findings = [a_finding(f"i{n}", verdict) for n, verdict in enumerate(verdicts)]

    assert everbus(findings)[0] == code
    assert everbus(findings, "-o", "json")[0] == code


def test_programs_get_one_line_of_json(everbus):
    _, told, talk = everbus([a_finding(verdict="fail")], "-o", "json")

    assert talk == ""
    assert told.count("\n") == 1
    found = msgspec.json.decode(told)
    assert found["at_ms"] == 7
    assert found["verdicts"] == {"pass": 0, "warn": 0, "fail": 1}
    assert found["findings"] == [a_finding(verdict="fail")._asdict()]


def test_remedies_are_told_of_what_does_not_pass_and_of_nothing_else(everbus):
    findings = [a_finding("good"), a_finding("bad", "warn", remedy="mend it")]

    _, told, _ = everbus(findings)

    assert "warn: bad: age of the oldest command\n      → mend it" in told
    assert told.count("→") == 1
    assert told.splitlines()[-1] == "2 indicators: 1 pass, 1 warn, 0 fail"


def test_a_name_from_the_bus_steers_no_terminal_and_is_no_markup(everbus):
    _, told, _ = everbus([a_finding(shown="\x1b[31m[red]replica")])

    assert "\x1b[31m" not in told
    assert "[red]replica" in told


def test_watching_goes_on_until_ctrl_c(everbus, monkeypatch):
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(doctor_command.time, "sleep", sleep)

    code, told, _ = everbus([a_finding()], "--watch", "5")

    assert (code, slept) == (130, [5, 5, 5])
    assert told.count("1 indicators:") == 3


def a_token(secret=SECRET, ttl_s=60, now=1e10):
    return mint(
        secret,
        name="ada",
        role="admin",
        issuer="everbus",
        audience="everbus",
        ttl_s=ttl_s,
        now=now,
    )


@pytest.mark.parametrize(
    ("settings", "verdict", "shown"),
    [
        ({}, "pass", "no key is set here"),
        ({"JWT_SECRET": SECRET}, "pass", "the key is usable"),
        ({"JWT_SECRET": "short"}, "fail", "no usable key for tokens"),
        ({"JWT_SECRET": SECRET, "TOKEN": a_token(now=1e9)}, "fail", "not valid"),
    ],
)
def test_keys_and_the_token_are_checked(settings, verdict, shown):
    chosen = load_settings({f"EVERBUS_{name}": v for name, v in settings.items()})

    found = {one.name: one for one in asyncio.run(check_settings(chosen))}

    assert found["tokens"].verdict == verdict
    assert shown in found["tokens"].shown
    assert SECRET not in str(found)
    assert {found[name].shown for name in ("mongodb", "s3")} == {"not set here"}


def test_a_tier_that_is_set_wrongly_fails_with_the_setting():
    chosen = load_settings({"EVERBUS_COLD_STORE": "folder"})

    found = {one.name: one for one in asyncio.run(check_settings(chosen))}

    assert found["s3"].verdict == "fail"
    assert "EVERBUS_COLD_FOLDER" in found["s3"].shown

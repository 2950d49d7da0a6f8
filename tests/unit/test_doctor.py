"""
`everbus doctor`: how it ends, what it prints, and what it asks of settings.
"""

import asyncio
import sys

import msgspec
import pytest

from everbus.compose import cli, doctor_command
from everbus.compose.diagnosis import PART_OF, Diagnosis
from everbus.compose.settings import load_settings
from everbus.compose.settings_checks import ACLS_AT_ONCE, MAX_ACLS, check_settings
from everbus.gateway.health.verdicts import IndicatorResult
from everbus.gateway.identity.grant_keys import IssuingKey
from everbus.gateway.identity.tokens import mint
from everbus.gateway.store.tiers import WarmSession
from tests.builders import a_session

AT_MS = 1_800_000_000_000
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

    def run(findings, *arguments, columns=80):
        async def diagnosed(_):
            return Diagnosis(AT_MS, findings)

        monkeypatch.setattr(doctor_command, "diagnose", diagnosed)
        monkeypatch.setattr(sys, "argv", ["everbus", "doctor", *arguments])
        monkeypatch.delenv("COLUMNS", raising=False)
        if columns is not None:
            monkeypatch.setenv("COLUMNS", str(columns))
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
    names = ("lag", "managers", "fsync")
    findings = [
        a_finding(name, verdict) for name, verdict in zip(names, verdicts, strict=False)
    ]

    assert everbus(findings)[0] == code
    assert everbus(findings, "-o", "json")[0] == code


def test_programs_get_one_line_of_json(everbus):
    _, told, talk = everbus([a_finding(verdict="fail")], "-o", "json")

    assert talk == ""
    assert told.count("\n") == 1
    found = msgspec.json.decode(told)
    assert found["at_ms"] == AT_MS
    assert found["verdicts"] == {"pass": 0, "warn": 0, "fail": 1}
    known = {"part": "managers and lanes"}
    assert found["findings"] == [a_finding(verdict="fail")._asdict() | known]


def test_parts_and_findings_with_trouble_come_first(everbus):
    """
    Failures before warnings before the rest, among the parts and within each.
    """
    findings = [
        a_finding("fsync", "warn"),
        a_finding("bus_memory"),
        a_finding("lost_mads"),
        a_finding("outbox"),
        a_finding("archiver", "warn"),
        a_finding("cold_tier", "fail"),
        a_finding("tokens"),
    ]

    _, told, _ = everbus(findings)

    lines = [line for line in told.splitlines() if not line.startswith("      ")]
    assert [" ".join(line.split(" (")[0].split()) for line in lines] == [
        "archiver and tiers: 1 fail, 1 warn, 1 pass",
        *("fail cold_tier 1 s", "warn archiver 1 s", "pass outbox 1 s", ""),
        "bus: 1 warn, 1 pass",
        *("warn fsync 1 s", "pass bus_memory 1 s", ""),
        *("MADs: 1 pass", "pass lost_mads 1 s", ""),
        *("settings: 1 pass", "pass tokens 1 s", ""),
        "3 of 7 need attention: cold_tier, fsync, archiver",
    ]


def test_remedies_are_told_of_what_does_not_pass_and_of_nothing_else(everbus):
    findings = [a_finding("lag"), a_finding("managers", "warn", remedy="mend it")]

    _, told, _ = everbus(findings)

    assert "\n        age of the oldest command\n      → mend it\n" in told
    assert told.count("→") == told.count("age of the oldest command") == 1
    assert told.splitlines()[-1] == "1 of 2 needs attention: managers"


def test_the_last_line_says_that_all_is_well(everbus):
    _, told, _ = everbus([a_finding("lag"), a_finding("fsync")])

    assert told.splitlines()[-1] == "none of 2 needs attention"


LONG = {"shown": "s " * 90, "means": "m " * 90, "remedy": "r " * 90}


def test_everything_fits_the_terminal(everbus):
    findings = [a_finding(name, "warn", **LONG) for name in PART_OF]
    findings[0] = a_finding(findings[0].name, "fail", shown="x" * 500)

    _, told, _ = everbus(findings)

    assert max(map(len, told.splitlines())) <= 80
    assert told.count("x") > 500
    last = told.splitlines()[-1]
    assert last.startswith(f"{len(PART_OF)} of {len(PART_OF)} need attention: ")
    assert last.endswith(" …")


def test_a_pipe_gets_each_finding_on_one_line(everbus):
    findings = [a_finding(name, "warn", **LONG) for name in PART_OF]

    _, told, _ = everbus(findings, columns=None)

    parts = set(PART_OF.values())
    assert len(told.splitlines()) == 3 * len(findings) + 2 * len(parts) + 1
    assert told.splitlines()[-1].endswith(findings[-1].name)
    assert not any(line.endswith(" ") for line in told.splitlines())


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
    assert told.count("none of 1 needs attention") == 3


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


PUBLIC_KEY = IssuingKey("edge", "e1", b"e" * 32).public_text


@pytest.mark.parametrize(
    ("settings", "verdict", "shown"),
    [
        ({}, "pass", "not set here"),
        ({"JWT_SECRET": SECRET}, "warn", "only the shared secret"),
        ({"GRANT_KEY": SECRET}, "warn", "only the shared secret"),
        (
            {"GRANT_KEY": SECRET, "GRANT_PUBLIC_KEYS": PUBLIC_KEY},
            *("warn", "beside the keys"),
        ),
        (
            {"JWT_SECRET": SECRET, "GRANT_PUBLIC_KEYS": PUBLIC_KEY}
            | {"GRANT_SHARED": "false"},
            *("pass", "a key of its own"),
        ),
        ({"GRANT_PUBLIC_KEYS": "edge:e1:ed25519:AAAA"}, "fail", "everbus keys pair"),
    ],
)
def test_a_shared_secret_of_grants_is_told(settings, verdict, shown):
    chosen = load_settings({f"EVERBUS_{name}": v for name, v in settings.items()})

    found = {one.name: one for one in asyncio.run(check_settings(chosen))}

    assert found["grants"].verdict == verdict
    assert shown in found["grants"].shown
    assert bool(found["grants"].remedy) is (verdict != "pass")
    assert SECRET not in str(found)


def test_a_tier_that_is_set_wrongly_fails_with_the_setting():
    chosen = load_settings({"EVERBUS_COLD_STORE": "folder"})

    found = {one.name: one for one in asyncio.run(check_settings(chosen))}

    assert found["s3"].verdict == "fail"
    assert "EVERBUS_COLD_FOLDER" in found["s3"].shown


class WarmOfPlainNames:
    """
    A warm tier of many sessions, of which each tenth has one plain name in its ACL.
    """

    asked = 0

    async def every(self, after, limit):
        type(self).asked += 1
        first = int(after or -1) + 1
        acls = [("bo", "mad:bo") if n % 10 == 0 else ("user:bo",) for n in range(limit)]
        return [
            WarmSession(session=a_session(id=f"{first + n:06}", acl=acl))
            for n, acl in enumerate(acls)
        ]

    async def sessions(self, ids):
        return {}

    def close(self):
        pass


async def test_plain_names_of_access_lists_are_counted_within_a_bound():
    WarmOfPlainNames.asked = 0
    settings = load_settings(
        {
            "EVERBUS_REDIS_URL": "redis://127.0.0.1:1",
            "EVERBUS_WARM_STORE": f"{__name__}:WarmOfPlainNames",
        }
    )

    [told] = [one for one in await check_settings(settings) if one.name == "acl_names"]

    assert (told.verdict, told.shown) == (
        "warn",
        "200 plain names in 200 of the oldest 2,000 sessions",
    )
    assert WarmOfPlainNames.asked == MAX_ACLS // ACLS_AT_ONCE

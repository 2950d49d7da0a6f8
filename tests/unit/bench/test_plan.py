"""
What `everbus bench` is asked for: mixes, limits, and what cannot be carried out.
"""

import sys

import pytest

from everbus.compose import cli
from everbus.compose.bench.plan import CALLS, MIXES, BenchPlan, Workload, mix_in
from everbus.compose.exit_codes import Failed


@pytest.fixture
def everbus(monkeypatch, capsys):
    """
    Runs the command as a shell does; returns exit code, stdout and stderr.
    """
    for name in ("JWT_SECRET", "TOKEN", "REDIS_URL", "MAD_URL"):
        monkeypatch.delenv(f"EVERBUS_{name}", raising=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["everbus", "bench", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        output = capsys.readouterr()
        return ended.value.code, output.out, output.err

    return run


def test_a_mix_names_calls_of_the_sdk():
    assert mix_in("update=5, append=4,get_session=1") == {
        "update_session": 5,
        "append": 4,
        "get_session": 1,
    }


def test_each_work_with_a_name_is_made_of_known_calls():
    assert set(MIXES) == set(Workload)
    assert {call for mix in MIXES.values() for call in mix} == set(CALLS)


@pytest.mark.parametrize(
    "text",
    [
        *("", "delete=1", "append", "append=0", "append=-1", "append=1.5"),
        *("append=1,append=2", "append=²", "append=9999999", "append=1,"),
    ],
)
def test_a_mix_that_cannot_be_is_refused(text):
    with pytest.raises(Failed) as refused:
        mix_in(text)

    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--kill-every", "1"), "has started itself"),
        (("--kill-every", "99", "--own-stack"), "nothing would be killed"),
        (("--kill-every", "nan", "--own-stack"), "--kill-every nan"),
        (("--durability", "warm", "--own-stack"), "--durability warm"),
        (("--rate", "0"), "--rate 0"),
        (("--rate", "inf"), "--rate inf"),
        (("--seconds", "-1"), "--seconds -1"),
        (("--seconds", "1e9"), "at most 86400"),
        (("--warm-up", "nan"), "--warm-up"),
        (("--timeout", "0"), "--timeout 0"),
        (("--mix", "fly=1"), "'fly' is no call"),
        (("--work", "sleep"), "sleep"),
        (("--in-flight", "0"), "--in-flight"),
        (("--mads", "200", "--sessions", "100000"), "take fewer"),
        (("--expect", "--work", "reads"), "--expect"),
        (("--html", "/nowhere/at/all.html"), "an existing folder"),
        ((), "EVERBUS_TOKEN"),
    ],
)
def test_a_mistake_ends_with_2_and_no_traceback(everbus, arguments, told):
    code, said, talk = everbus(*arguments)

    assert (code, said) == (2, "")
    assert told in talk
    assert "Traceback" not in talk


def test_a_bus_that_is_away_ends_with_3(everbus, monkeypatch):
    monkeypatch.setenv("EVERBUS_TOKEN", "any")
    monkeypatch.setenv("EVERBUS_REDIS_URL", "redis://:hidden@127.0.0.1:1")

    code, said, talk = everbus("--seconds", "1")

    assert (code, said) == (3, "")
    assert "no connection to the bus" in talk
    assert "hidden" not in talk


def test_help_has_an_example(everbus):
    code, said, _ = everbus("--help")

    assert code == 0
    assert "everbus bench --own-stack --replicas 2" in " ".join(said.split())


def test_by_default_it_is_over_in_seconds():
    plan = BenchPlan(mix={"append": 1})

    assert plan.seconds + plan.warm_up_s < 15

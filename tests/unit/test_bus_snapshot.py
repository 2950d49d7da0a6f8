"""
Rates of `everbus top`, from the reports of processes that count since their start.
"""

from everbus.compose.bus_snapshot import Rates
from everbus.gateway.health.status import Status


def a_status(at_ms, commands, *, name="m1", started_ms=1, recent=()):
    return Status(
        role="manager",
        name=name,
        at_ms=at_ms,
        started_ms=started_ms,
        totals={"commands": commands},
        recent=dict(recent),
    )


def test_the_first_look_takes_the_last_minutes():
    recent = {"commands": 600.0, "seconds": 300.0}

    found = Rates().of([a_status(5_000, 9_000.0, recent=recent)])

    assert found["commands"] == 2.0
    assert found["drained"] == 0.0


def test_two_reports_give_the_rate_between_them():
    rates = Rates()
    rates.of([a_status(5_000, 100.0)])

    assert rates.of([a_status(10_000, 600.0)])["commands"] == 100.0


def test_a_report_that_is_not_new_keeps_its_rate():
    """
    Looks are more frequent than reports: the rate must not fall to nothing in between.
    """
    rates = Rates()
    rates.of([a_status(5_000, 100.0)])
    rates.of([a_status(10_000, 600.0)])

    assert rates.of([a_status(10_000, 600.0)])["commands"] == 100.0


def test_a_restarted_process_never_has_a_negative_rate():
    rates = Rates()
    rates.of([a_status(5_000, 900.0)])
    recent = {"commands": 10.0, "seconds": 5.0}

    again = a_status(10_000, 10.0, started_ms=2, recent=recent)

    assert rates.of([again])["commands"] == 2.0


def test_processes_add_up_and_one_that_is_gone_counts_no_more():
    rates = Rates()
    rates.of([a_status(5_000, 0.0), a_status(5_000, 0.0, name="m2")])
    both = [a_status(10_000, 50.0), a_status(10_000, 100.0, name="m2")]

    assert rates.of(both)["commands"] == 30.0
    assert rates.of(both[:1])["commands"] == 10.0

"""
The kinds of failures: each has its row, its test and its count.
"""

import ast
import asyncio
import re
import time
from pathlib import Path

import pytest

from everbus.bus.errors import Unavailable
from everbus.gateway.session_manager import DEAF_S, SessionManager
from everbus.gateway.store.breaker import FAILURES, TierBreaker
from everbus.gateway.telemetry import metrics
from everbus.gateway.telemetry.failures import KINDS, NOTED, TABLE, FailureCounter

HOUSE = Path(__file__).parent.parent.parent
ROOMS = {"Failures": "telemetry", "Health": "health"}


def section(title):
    """
    The section *title* of the README that holds it.
    """
    text = (HOUSE / "gateway" / ROOMS[title] / "README.md").read_text()
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def counted(kind):
    return NOTED.totals()[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_the_test_that_shows_a_failure_exists(kind):
    file, _, name = TABLE[kind].test.partition("::")
    tree = ast.parse((HOUSE / "tests" / file).read_text())

    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = {node.name for node in ast.walk(tree) if isinstance(node, functions)}
    assert name in found


def test_the_readme_has_the_table_of_failures():
    rows = [
        f"| `{kind}` | {one.what} | {one.detected} | {one.recovery} "
        f"| `{one.test.rpartition('::')[2]}` |"
        for kind, one in TABLE.items()
    ]

    assert rows == re.findall(r"^\| `.*\|$", section("Failures"), re.MULTILINE)


def test_what_is_counted_elsewhere_is_counted_here_by_its_kind():
    before = NOTED.totals()

    metrics.SUPERSEDED.inc()
    metrics.LOST_MADS.labels("sweep").inc()
    metrics.LOST_MADS.labels("event").inc()
    metrics.CORRUPTED.inc()
    metrics.DEAD.labels("poison").inc()
    metrics.DEAD.labels("trimmed").inc()

    more = {kind: n - before[kind] for kind, n in NOTED.totals().items()}
    assert {kind: n for kind, n in more.items() if n} == {
        "stale_owner": 1,
        "client_gone": 2,
        "corrupted_state": 1,
        "poison_command": 1,
        "lost_entries": 1,
    }


def test_a_failure_that_lasts_is_counted_once():
    """
    A bus that is away is noticed with every tick, and is one failure.
    """
    now = [100.0]
    failures = FailureCounter(clock=lambda: now[0])

    for _ in range(30):
        failures.count("hot_tier_away", within_s=10)
        now[0] += 2
    assert failures.totals()["hot_tier_away"] == 1

    now[0] += 10
    failures.count("hot_tier_away", within_s=10)
    assert failures.totals()["hot_tier_away"] == 2


async def test_a_breaker_counts_a_tier_away_once_however_many_probes_fail():
    clock = [0.0]
    breaker = TierBreaker("warm", clock=lambda: clock[0])
    before = counted("warm_tier_away")

    async def away():
        raise Unavailable("gone")

    for _ in range(FAILURES + 3):
        with pytest.raises(Unavailable):
            await breaker.run(away, 1.0)
        clock[0] += 100.0 if breaker.state != "closed" else 0.0

    assert counted("warm_tier_away") == before + 1


async def test_a_deaf_lane_is_ended_and_counted():
    """
    Its connection is there, but no exchange has completed for too long.
    """

    class Deaf:
        polled_at = time.monotonic() - DEAF_S - 1

    replica = SessionManager.__new__(SessionManager)
    serving = asyncio.create_task(asyncio.sleep(60))
    replica._served = {3: Deaf()}
    replica._serving = {3: serving}
    before = counted("replica_deaf")

    replica._drop_deaf()

    await asyncio.wait([serving])
    assert serving.cancelled()
    assert counted("replica_deaf") == before + 1


def test_every_failure_is_told_to_prometheus():
    [family] = NOTED.collect()

    assert {sample.labels["kind"] for sample in family.samples} == set(KINDS)
    assert {sample.name for sample in family.samples} == {"everbus_failures_total"}

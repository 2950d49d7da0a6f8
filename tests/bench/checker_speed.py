"""
The speed of the checks: a synthetic history of interleaved clients, in one process.

Run: python -m tests.bench.checker_speed [OPERATIONS]
"""

import resource
import sys
import time

from everbus.compose.verify.expectation import SessionExpectation
from everbus.compose.verify.session_checks import LogCheck, ObservedSession, check_state
from everbus.compose.verify.violations import Violations

SESSIONS = 1_000
CLIENTS = 10


def main(operations: int) -> None:
    """
    Record and check *operations* updates; print both speeds and the memory.
    """
    each = operations // SESSIONS
    began = time.perf_counter()
    expectations = [recorded(f"s{n}", each) for n in range(SESSIONS)]
    recorded_s = time.perf_counter() - began

    violations, began = Violations(), time.perf_counter()
    for expectation in expectations:
        check = LogCheck(expectation, violations, "update")
        for n in range(each):
            check.see(n + 2, (n % CLIENTS, n // CLIENTS + 1))
        check.end()
        observed = ObservedSession(each + 1, 0, {})
        check_state(expectation, observed, violations, log_checked=True)
    checked_s = time.perf_counter() - began

    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{operations:,} operations in {SESSIONS:,} sessions: recorded "
        f"{operations / recorded_s:,.0f}/s, checked {operations / checked_s:,.0f}/s, "
        f"peak {peak_mib:.0f} MiB; {violations.line()}"
    )


def recorded(session: str, updates: int) -> SessionExpectation:
    """
    The expectation after so many acknowledged updates of CLIENTS clients in turn.
    """
    made = SessionExpectation(session, 1)
    for n in range(updates):
        marks = made.updates_of(n % CLIENTS)
        marks.acknowledge(marks.give())
        made.answer(n + 2)

    return made


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2_000_000)

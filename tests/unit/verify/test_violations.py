"""
Violations are counted in full; the first few of each kind are kept word for word.
"""

from everbus.compose.verify.violations import (
    KEPT,
    KINDS,
    MEANINGS,
    Violation,
    Violations,
)


def lost(session="s1", n=1):
    return Violation("lost", session, f"append {n}")


def test_each_kind_has_a_meaning():
    assert set(MEANINGS) == set(KINDS)


def test_the_verdict_counts_all_and_keeps_the_first_few():
    violations = Violations()

    assert violations.line() == "verdict: clean"
    for n in range(7):
        violations.note(lost(n=n))
    violations.note(Violation("false_refusal", "s2", "x"), 2)

    assert violations.line() == "verdict: NOT clean: 7 lost, 2 false refusal"
    assert not violations.clean
    kinds = [violation.kind for violation in violations.first]
    assert kinds == ["lost"] * KEPT + ["false_refusal"]


def test_a_violation_reads_as_a_line():
    doubled = Violation("doubled", "s1", "append 1", 7, "i.0.3")

    assert str(lost()) == "lost: session s1: append 1"
    assert str(doubled) == "doubled: session s1, number 7, command i.0.3: append 1"


def test_the_violations_of_another_check_are_added():
    part, whole = Violations(), Violations()
    for n in range(7):
        part.note(lost(n=n))

    whole.note(lost("s0"))
    whole.add(part)

    assert whole.counts == {"lost": 8}
    assert len(whole.first) == KEPT

"""
A diagnosis of a whole bus: findings by part of the deployment, troubles first.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from everbus.compose.command_output import cell_text
from everbus.compose.settings_checks import CHECKS
from everbus.gateway.health.indicators import PARTS
from everbus.gateway.health.verdicts import GRADES, IndicatorResult, Verdict

# Indicator → its part: that of its definition, or the settings here.
PART_OF: dict[str, str] = {
    one.name: part for part, indicators in PARTS.items() for one in indicators
} | dict.fromkeys(CHECKS, "settings")


class Diagnosis(NamedTuple):
    """
    The result of one examination.

    Attributes:
        at_ms: the time on the bus's clock.
        findings: one of each indicator, in the order of their definition.
    """

    at_ms: int
    findings: Sequence[IndicatorResult]

    @property
    def verdicts(self) -> dict[Verdict, int]:
        """
        Number of findings by verdict.
        """
        return verdicts_of(self.findings)

    def troubles(self) -> list[IndicatorResult]:
        """
        The findings that do not pass, failures first.
        """
        return [one for one in _worst_first(self.findings) if one.verdict != "pass"]

    def by_part(self) -> dict[str, list[IndicatorResult]]:
        """
        The findings of each part, failures first; so are the parts with failures.
        """
        parts: dict[str, list[IndicatorResult]] = {}
        for finding in _worst_first(self.findings):
            parts.setdefault(PART_OF[finding.name], []).append(finding)

        return parts

    def document(self) -> dict[str, Any]:  # of any JSON
        """
        The diagnosis for programs.
        """
        return {
            "at_ms": self.at_ms,
            "verdicts": self.verdicts,
            "findings": [
                one._asdict() | {"part": PART_OF[one.name]} for one in self.findings
            ],
        }


def verdicts_of(findings: Sequence[IndicatorResult]) -> dict[Verdict, int]:
    """
    Number of *findings* by verdict.
    """
    counted = Counter(one.verdict for one in findings)

    return {verdict: counted[verdict] for verdict in GRADES}


def measured_text(finding: IndicatorResult) -> str:
    """
    What was measured, and the thresholds, on one line without control characters.
    """
    return f"{cell_text(finding.shown)} ({finding.threshold})"


def _worst_first(findings: Sequence[IndicatorResult]) -> list[IndicatorResult]:
    return sorted(findings, key=lambda one: -GRADES[one.verdict])

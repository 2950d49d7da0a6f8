"""
The pages of error codes and of health indicators.
"""

from everbus.bus.errors import (
    ERRORS,
    EverbusError,
    Malformed,
    Rejection,
    Unavailable,
)
from everbus.compose.catalogue.entries import catalogue
from everbus.compose.reference.markdown import about, in_code, page, table
from everbus.gateway.health.indicators import PARTS
from everbus.gateway.telemetry.failures import TABLE

FAMILIES: dict[type[EverbusError], str] = {
    Rejection: "lasts",
    Unavailable: "passes: repeat it",
    Malformed: "dead letter",
}


def errors_page() -> str:
    """
    Codes, classes and statuses; causes of dead letters.
    """
    rows = (
        (
            in_code(code),
            in_code(kind.__name__),
            str(kind.status),
            _family(kind),
            about(kind),
        )
        for code, kind in sorted(ERRORS.items())
    )
    causes = (
        (in_code(one.name), one.meaning, one.reason, one.remedy)
        for one in catalogue()
        if one.kind == "cause of dead letters"
    )

    return page(
        "Errors",
        "A code is the same on the bus, in REST's problem documents and in the CLI; "
        "`everbus explain CODE` prints one.",
        table(("code", "class", "HTTP", "kind", "meaning"), rows),
        "## Causes of dead letters",
        "`everbus dead list` groups dead letters by these.",
        table(("cause", "meaning", "usual reason", "what to do"), causes),
    )


def indicators_page() -> str:
    """
    Indicators with thresholds and remedies; kinds of failures.
    """
    rows = (
        (
            *(in_code(one.name), part, one.unit or "count"),
            *(one.threshold, one.means, one.remedy),
        )
        for part, indicators in PARTS.items()
        for one in indicators
    )
    failures = (
        (in_code(kind), one.what, one.detected, one.recovery)
        for kind, one in TABLE.items()
    )

    return page(
        "Indicators",
        "`everbus doctor` shows them; a manager exports them as `everbus_health` "
        "(0 pass, 1 warn, 2 fail) and `everbus_health_value`.",
        table(("indicator", "part", "unit", "threshold", "what it is", "remedy"), rows),
        "## Failures",
        "Each failure counts once in `everbus_failures_total`.",
        table(("kind", "what has happened", "noticed by", "recovery"), failures),
    )


def _family(kind: type[EverbusError]) -> str:
    found = (text for family, text in FAMILIES.items() if issubclass(kind, family))

    return next(found, "a fault of everbus")

"""
The one catalogue behind `everbus explain`, and the names that it has to hold.

An indicator has its meaning and its remedy where it is measured; all else stands in
the modules beside this one.
"""

from collections.abc import Iterator
from functools import cache
from typing import Literal, NamedTuple

from everbus.compose.catalogue.gateway_events import GATEWAY_EVENTS
from everbus.compose.catalogue.process_events import PROCESS_EVENTS
from everbus.compose.catalogue.refusals import CAUSES, CODES
from everbus.compose.catalogue.sdk_events import SDK_EVENTS
from everbus.compose.settings_checks import CHECKS
from everbus.gateway.health.indicators import INDICATORS

Kind = Literal["error code", "cause of dead letters", "health indicator", "log event"]


class Explanation(NamedTuple):
    """
    What one name means.

    Attributes:
        reason: why it usually happens.
        remedy: what to do.
    """

    kind: Kind
    name: str
    meaning: str
    reason: str
    remedy: str


@cache
def catalogue() -> tuple[Explanation, ...]:
    """
    All entries; a name may be of several kinds.
    """
    return (
        *_entries("error code", CODES),
        *_entries("cause of dead letters", CAUSES),
        *_indicators(),
        *_entries("log event", SDK_EVENTS + GATEWAY_EVENTS + PROCESS_EVENTS),
    )


def _entries(kind: Kind, text: str) -> Iterator[Explanation]:
    for paragraph in text.strip().split("\n\n"):
        name, _, told = " ".join(paragraph.split()).partition(": ")
        meaning, reason, remedy = told.split(" | ")
        yield Explanation(kind, name, meaning, reason, remedy)


def _indicators() -> Iterator[Explanation]:
    for one in INDICATORS:
        unit = f" {one.unit}" if one.unit not in ("", "state") else ""
        reason = f"It is beyond its threshold: {one.threshold}{unit}."
        meaning = f"{one.means[0].upper()}{one.means[1:]}."
        yield Explanation("health indicator", one.name, meaning, reason, one.remedy)
    for name, (means, remedy) in CHECKS.items():
        meaning = f"{means[0].upper()}{means[1:]}."
        reason = "The settings where everbus doctor runs, or the server that they name."
        yield Explanation("health indicator", name, meaning, reason, remedy)

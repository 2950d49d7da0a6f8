"""
Queries of Prometheus: whether what they name exists in our processes.

No parser of the language: of it only what our alerts and boards use. What this does not
know, it refuses.
"""

import importlib
import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from prometheus_client.metrics import MetricWrapperBase

from everbus.gateway.health.indicators import INDICATORS
from everbus.gateway.telemetry.failures import KINDS
from tests.unit.deployment.manifests import ROOT

# Labels that Prometheus adds to each series it scrapes.
SCRAPED = frozenset({"job", "instance"})
AGGREGATIONS = frozenset({"sum", "max", "min", "avg", "count"})
OF_RANGES = frozenset({"rate", "increase"})
WORDS = AGGREGATIONS | OF_RANGES | {"histogram_quantile", "absent", "by", "bool"}
# Labels whose values are known here, by series.
_INDICATORS = {one.name for one in INDICATORS}
VALUES = {
    ("everbus_health", "indicator"): _INDICATORS,
    ("everbus_health_value", "indicator"): _INDICATORS,
    ("everbus_failures_total", "kind"): set(KINDS),
}
_SERIES = re.compile(r"\b(everbus_\w+|up)\b(?:{([^}]*)})?(\[[^]]*\])?")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')
_AGGREGATION = re.compile(rf"\b(?:{'|'.join(AGGREGATIONS)})\s*(?:by \(([^)]*)\)\s*)?\(")
_GROUPED = re.compile(r"\bby \(([^)]*)\)")


class Series(NamedTuple):
    """
    What one name stands for in Prometheus.
    """

    adds_up: bool
    labels: frozenset[str]


class Use(NamedTuple):
    """
    A series as a query uses it: where, chosen by what, and over which range.
    """

    name: str
    matchers: str
    ranged: str
    at: int


@cache
def series() -> dict[str, Series]:
    """
    What our processes tell, by the names under which Prometheus has it.
    """
    found = {"up": Series(False, SCRAPED)}
    for path in sorted((ROOT / "gateway").rglob("metrics.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for metric in vars(importlib.import_module(f"everbus.{name}")).values():
            if isinstance(metric, MetricWrapperBase):
                found |= _series_of(metric)
    # A collector of its own, without a wrapper.
    found["everbus_failures_total"] = Series(True, SCRAPED | {"kind"})

    return found


def _series_of(metric: MetricWrapperBase) -> dict[str, Series]:
    labels = SCRAPED | set(metric._labelnames)
    if metric._type == "gauge":
        return {metric._name: Series(False, labels)}
    if metric._type == "counter":
        return {f"{metric._name}_total": Series(True, labels)}
    parts = {"bucket": labels | {"le"}, "sum": labels, "count": labels}

    return {f"{metric._name}_{end}": Series(True, of) for end, of in parts.items()}


def check_expression(expression: str) -> None:
    """
    See that each series in it exists, has the labels by which it is chosen and grouped,
    and is a rate exactly if it adds up.
    """
    used = list(_used(expression))
    assert used, f"no series: {expression}"
    for use in used:
        _check_use(use, expression)
    for group, inside in _groups(expression):
        for use in _used(inside):
            assert group <= series()[use.name].labels, f"by {group}: {expression}"
    _check_words(expression)


def labels_of(expression: str) -> set[str]:
    """
    The labels of the answer, for legends and summaries: those of the first aggregation,
    which is the outermost.
    """
    outer = _AGGREGATION.search(expression)
    if outer:
        return set(re.findall(r"\w+", outer[1] or "")) - {"le"}
    used = [series()[use.name].labels for use in _used(expression)]

    return set().union(*used)


def _used(expression: str) -> Iterator[Use]:
    for found in _SERIES.finditer(expression):
        yield Use(found[1], found[2] or "", found[3] or "", found.start())


def _check_use(use: Use, expression: str) -> None:
    assert use.name in series(), f"{use.name} is no metric"
    known = series()[use.name]
    before = expression[: use.at]
    is_rate = any(before.endswith(f"{word}(") for word in OF_RANGES)
    assert is_rate == bool(use.ranged) == known.adds_up, f"{use.name} in {expression}"
    for label, value in _MATCHER.findall(use.matchers):
        assert label in known.labels, f"{use.name} has no label {label}"
        values = set(value.split("|"))
        assert values <= VALUES.get((use.name, label), values), f"{label} is {value}"
    assert not _MATCHER.sub("", use.matchers).strip(", "), use.matchers


def _groups(expression: str) -> Iterator[tuple[set[str], str]]:
    """
    The labels of each `by`, and what is grouped: after it, or before it.
    """
    for found in _GROUPED.finditer(expression):
        labels = set(re.split(r",\s*", found[1]))
        after = expression[found.end() :].lstrip()
        before = expression[: found.start()].rstrip()
        if after.startswith("("):
            yield labels, after[: _closes(after, "(", ")")]
        else:
            assert before.endswith(")"), expression
            yield labels, before[-_closes(before[::-1], ")", "(") :]


def _closes(text: str, opening: str, closing: str) -> int:
    """
    Where the bracket closes that *text* begins with.
    """
    depth = 0
    for n, character in enumerate(text, 1):
        depth += (character == opening) - (character == closing)
        if depth == 0:
            return n
    raise AssertionError(f"a bracket stays open: {text}")


def _check_words(expression: str) -> None:
    left = _GROUPED.sub("by ", _SERIES.sub("", expression))
    assert left.count("(") == left.count(")"), f"brackets: {expression}"
    unknown = set(re.findall(r"\b[a-z_]\w*", left)) - WORDS
    assert not unknown, f"{unknown} in {expression}"

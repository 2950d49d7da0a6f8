"""
Every metric is in the table of telemetry/README.md with its labels, and the reverse.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.unit.deployment.queries import SCRAPED, series

HOUSE = Path(__file__).parent.parent.parent
PACKAGES = ("bus", "handlers", "gateway", "archiver", "compose")
MAKERS = frozenset({"Counter", "Gauge", "Histogram", "Summary", "CounterMetricFamily"})
# Labels of which there are few values, and what bounds them.
BOUNDED = {
    "bound": "the names of docs/bounds.md",
    "cause": "fixed lists: gateway.metrics.CAUSES, causes of a lane's disturbance",
    "code": "the codes of bus.errors, and `repeated`",
    "indicator": "everbus.gateway.health.indicators",
    "kind": "kinds of commands and heartbeats, of failures",
    "lane": "partitions, and `mads`",
    "limit": "the limits of gateway.edge.limits",
    "method": "known HTTP methods, else `other`",
    "noticed": "event or sweep",
    "outcome": "fixed lists and error codes",
    "route": "route templates, else `unmatched`",
    "sent": "no or maybe",
    "source": "bus or warm",
    "status": "1xx to 5xx",
    "stream": "kinds of streams",
    "tier": "warm or cold",
}


class Made(NamedTuple):
    """
    One metric, as the code makes it.
    """

    name: str
    labels: tuple[str, ...]


def called(node: ast.Call) -> str:
    return getattr(node.func, "attr", "") or getattr(node.func, "id", "")


def strings(node: ast.expr | None) -> tuple[str, ...]:
    return tuple(ast.literal_eval(node)) if node is not None else ()


def made_in(source: str) -> Iterator[Made]:
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or called(node) not in MAKERS:
            continue
        if not node.args or not isinstance(node.args[0], ast.Constant):
            continue
        given = {one.arg: one.value for one in node.keywords}
        listed = given.get("labels") or given.get("labelnames")
        if listed is None and len(node.args) > 2:
            listed = node.args[2]
        name = str(node.args[0].value)
        if called(node).startswith("Counter"):
            name = name.removesuffix("_total") + "_total"
        yield Made(name, strings(listed))


def in_code() -> set[Made]:
    files = (path for room in PACKAGES for path in (HOUSE / room).rglob("*.py"))

    return {made for path in files for made in made_in(path.read_text())}


def in_table() -> set[Made]:
    text = (HOUSE / "gateway" / "telemetry" / "README.md").read_text()
    section = text.partition("\n## Metrics\n")[2].partition("\n## ")[0]
    found = set()
    for row in re.findall(r"^\| `everbus_.*$", section, re.MULTILINE):
        names, labels, _ = (cell.strip() for cell in row.strip("|").split("|"))
        each = labels.split(", ") if "`, `" in names else [labels]
        listed = re.findall(r"`(\w+)`", names)
        for n, name in enumerate(listed):
            own = each[n] if len(listed) > 1 and len(each) == len(listed) else labels
            found.add(Made(name, tuple(x for x in own.split(", ") if x not in "-")))
    return found


def test_the_table_and_the_code_have_the_same_metrics():
    assert in_table() == in_code()


def test_queries_are_checked_against_all_of_them():
    known = series()

    for made in in_code():
        name = made.name if made.name in known else f"{made.name}_sum"
        assert known[name].labels == SCRAPED | set(made.labels)
        assert known[name].adds_up == name.endswith(("_total", "_sum"))


def test_every_label_has_few_values():
    """
    No ids, no names of people or tenants, no paths: each is a time series.
    """
    assert {label for made in in_code() for label in made.labels} <= BOUNDED.keys()


def test_every_name_has_our_prefix_and_one_meaning():
    names = [made.name for made in in_code()]

    assert all(name.startswith("everbus_") for name in names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("source", "made"),
    [
        ("Counter('a_total', 'x', ['k'])", Made("a_total", ("k",))),
        ("Counter('a', 'x', labelnames=['k', 'l'])", Made("a_total", ("k", "l"))),
        ("prometheus_client.Gauge('a', 'x')", Made("a", ())),
        ("CounterMetricFamily('a', 'x', labels=['k'])", Made("a_total", ("k",))),
    ],
)
def test_a_metric_is_found_however_it_is_made(source: str, made: Made):
    assert list(made_in(source)) == [made]

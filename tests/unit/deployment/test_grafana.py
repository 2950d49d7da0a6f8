"""
The board of Grafana: a board that can be imported, whose queries have an answer.
"""

import json
import re
from itertools import combinations

import pytest

from tests.unit.deployment.manifests import COMPOSE
from tests.unit.deployment.queries import check_expression, labels_of

TEXT = (COMPOSE / "grafana/everbus.json").read_text()
BOARD = json.loads(TEXT)
PANELS = {panel["id"]: panel for panel in BOARD["panels"]}
DRAWN = {n: panel for n, panel in PANELS.items() if panel["type"] != "row"}
TYPES = {"row", "stat", "timeseries", "state-timeline"}
# Grafana's units that are ours: its ids, not their titles.
UNITS = {"none", "s", "bytes", "ops", "reqps"}
# Columns of a board.
WIDTH = 24


def each_panel(panels):
    return pytest.mark.parametrize(
        "panel", [pytest.param(one, id=one["title"]) for one in panels.values()]
    )


def test_the_board_has_what_grafana_asks_of_one():
    assert BOARD["title"] == BOARD["uid"] == "everbus"
    assert BOARD["schemaVersion"] >= 39
    assert "id" not in BOARD, "an id is of one Grafana only"
    assert set(BOARD["time"]) == {"from", "to"}
    assert len(PANELS) == len(BOARD["panels"]), "two panels have the same id"


def test_the_data_source_is_chosen_where_it_is_imported():
    [variable] = BOARD["templating"]["list"]

    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    wanted = {"type": "prometheus", "uid": f"${{{variable['name']}}}"}
    assert all(panel["datasource"] == wanted for panel in DRAWN.values())


def test_it_names_no_host():
    assert not re.search(
        r"https?:|localhost|\d+\.\d+\.\d+\.\d+|:\d{4}|/work|/home", TEXT
    )


def test_rows_go_from_health_to_the_edge():
    rows = [panel["title"] for panel in BOARD["panels"] if panel["type"] == "row"]

    assert rows == [
        *("Health", "Commands and latency", "Lanes", "Outbox", "MADs and losses"),
        *("Dead letters", "Archiver and tiers", "Edge"),
    ]


def test_no_panel_hides_another():
    for one, other in combinations(PANELS.values(), 2):
        a, b = one["gridPos"], other["gridPos"]
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        below = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or below, f"{one['title']} and {other['title']}"
        assert a["x"] + a["w"] <= WIDTH


@each_panel(PANELS)
def test_a_panel_has_what_grafana_asks_of_one(panel):
    assert panel["type"] in TYPES
    assert panel["title"]
    assert set(panel["gridPos"]) == {"x", "y", "w", "h"}
    if panel["type"] == "row":
        assert (panel["collapsed"], panel["panels"]) == (False, [])
    else:
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS


@each_panel(DRAWN)
def test_a_panel_asks_for_metrics_that_there_are(panel):
    refs = [target["refId"] for target in panel["targets"]]
    assert refs
    assert len(refs) == len(set(refs))
    for target in panel["targets"]:
        check_expression(target["expr"])
        legend = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        # Two lines of one panel must not have the same name.
        assert legend == labels_of(target["expr"])
        for span in re.findall(r"\[(.*?)\]", target["expr"]):
            assert span == "$__rate_interval"

"""
The report as a page, as JSON and as lines: everything escaped, nothing from outside.
"""

import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from everbus.compose.bench.checking import CheckMethod
from everbus.compose.bench.figures import Figures
from everbus.compose.bench.kills import Kill
from everbus.compose.bench.page import page_of
from everbus.compose.bench.plan import BenchPlan
from everbus.compose.bench.report import json_of, notes, report_of
from everbus.compose.verify.expectation import SessionExpectation
from everbus.compose.verify.violations import Violation, Violations

EVIL = "<script>alert(1)</script>\"'&"


class Reader(HTMLParser):
    """
    Collects tags, attributes and text.
    """

    def __init__(self):
        super().__init__()
        self.tags, self.open, self.attributes, self.text = [], [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.attributes += attrs

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.text += text


def a_bench(*, well=True, kills=True, sent=500):
    plan = BenchPlan(mix={"append": 1, "get_session": 2}, seconds=5, rate=100.0)
    figures, violations = Figures(1.0, 5.0), Violations()
    for n in range(sent):
        due = n / 100
        if not 2.0 < due < 3.0:
            figures.note("append", due, due, due + 0.001 + n % 7 / 1000, "ok")
    figures.note("get_session", 4.0, 4.0, 4.5, "timeout")
    expectation = SessionExpectation("s1", 1)
    marks = expectation.appends_of(0)
    marks.acknowledge(marks.give())
    marks.give()
    if not well:
        violations.note(Violation("lost", EVIL, EVIL))
    one = Kill(at_s=2.0, replica=EVIL, pid=7, lanes=8, in_flight=31, ready_s=0.5)
    return SimpleNamespace(
        plan=plan,
        figures=figures,
        violations=violations,
        expectations=[expectation],
        kills=[one] if kills else [],
        mads=[None],
        ended="",
        load=SimpleNamespace(schedule=SimpleNamespace(never_sent=3)),
        load_s=6.0,
        settled_s=6.5,
    )


def a_report(place="here", **bench):
    made = a_bench(**bench)
    seen = CheckMethod("sdk", 1, 2, f"no MongoDB {EVIL}")
    return report_of(made, seen, place), made.figures


def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


def test_the_page_loads_nothing_and_runs_nothing():
    page = page_of(*a_report())

    reader = read(page)
    names = {name for name, _ in reader.attributes}
    assert not names & {"src", "href", "srcset", "data", "action", "onload"}
    assert not {"script", "link", "img", "iframe", "object"} & set(reader.tags)
    assert re.findall(r"url\(|@import|https?:", page) == []
    assert "default-src 'none'" in page
    assert reader.open == []
    assert reader.tags.count("svg") == 2


def test_everything_on_the_page_is_escaped():
    """
    A session's id, an error's text and a bus's URL come from elsewhere.
    """
    page = page_of(*a_report(EVIL, well=False))

    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 3
    assert EVIL in read(page).text


def test_the_page_is_readable_in_light_and_dark():
    page = page_of(*a_report())

    assert "prefers-color-scheme:dark" in page
    assert "color-scheme:light dark" in page


def test_kills_are_marked_where_they_happened():
    page = page_of(*a_report())

    assert page.count('class="kill"') == 2
    assert "replica killed at 2 s" in page
    assert 'class="kill"' not in page_of(*a_report(kills=False))


def test_a_percentile_is_not_drawn_where_nothing_was_due():
    page = page_of(*a_report())

    assert page.count('class="line p50"') == 2


@pytest.mark.parametrize("sent", [0, 1])
def test_a_load_that_sent_next_to_nothing_has_a_page_too(sent):
    page = page_of(*a_report(sent=sent))

    assert read(page).tags.count("svg") == 2
    assert re.findall(r'="[^"]*\b(?:nan|inf)\b', page) == []


def test_the_json_has_figures_verdict_and_kills():
    report, _ = a_report(well=False)

    told = json.loads(json_of(report))

    assert told["clean"] is False
    assert told["verdict"] == "verdict: NOT clean: 1 lost"
    assert told["violations"]["lost"] == 1
    assert told["first"][0]["session"] == EVIL
    assert told["kills"][0]["bit"] is True
    assert told["refusals"] == {"get_session: timeout": 1}
    [row] = told["rows"]
    assert row["call"] == "append"
    assert row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"] <= row["p999_ms"]
    assert row["max_ms"] == 7.0
    assert told["checked"]["acknowledged"] == told["checked"]["unknown"] == 1


def test_people_are_told_what_weakens_the_figures():
    told = "\n".join(notes(a_report()[0]))

    assert "public SDK" in told
    assert "RATE NOT REACHED: 3 were due" in told
    assert "1 replicas killed (SIGKILL), 1 of them at work: 8 lanes" in told
    assert "31 commands in flight" in told
    assert "checked by their length" in told


@pytest.mark.parametrize(
    ("lanes", "in_flight", "waited", "bit"),
    [(0, 3, 3, False), (3, 0, 0, False), (3, 1, 0, True), (3, 0, 1, True)],
)
def test_a_kill_that_hit_nobody_at_work_did_not_bite(lanes, in_flight, waited, bit):
    kill = Kill(
        **{"at_s": 1.0, "replica": "m", "pid": 1},
        **{"lanes": lanes, "in_flight": in_flight, "waited": waited},
    )

    assert kill.bit is bit

"""
The report as one HTML page that needs nothing from anywhere else.
"""

from collections.abc import Iterable
from html import escape

from everbus.compose.bench.chart import latency_chart, throughput_chart
from everbus.compose.bench.figures import Figures
from everbus.compose.bench.report import BenchReport, notes
from everbus.compose.verify.violations import KINDS, MEANINGS

_HEADS = ("call", "until", "count", "/s", "p50 ms", "p90", "p99", "p99.9", "max")
_STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1b1f24;--dim:#667;--line:#d8dde3;
--heat:#1f6feb;--good:#1a7f37;--bad:#cf222e;--p50:#1b1f24;--p90:#9a6700;--p99:#8250df}
@media(prefers-color-scheme:dark){:root{--paper:#0d1117;--ink:#e6edf3;--dim:#9198a1;
--line:#30363d;--heat:#58a6ff;--good:#3fb950;--bad:#f85149;--p50:#e6edf3;--p90:#d29922;
--p99:#d2a8ff}}
body{font:15px/1.5 system-ui,sans-serif;background:var(--paper);color:var(--ink);
max-width:920px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.4rem}h2{font-size:1.05rem;margin-top:2rem}
.verdict{font-weight:600;padding:.5rem .8rem;border-left:5px solid}
.clean{color:var(--good)}.unclean{color:var(--bad)}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%}
th,td{padding:.25rem .6rem;border-bottom:1px solid var(--line);text-align:right}
th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){text-align:left}
svg{width:100%;height:auto;font-size:11px}svg text{fill:var(--dim)}
.grid{stroke:var(--line)}.heat{fill:var(--heat)}.well{fill:var(--heat)}
.ill{fill:var(--bad)}.kill{stroke:var(--bad);stroke-width:1.5;stroke-dasharray:4 3}
.line{fill:none;stroke-width:1.6}.p50{stroke:var(--p50)}.p90{stroke:var(--p90)}
.p99{stroke:var(--p99)}.key span{margin-right:1.2rem}.key i{display:inline-block;
width:1.4em;border-top:2px solid;margin-right:.4em;vertical-align:middle}
li{overflow-wrap:anywhere}.dim{color:var(--dim)}
"""
_HEAD = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    "style-src 'unsafe-inline'\">"
    '<meta name="viewport" content="width=device-width">'
    f"<title>everbus bench</title><style>{_STYLE}</style></head>"
)
_KEY = (
    '<p class="key dim"><span><i style="color:var(--p50)"></i>p50</span>'
    '<span><i style="color:var(--p90)"></i>p90</span>'
    '<span><i style="color:var(--p99)"></i>p99</span>'
    '<span><i style="color:var(--bad)"></i>replica killed, or refused</span></p>'
)


def page_of(report: BenchReport, figures: Figures) -> str:
    """
    The page; nothing in it is loaded, and everything is escaped.
    """
    kills = [kill.at_s for kill in report.kills]
    kind = "clean" if report.clean else "unclean"
    parts = (
        "<h1>everbus bench</h1>",
        f'<p class="verdict {kind}">{escape(report.verdict)}</p>',
        _list(map(str, report.first)),
        "<h2>Latency over time</h2>",
        '<p class="dim">All calls that ended well, where they were due; the warm-up '
        f"is the first {report.plan.warm_up_s:g} s.</p>",
        _KEY,
        latency_chart(figures.bins, figures.bin_s, kills),
        "<h2>Throughput over time</h2>",
        throughput_chart(figures.bins, figures.bin_s, kills),
        "<h2>Figures</h2>",
        _figures(report),
        _list(notes(report)),
        "<h2>Check</h2>",
        _violations(report),
        "<h2>Plan</h2>",
        _plan(report),
    )
    return f"{_HEAD}<body>{''.join(parts)}</body></html>\n"


def _figures(report: BenchReport) -> str:
    rows = (
        (
            row.call,
            "its reply" if row.answered else "it is on the bus",
            *(f"{row.count:,}", f"{row.per_s:,.0f}"),
            *(f"{ms:,.3f}" for ms in (row.p50_ms, row.p90_ms, row.p99_ms)),
            *(f"{ms:,.3f}" for ms in (row.p999_ms, row.max_ms)),
        )
        for row in report.rows
    )
    return _table(_HEADS, rows)


def _violations(report: BenchReport) -> str:
    rows = (
        (kind.replace("_", " "), MEANINGS[kind], f"{report.violations[kind]:,}")
        for kind in KINDS
    )
    return _table(("violation", "meaning", "count"), rows)


def _plan(report: BenchReport) -> str:
    plan = report.plan
    mix = ", ".join(f"{call}={share}" for call, share in plan.mix.items())
    options = {"mix": mix} | {
        name: getattr(plan, name) for name in plan.__struct_fields__ if name != "mix"
    }
    options |= report.software

    return _table(("option", "value"), ((n, str(v)) for n, v in options.items()))


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{escape(one)}</th>" for one in heads)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _list(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)

    return f"<ul>{items}</ul>" if items else ""

"""
Charts of a load over time, as SVG that needs nothing else.
"""

import math
from collections.abc import Iterator, Sequence
from html import escape

from everbus.compose.bench.figures import Bin

WIDTH, HEIGHT = 880, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 14, 30
_ROWS_A_DOUBLING = 3
_SHARES = ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"))


def latency_chart(bins: Sequence[Bin], bin_s: float, kills: Sequence[float]) -> str:
    """
    A heat map: when it was due across, how long it took upwards (a logarithmic scale),
    the darker the more; percentiles as lines, kills as marks.
    """
    low, high = _range_of(bins)
    place = _PlotArea(len(bins), bin_s, low, high)
    parts = [*_time_axis(place), *_latency_axis(place, low, high)]
    most = max((n for one in bins for n in _cells(one, place).values()), default=1)
    for number, one in enumerate(bins):
        parts += _column(place, number, one, most)
    parts += (_lines(place, bins, share, name) for share, name in _SHARES)
    parts += _marks(place, kills)

    return _svg("latency over time", parts)


def throughput_chart(bins: Sequence[Bin], bin_s: float, kills: Sequence[float]) -> str:
    """
    How many ended well each second, and how many otherwise on top of them.
    """
    rates = [(sum(b.done.values()) / bin_s, b.refused / bin_s) for b in bins]
    most = max((well + ill for well, ill in rates), default=0.0) or 1.0
    place = _PlotArea(len(bins), bin_s, 1, 2)
    parts = [*_time_axis(place)]
    for share in (0.0, 0.5, 1.0):
        parts += _level(place.bottom - share * place.high, f"{most * share:,.0f}/s")
    for number, (well, ill) in enumerate(rates):
        x, tall = place.x(number), place.high * well / most
        if well:
            parts.append(_rect("well", x, place.bottom - tall, place.step, tall))
        if ill:
            more = place.high * ill / most
            y = place.bottom - tall - more
            parts.append(_rect("ill", x, y, place.step, more))
    parts += _marks(place, kills)

    return _svg("commands per second", parts)


class _PlotArea:
    """
    Where things are: bins across, microseconds upwards.
    """

    bottom = HEIGHT - _BOTTOM
    high = HEIGHT - _BOTTOM - _TOP

    def __init__(self, bins: int, bin_s: float, low_us: int, high_us: int) -> None:
        self.bins = max(bins, 1)
        self.seconds = self.bins * bin_s
        self.step = (WIDTH - _LEFT - _RIGHT) / self.bins
        self._low = math.log2(low_us)
        self._doublings = max(math.log2(high_us) - self._low, 1.0)

    def x(self, number: float) -> float:
        return _LEFT + number * self.step

    def x_at(self, seconds: float) -> float:
        return self.x(min(seconds / self.seconds, 1.0) * self.bins)

    def y(self, us: float) -> float:
        share = (math.log2(max(us, 1)) - self._low) / self._doublings

        return self.bottom - self.high * min(max(share, 0.0), 1.0)

    def row(self, us: int) -> int:
        return math.floor(math.log2(max(us, 1)) * _ROWS_A_DOUBLING)


def _range_of(bins: Sequence[Bin]) -> tuple[int, int]:
    lows = [us for one in bins for us, _ in one.latencies.buckets()]
    low, high = max(min(lows, default=100), 16), max(lows, default=1000)

    return 1 << (low.bit_length() - 1), 1 << max(high, 2 * low).bit_length()


def _cells(one: Bin, place: _PlotArea) -> dict[int, int]:
    cells: dict[int, int] = {}
    for us, count in one.latencies.buckets():
        row = place.row(us)
        cells[row] = cells.get(row, 0) + count

    return cells


def _column(place: _PlotArea, number: int, one: Bin, most: int) -> Iterator[str]:
    for row, count in _cells(one, place).items():
        top = place.y(2 ** ((row + 1) / _ROWS_A_DOUBLING))
        bottom = place.y(2 ** (row / _ROWS_A_DOUBLING))
        # Few are as important as many here: hence the root.
        shade = 0.12 + 0.88 * math.sqrt(count / most)
        yield _rect("heat", place.x(number), top, place.step, bottom - top, shade)


def _lines(place: _PlotArea, bins: Sequence[Bin], share: float, name: str) -> str:
    """
    One percentile over time; where nothing was due, the line is broken.
    """
    lines = [""]
    for number, one in enumerate(bins):
        if one.latencies.count:
            y = place.y(one.latencies.quantile_us(share))
            left, right = place.x(number), place.x(number + 1)
            lines[-1] += f"{left:.1f},{y:.1f} {right:.1f},{y:.1f} "
        elif lines[-1]:
            lines.append("")

    return "".join(
        f'<polyline class="line {name}" points="{line.strip()}"/>'
        for line in lines
        if line
    )


def _time_axis(place: _PlotArea) -> Iterator[str]:
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = place.x(share * place.bins)
        label = f"{place.seconds * share:g} s"
        yield _text(x, HEIGHT - 10, label, "middle" if share < 1 else "end")


def _latency_axis(place: _PlotArea, low: int, high: int) -> Iterator[str]:
    for power in range(1, 9):
        us = 10**power
        if low <= us <= high:
            label = f"{us} us" if us < 1000 else f"{us // 1000:,} ms"
            yield from _level(place.y(us), label)


def _level(y: float, label: str) -> Iterator[str]:
    yield (
        f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" '
        f'y2="{y:.1f}"/>'
    )
    yield _text(_LEFT - 6, y + 4, label, "end")


def _marks(place: _PlotArea, kills: Sequence[float]) -> Iterator[str]:
    for at_s in kills:
        x = place.x_at(at_s)
        yield (
            f'<line class="kill" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" '
            f'y2="{place.bottom}"><title>replica killed at {at_s:g} s</title></line>'
        )


def _rect(
    kind: str, x: float, y: float, wide: float, tall: float, shade: float = 1.0
) -> str:
    faint = f' fill-opacity="{shade:.2f}"' if shade < 1 else ""

    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{wide:.2f}" '
        f'height="{max(tall, 0.5):.1f}"{faint}/>'
    )


def _text(x: float, y: float, label: str, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(label)}</text>'
    )


def _svg(title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )

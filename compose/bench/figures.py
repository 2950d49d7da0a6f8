"""
The figures of a load while it runs: latencies by call, and over time.
"""

from collections import Counter

from everbus.compose.bench.histogram import Histogram

MOST_BINS = 240


class Bin:
    """
    One stretch of time.

    Attributes:
        latencies: of the calls that were due in it.
        done: call → how many ended well in it.
        refused: how many ended otherwise in it.
    """

    __slots__ = ("done", "latencies", "refused")

    def __init__(self) -> None:
        self.latencies = Histogram()
        self.done: Counter[str] = Counter()
        self.refused = 0


class Figures:
    """
    The figures of one load; times are seconds since its start.

    Attributes:
        calls: call → the latencies of successful calls, from their due times.
        late: the delay from due time to sending, caused by the load itself.
        refusals: (call, error code) → how often.
        last_s: when the last that counts has ended.
    """

    def __init__(self, warm_up_s: float, seconds: float) -> None:
        self.warm_up_s = warm_up_s
        self.bin_s = _bin_s(warm_up_s + seconds)
        self.calls: dict[str, Histogram] = {}
        self.late = Histogram()
        self.refusals: Counter[tuple[str, str]] = Counter()
        self.bins: list[Bin] = []
        self.last_s = warm_up_s

    def note(
        self, call: str, due_s: float, sent_s: float, end_s: float, code: str
    ) -> None:
        """
        One command's end; *code* is `ok`, or its error's.
        """
        ended = self._bin(end_s)
        if code == "ok":
            ended.done[call] += 1
            self._bin(due_s).latencies.note(_us(end_s - due_s))
        else:
            ended.refused += 1
        if due_s < self.warm_up_s:
            return
        self.last_s = max(self.last_s, end_s)
        self.late.note(_us(sent_s - due_s))
        if code == "ok":
            self.calls.setdefault(call, Histogram()).note(_us(end_s - due_s))
        else:
            self.refusals[call, code] += 1

    def _bin(self, at_s: float) -> Bin:
        place = min(max(int(at_s / self.bin_s), 0), 4 * MOST_BINS)
        while len(self.bins) <= place:
            self.bins.append(Bin())

        return self.bins[place]


def _bin_s(seconds: float) -> float:
    for step in (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0):
        if seconds / step <= MOST_BINS:
            return step
    return seconds / MOST_BINS


def _us(seconds: float) -> int:
    return round(seconds * 1e6)

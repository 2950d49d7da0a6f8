"""
Tables of what was measured: medians with their spread, ratios within each pass.

Nothing is measured here, and nothing is known of any peer but its name and kind.
"""

from collections.abc import Iterable, Mapping, Sequence

from tests.bench.rig import median, spread

# Arm → the figures of each of its passes.
Passes = Mapping[str, Sequence[Mapping[str, float]]]

RATE, WORKER, SERVER = "consume/s", "worker us", "server us"
ENQUEUE, P50, P99 = "enqueue/s", "result p50 ms", "result p99 ms"
QUEUE_DIGITS = {RATE: 0, WORKER: 1, SERVER: 1, ENQUEUE: 0, P50: 2, P99: 2}
# Figure of a store → its heading and digits.
STORE_FIGURES = {
    "per_s": ("/s", 0),
    "p50_ms": ("p50 ms", 3),
    "p99_ms": ("p99 ms", 3),
    "client_us": ("client CPU us", 0),
    "behind_us": ("CPU us behind", 0),
}
STORE_HEADS = [head for head, _ in STORE_FIGURES.values()]
NATIVE_GOAL, PYTHON_GOAL = 2.5, 10.0


def rows(heads: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    """
    A Markdown table.
    """
    lines = [heads, ["---"] * len(heads), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def figures(
    passes: Passes, digits: Mapping[str, int], counts: Mapping[str, int]
) -> str:
    """
    A row an arm, a column a figure; empty where an arm has none.
    """
    cells = [
        [
            arm,
            *(_cell(found, name, digits[name]) for name in digits),
            _n(found, arm, counts),
        ]
        for arm, found in passes.items()
    ]
    return rows(["arm", *digits, "n"], cells)


def store_rows(operation: str, arms: Passes, ours: str) -> list[list[str]]:
    """
    A row a store for one operation, with the ratio of rates to *ours*.
    """
    return [
        [
            operation,
            arm,
            *(
                _cell(found, name, digits)
                for name, (_, digits) in STORE_FIGURES.items()
            ),
            f"{len(found)} x {found[0]['n']:,.0f}",
            _ratio(arms, ours, arm),
        ]
        for arm, found in arms.items()
    ]


def over(
    one: Sequence[Mapping[str, float]], other: Sequence[Mapping[str, float]], name: str
) -> list[float]:
    """
    The ratio of one figure in each pass; none where an arm does not have it.
    """
    if not all(name in found for found in (*one, *other)):
        return []
    return [a[name] / b[name] for a, b in zip(one, other, strict=True)]


def best(passes: Passes, arms: Iterable[str]) -> list[Mapping[str, float]]:
    """
    In each pass the fastest of *arms*.
    """
    return [
        max(found, key=lambda figures: figures[RATE])
        for found in zip(*(passes[arm] for arm in arms), strict=True)
    ]


def ratios(
    passes: Passes, ours: str, peers: Iterable[str]
) -> dict[str, dict[str, list[float]]]:
    """
    Peer → how many times as good *ours* is, by rate, CPU and round trip.
    """
    mine = passes[ours]
    return {
        peer: {
            "rate, everbus : it": over(mine, passes[peer], RATE),
            "worker CPU, it : everbus": over(passes[peer], mine, WORKER),
            "server CPU, it : everbus": over(passes[peer], mine, SERVER),
            "round trip p50, it : everbus": over(passes[peer], mine, P50),
        }
        for peer in peers
    }


def ratio_rows(found: Mapping[str, Mapping[str, list[float]]]) -> str:
    """
    A row a peer, a column a ratio.
    """
    heads = list(next(iter(found.values()), {}))
    cells = [
        [peer, *(spread(of[head], 2) if of[head] else "" for head in heads)]
        for peer, of in found.items()
    ]
    return rows(["peer", *heads], cells)


def goals(
    passes: Passes, ours: Iterable[str], kinds: Mapping[str, str]
) -> tuple[str, dict[str, bool]]:
    """
    Whether the medians of the ratios reach what issue 6 asks for, and the table.

    Args:
        kinds: peer → "native", "python" or "batch", of those that were run.
    """
    cells, met = [], {}
    python = [peer for peer, kind in kinds.items() if kind == "python"]
    rivals = {
        peer: (passes[peer], NATIVE_GOAL)
        for peer, kind in kinds.items()
        if kind == "native"
    }
    if python:
        name = f"the best of {', '.join(python)}"
        rivals[name] = (best(passes, python), PYTHON_GOAL)
    for arm in ours:
        for name, (rival, goal) in rivals.items():
            got = over(passes[arm], rival, RATE)
            pair = f"{arm} : {name}"
            met[pair] = median(got) >= goal
            verdict = "met" if met[pair] else "NOT MET"
            cells.append([pair, spread(got, 2), f">= {goal}", verdict])
    return rows(["ratio of rates", "median [min-max]", "wanted", ""], cells), met


def across(
    arms: Passes, one: Sequence[Mapping[str, float]], operation: str
) -> list[list[str]]:
    """
    A row a store that has nothing like *one*, with the ratio of rates all the same.
    """
    blank = [""] * (len(STORE_FIGURES) + 1)
    return [
        [operation, arm, *blank, spread(over(one, found, "per_s"), 2)]
        for arm, found in arms.items()
    ]


def _cell(found: Sequence[Mapping[str, float]], name: str, digits: int) -> str:
    values = [figures[name] for figures in found if name in figures]
    return spread(values, digits) if values else ""


def _n(
    found: Sequence[Mapping[str, float]], arm: str, counts: Mapping[str, int]
) -> str:
    return f"{len(found)} x {counts[arm]:,}"


def _ratio(arms: Passes, ours: str, arm: str) -> str:
    if ours not in arms or arm == ours:
        return ""
    return spread(over(arms[ours], arms[arm], "per_s"), 2)

"""
The cost model, checked: `python -m tests.bench.model [--short] [--cluster]`.

A few stations calibrate what a command costs in CPU; from that `tests.bench.bounds`
predicts the rates of others, which are then measured in the same pass. Prints the
costs, predicted : measured for each point, what other houses would carry, and how to
choose P. A pass takes about 30 s, a short one 8 s; starting takes 15 s.

To add a point: a station in STATIONS, what it is asked in `a_pass`, and its figure in
`predictions`. `--cluster` adds those of a Redis Cluster of three primaries.
"""

import argparse
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import uvloop

from everbus.bus.cluster_wire import wire_to
from everbus.gateway.store import key_names
from tests.bench import bounds, goals, rig
from tests.bench.arms import COMMANDS_A_COMMIT, IN_FLIGHT, OTHERS, PATCH, Arms
from tests.bench.bounds import Batching, Costs, House
from tests.bench.patches import Patch

CORES = float(os.cpu_count() or 1)
ONE_KB = {"work_in_progress": {f"k{n}": "x" * 100 for n in range(9)}}
THREE_KB = {"work_in_progress": {f"k{n}": "x" * 100 for n in range(28)}}
FEW = 100
WARM_UP = 2_000
IDLE_S = 1.0
# `python -m tests.bench.tiers --only drain` on this machine, see README.md: what
# SecantusDB took a second; 24,128 documents of 22,000 commands; 0.6 s of CPU for them.
DOCUMENTS = 1_385.0
DOCUMENTS_A_COMMAND = 1.1
ARCHIVER_US = 25.0
Shape = dict[str, Any]  # what rig.station takes
PAIR, AOF, P4, P64 = "2 replicas, ", "AOF, ", "P=4, ", "P=64, "
# On the plain station, too: larger commands, and fewer requests at once.
LARGE, LARGER, FEWER = "1 KB, ", "3 KB, ", "few, "
# Figure's prefix → what its station is.
STATIONS: dict[str, Shape] = {
    "": {},
    PAIR: {"replicas": 2},
    AOF: {"aof": True},
    P4: {"partitions": 4},
    P64: {"partitions": 64},
}
CLUSTER = "cluster, "
CLUSTER_STATION: Shape = {"primaries": 3, "replicas": 2}
NO_REPLY, BACKLOG = "no reply, commands/s", "backlog, commands/s"
WITH_REPLY = "with reply, requests/s"
BUSIEST = "2 replicas, the busier one's part of the lanes"
# Rate → what the names of its costs begin with.
ARMS = {NO_REPLY: "", BACKLOG: "backlog, ", WITH_REPLY: "with reply, "}


class Calibration(NamedTuple):
    """
    What one pass tells the model.

    Attributes:
        kinds: rate's name → costs of a command, on the plain station.
        efficiency: rate's name → measured : predicted there, since no process ever
            works all the time.
        batching: of requests.
        taken: the part of a lane's waiting requests that one commit takes.
        aof: what AOF adds, without reply.
        kb: what each KB more in a command adds, without reply.
        busiest: the busier of two replicas' part of the lanes.
        left: figure → the cores that the rest of the machine left for it.
    """

    kinds: dict[str, Costs]
    efficiency: dict[str, float]
    batching: Batching
    taken: float
    aof: Costs
    kb: Costs
    busiest: float
    left: Mapping[str, float]

    def rate(self, prefix: str, kind: str, costs: Costs, **fields: float) -> float:
        """
        What this machine should reach with a house of *fields*.
        """
        house = here(kind, self.left.get(prefix + kind, CORES), **fields)

        return bounds.limits(costs, house)[0].rate * self.efficiency[kind]

    def at_lanes(self, partitions: int) -> Costs:
        """
        The costs of requests in batches as so many lanes make them.
        """
        found = bounds.commands_a_commit(IN_FLIGHT, partitions, self.taken)

        return self.batching.at(found)


def here(kind: str, cores: float, **fields: float) -> House:
    """
    This machine: one publisher, unless the backlog is there already.
    """
    house = House(cores=cores, publishers=int(kind != BACKLOG))

    return house._replace(**fields)  # type: ignore[arg-type]  # as the callers give them


def predictions(known: Calibration, large_kb: float) -> dict[str, float]:
    """
    Figure → the rate that it should come to, of all that are not calibrated.
    """
    plain, waiting = known.kinds[NO_REPLY], known.kinds[BACKLOG]
    asked = known.kinds[WITH_REPLY]
    two = {"replicas": 2, "lanes_share": known.busiest}
    three = {"servers": 3, "replicas": 2}
    rate = known.rate

    return {
        PAIR + NO_REPLY: rate(PAIR, NO_REPLY, plain, **two),
        PAIR + BACKLOG: rate(PAIR, BACKLOG, waiting, **two),
        PAIR + WITH_REPLY: rate(PAIR, WITH_REPLY, asked, **two),
        AOF + NO_REPLY: rate(AOF, NO_REPLY, plain.plus(known.aof)),
        LARGER + NO_REPLY: rate(LARGER, NO_REPLY, plain.plus(known.kb, large_kb)),
        P4 + WITH_REPLY: rate(P4, WITH_REPLY, known.at_lanes(4), partitions=4),
        P64 + WITH_REPLY: rate(P64, WITH_REPLY, known.at_lanes(64), partitions=64),
        CLUSTER + NO_REPLY: rate(CLUSTER, NO_REPLY, plain, **three),
        CLUSTER + BACKLOG: rate(CLUSTER, BACKLOG, waiting, **three),
    }


class Capacity:
    """
    The stations of one run, and one pass over them.
    """

    def __init__(self, scale: float, stations: Mapping[str, Shape]) -> None:
        self.figures: dict[str, list[float]] = {}
        self._scale = scale
        self._shapes = stations
        self._stations: dict[str, rig.Station] = {}
        self._arms: dict[str, Arms] = {}

    async def open(self, stack: AsyncExitStack) -> None:
        """
        Start the stations; *stack* ends them.
        """
        for prefix, shape in self._shapes.items():
            station = await stack.enter_async_context(rig.station(**shape))
            self._stations[prefix] = station
            await self._open_arms(stack, prefix, station)
        for prefix, patch in ((FEWER, PATCH), (LARGE, ONE_KB), (LARGER, THREE_KB)):
            await self._open_arms(stack, prefix, self._stations[""], patch)
        self.figures.clear()

    async def a_pass(self) -> None:
        """
        Calibrate, and measure what is predicted.
        """
        some, many = int(20_000 * self._scale), int(40_000 * self._scale)
        for prefix in ("", *self._if_there(PAIR, AOF, CLUSTER), LARGE, LARGER):
            await self._arms[prefix].no_reply(some)
        for prefix in ("", *self._if_there(PAIR, AOF, CLUSTER)):
            await self._arms[prefix].backlog(max(10_000, some))
        for prefix in ("", *self._if_there(PAIR, P4, P64)):
            await self._arms[prefix].with_reply(many)
        await self._arms[FEWER].with_reply(some, FEW)
        # Not those that only share a station: its outboxes are emptied once.
        for arms in self._arms.values():
            await arms.check()
        for prefix in ("", *self._if_there(P4, P64)):
            await self._arms[prefix].idle(IDLE_S)
        self._note(BUSIEST, await self._busiest())

    def calibrations(self) -> list[Calibration]:
        """
        What each pass tells.
        """
        return [self._calibration(n) for n in range(len(self.figures[NO_REPLY]))]

    def large_kb(self) -> float:
        """
        How many KB the large commands have more than the plain ones.
        """
        return self._more_kb(LARGER)

    def _if_there(self, *prefixes: str) -> list[str]:
        return [prefix for prefix in prefixes if prefix in self._arms]

    def _more_kb(self, prefix: str) -> float:
        return (len(self._arms[prefix].body) - len(self._arms[""].body)) / 1000

    async def _open_arms(
        self,
        stack: AsyncExitStack,
        prefix: str,
        station: rig.Station,
        patch: Patch = PATCH,
    ) -> None:
        arms = self._arms[prefix] = Arms(station, self.figures, prefix, patch)
        stack.push_async_callback(arms.close)
        await arms.open()
        # The first commands find grants, caches and connections missing.
        await arms.no_reply(WARM_UP)

    async def _busiest(self) -> float:
        """
        The busier replica's part of the lanes, of the two.
        """
        station = self._stations[PAIR]
        wire = wire_to(station.url)
        owners = [("GET", key_names.owner(p)) for p in range(station.partitions)]
        try:
            found = await wire.exchange(owners)
        finally:
            await wire.close()
        lanes = Counter(owner.partition(b":")[2] for owner in found)
        return max(lanes.values()) / station.partitions

    def _calibration(self, n: int) -> Calibration:
        kinds = {kind: self._costs(arm, n) for kind, arm in ARMS.items()}
        left = self._cores_left(n)
        limits = {
            kind: bounds.limits(costs, here(kind, left[kind]))[0].rate
            for kind, costs in kinds.items()
        }
        efficiency = {kind: self.figures[kind][n] / limits[kind] for kind in kinds}
        commits = f"with reply, {COMMANDS_A_COMMIT}"
        many, few = self.figures[commits][n], self.figures[FEWER + commits][n]
        requests = kinds[WITH_REPLY]
        kb = self._costs(LARGE, n).minus(kinds[NO_REPLY])

        return Calibration(
            kinds,
            efficiency,
            Batching.through(requests, many, self._costs("few, with reply, ", n), few),
            many * rig.PARTITIONS / IN_FLIGHT,
            self._costs("AOF, backlog, ", n).minus(kinds[BACKLOG]),
            Costs(0, 0, 0).plus(kb, 1 / self._more_kb(LARGE)),
            self.figures[BUSIEST][n],
            left,
        )

    def _cores_left(self, n: int) -> dict[str, float]:
        """
        Figure → what this machine's cores had left for it in pass *n*.
        """
        found = {}
        for prefix in self._arms:
            for kind, arm in ARMS.items():
                others = self.figures.get(f"{prefix}{arm}{OTHERS}")
                if others:
                    found[prefix + kind] = max(0.1, CORES - others[n])
        return found

    def _costs(self, arm: str, n: int) -> Costs:
        def cost(part: str) -> float:
            values = self.figures.get(f"{arm}{part} CPU us a command")
            return values[n] if values else 0.0

        return Costs(cost("worker"), cost("server"), cost("publisher"))

    def _note(self, name: str, value: float) -> None:
        self.figures.setdefault(name, []).append(value)


def points(figures: goals.Figures, predicted: Sequence[Mapping[str, float]]) -> str:
    """
    A Markdown table of predicted, measured and their ratio, pass by pass.
    """
    lines = ["| point | predicted | measured | measured : predicted | n |"]
    lines.append("|---|---|---|---|---|")
    for name in predicted[0]:
        if name not in figures:
            continue
        told = [each[name] for each in predicted]
        got = list(figures[name])
        ratio = [a / b for a, b in zip(got, told, strict=True)]
        cells = (name, rig.spread(told), rig.spread(got), rig.spread(ratio, 2))
        lines.append(f"| {' | '.join(cells)} | {len(got)} |")
    return "\n".join(lines)


def report(capacity: Capacity, documents: float) -> str:
    """
    The tables: costs, points, houses, and what P costs.
    """
    known = capacity.calibrations()
    figures = capacity.figures
    large_kb = capacity.large_kb()
    predicted = [predictions(each, large_kb) for each in known]
    middle = known[_middle(figures[NO_REPLY])]
    kinds = {
        "no reply": middle.kinds[NO_REPLY],
        "with reply": middle.kinds[WITH_REPLY],
        "with AOF": middle.kinds[NO_REPLY].plus(middle.aof),
    }
    efficiency = {
        "no reply": middle.efficiency[NO_REPLY],
        "with reply": middle.efficiency[WITH_REPLY],
        "with AOF": middle.efficiency[NO_REPLY],
    }
    return "\n\n".join(
        (
            goals.table(figures),
            "Predicted from the costs of the plain station, of the same pass:",
            points(figures, predicted),
            "Other houses, from the pass in the middle:",
            bounds.configurations(kinds, efficiency),
            bounds.sustained(documents, DOCUMENTS_A_COMMAND, ARCHIVER_US),
            "The busiest replica's load : the mean one's, by rendezvous hashing:",
            bounds.partitions_table((2, 3, 4, 8, 16), (1, 2, 4, 8, 16)),
            _lanes(middle, figures),
        )
    )


def _lanes(known: Calibration, figures: goals.Figures) -> str:
    each, batch = known.batching
    idle = [
        (
            rig.median(list(figures[f"P=64, idle, {part} CPU us a second"]))
            - rig.median(list(figures[f"P=4, idle, {part} CPU us a second"]))
        )
        / 60
        for part in ("worker", "server")
    ]
    return (
        f"A request costs a replica {each.worker:.1f} us and {batch.worker:.1f} us a "
        f"commit, Redis {each.server:.1f} and {batch.server:.1f}: from "
        f"{known.batching.enough():.0f} requests a commit on, its share is below a "
        f"tenth. A commit takes {known.taken:.2f} of the requests that wait in a lane. "
        f"An idle lane costs the replica {idle[0]:.0f} us of CPU a second and Redis "
        f"{idle[1]:.0f}."
    )


def _middle(values: Sequence[float]) -> int:
    return sorted(range(len(values)), key=lambda n: values[n])[len(values) // 2]


async def measure(pairs: int, scale: float, *, cluster: bool) -> Capacity:
    """
    *pairs* passes over all stations.
    """
    more = {CLUSTER: CLUSTER_STATION} if cluster else {}
    capacity = Capacity(scale, STATIONS | more)
    async with AsyncExitStack() as stack:
        await capacity.open(stack)
        await goals.passes(capacity.a_pass, pairs)
    return capacity


def main() -> None:
    """
    Measure, predict, and print the tables and one line of JSON.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="passes")
    parser.add_argument("--short", action="store_true", help="a tenth of the work")
    parser.add_argument(
        "--cluster", action="store_true", help="a Redis Cluster as one more point"
    )
    parser.add_argument(
        "--documents",
        type=float,
        default=DOCUMENTS,
        help="documents a second that your MongoDB takes; default: SecantusDB here",
    )
    arguments = parser.parse_args()
    scale = 0.1 if arguments.short else 1.0
    capacity = uvloop.run(measure(arguments.pairs, scale, cluster=arguments.cluster))
    print(report(capacity, arguments.documents))
    print(goals.line(capacity.figures))


if __name__ == "__main__":
    main()

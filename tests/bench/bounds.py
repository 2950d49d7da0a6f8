"""
What replicas, servers and partitions carry, from what a command costs.

A command costs CPU in three processes, and none of them can use more than one core:
so the rate is the least of a few bounds. Only arithmetic is here; what a command
costs is measured in `tests.bench.model`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from redis.crc import key_slot

from everbus.bus.keys import partition_of
from everbus.gateway.session_manager import lane_owner

SLOTS = 16384
# Enough namings of replicas that the mean of the busiest one's share stands still.
HOUSES = 40


class Costs(NamedTuple):
    """
    CPU us a command in each process, all of a kind together.
    """

    worker: float
    server: float
    publisher: float

    def plus(self, other: "Costs", times: float = 1.0) -> "Costs":
        """
        These and *times* the others.
        """
        return Costs(*(a + times * b for a, b in zip(self, other, strict=True)))

    def minus(self, other: "Costs") -> "Costs":
        """
        What these are above the others.
        """
        return self.plus(other, -1.0)


class House(NamedTuple):
    """
    What is deployed.

    Attributes:
        publishers: how many MAD processes publish; 0: as many as it takes.
        cores: that all of it shares; 0: each process has one for itself.
        lanes_share: the part of the lanes that the busiest replica has; 0: what
            rendezvous hashing gives on average.
        documents: that MongoDB takes a second; 0: as many as there are.
    """

    replicas: int = 1
    servers: int = 1
    partitions: int = 16
    publishers: int = 0
    cores: float = 0
    lanes_share: float = 0.0
    documents: float = 0.0


class Bound(NamedTuple):
    """
    Something that ends the growth of the rate, and where.
    """

    what: str
    rate: float


def limits(costs: Costs, house: House) -> list[Bound]:
    """
    Commands a second that each resource allows; the least comes first.
    """
    busiest = house.lanes_share or busiest_replica(house.replicas, house.partitions)
    fullest = busiest_server(house.servers, house.partitions)
    found = [
        Bound("replicas", 1e6 / costs.worker / busiest),
        Bound("Redis", 1e6 / costs.server / fullest),
    ]
    if house.publishers:
        found.append(Bound("publishers", house.publishers * 1e6 / costs.publisher))
    if house.cores:
        found.append(Bound("cores", house.cores * 1e6 / sum(costs)))
    if house.documents:
        found.append(Bound("MongoDB", house.documents))
    return sorted(found, key=lambda bound: bound.rate)


def busiest_replica(replicas: int, partitions: int) -> float:
    """
    The part of the lanes that the busiest of *replicas* owns, on average over names.
    """
    if replicas == 1:
        return 1.0
    total = 0
    for house in range(HOUSES):
        names = [f"house-{house}-{n}" for n in range(replicas)]
        owners = Counter(lane_owner(p, names) for p in range(partitions))
        total += max(owners.values())
    return total / HOUSES / partitions


def busiest_server(servers: int, partitions: int) -> float:
    """
    The part of the partitions in the fullest of *servers* with equal runs of slots.
    """
    holders = Counter(
        key_slot(str(p).encode()) * servers // SLOTS for p in range(partitions)
    )
    return max(holders.values()) / partitions


def busiest_lane(sessions: int, partitions: int) -> float:
    """
    Sessions of the fullest lane : of the mean one, by the hash that places them.
    """
    lanes = Counter(partition_of(f"session-{n}", partitions) for n in range(sessions))
    return max(lanes.values()) / (sessions / partitions)


class Batching(NamedTuple):
    """
    How the cost of a command depends on how many are committed together.

    cost(b) = each + batch / b, fitted through two measured points.
    """

    each: Costs
    batch: Costs

    @classmethod
    def through(cls, many: Costs, b: float, few: Costs, c: float) -> "Batching":
        """
        The line through *many* at *b* commands a commit and *few* at *c*.

        Never below nothing: noise could make a large batch dearer than a small one.
        """
        slope = 1 / c - 1 / b
        batch = Costs(
            *(max(0.0, x / slope) if slope > 0 else 0.0 for x in few.minus(many))
        )
        return cls(many.plus(batch, -1 / b), batch)

    def at(self, b: float) -> Costs:
        """
        The costs at *b* commands a commit.
        """
        return self.each.plus(self.batch, 1 / b)

    def enough(self, above: float = 0.1) -> float:
        """
        Commands a commit from which on the replica's cost is at most *above* over
        what it is with endless batches.
        """
        return max(1.0, self.batch.worker / (above * self.each.worker))


def commands_a_commit(in_flight: float, partitions: int, calibrated: float) -> float:
    """
    How many of so many requests in flight a lane commits together.

    All wait in some lane, so a lane has `in_flight / partitions`; what part of them it
    takes at a time was *calibrated* by one measurement.
    """
    return max(1.0, calibrated * in_flight / partitions)


HOUSES_TOLD = (
    House(cores=2, publishers=1),
    House(),
    House(replicas=2),
    House(replicas=4, partitions=32),
    House(replicas=4, partitions=64),
    House(replicas=4, servers=3, partitions=64),
    House(replicas=8, servers=3, partitions=64),
    House(replicas=16, servers=3, partitions=256),
    House(replicas=16, servers=6, partitions=256),
)


def configurations(kinds: Mapping[str, Costs], efficiency: Mapping[str, float]) -> str:
    """
    A Markdown table of what some houses carry, and what stops them.
    """
    heads = " | ".join(f"{kind}, commands/s" for kind in kinds)
    lines = [f"| replicas | Redis servers | P | cores | {heads} |"]
    lines.append("|---" * (4 + len(kinds)) + "|")
    for house in HOUSES_TOLD:
        cores = f"{house.cores:g}" if house.cores else "one a process"
        cells = [*map(str, (house.replicas, house.servers, house.partitions)), cores]
        for kind, costs in kinds.items():
            first, second, *_ = limits(costs, house)
            part = efficiency[kind]
            then = f"then {second.what} at {part * second.rate:,.0f}"
            cells.append(f"{part * first.rate:,.0f}: {first.what}, {then}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def sustained(documents: float, a_command: float, archiver_us: float) -> str:
    """
    What goes on for ever: what MongoDB takes, and what an archiver passes on.
    """
    return (
        f"For ever, no house carries more than MongoDB takes: {documents:,.0f} "
        f"documents/s were {documents / a_command:,.0f} commands/s ({a_command:g} "
        "documents a command: its event or entry, and its session's once a commit). An "
        f"archiver uses {archiver_us:g} us of CPU a document, so it could pass on "
        f"{1e6 / archiver_us:,.0f}/s. A burst ends when a partition's outbox is full: "
        "P x EVERBUS_OUTBOX_MAX_RECORDS records above what is drained meanwhile."
    )


def partitions_table(replicas: Sequence[int], lanes: Sequence[int]) -> str:
    """
    A Markdown table of what P lanes a replica cost in balance.
    """
    heads = " | ".join(f"P = {n} x replicas" for n in lanes)
    lines = [f"| replicas | {heads} |", "|---" * (1 + len(lanes)) + "|"]
    for count in replicas:
        shares = [count * busiest_replica(count, count * n) for n in lanes]
        cells = " | ".join(f"{share:.2f}" for share in shares)
        lines.append(f"| {count} | {cells} |")
    return "\n".join(lines)

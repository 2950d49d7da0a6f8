"""
Indicators of the servers of a bus as a whole, and how one is judged by all of them.

A bus is one server, a primary with replicas, or the nodes of a Cluster. An indicator of
one server gets the worst value of all, with the names of the servers that have it.
"""

from collections.abc import Callable, Iterable, Sequence

from everbus.gateway.health.readings import Readings
from everbus.gateway.health.server_report import ServerReport
from everbus.gateway.health.verdicts import FAILED, FINE, WARNED, Indicator, Measurement

# Names in one text.
MOST_NAMED = 3


def worst_of(
    measure: Callable[[ServerReport], Measurement],
) -> Callable[[Readings], Measurement]:
    """
    The measure of a whole bus: that of the server with the largest value.
    """

    def of_all(readings: Readings) -> Measurement:
        answering = [one for one in readings.servers if not one.trouble]
        measured = [(measure(one), one.address) for one in answering]
        known = [
            (found.value, found, address)
            for found, address in measured
            if found.value is not None
        ]
        if not known:
            return measured[0][0] if measured else Measurement(None)
        worst, found, _ = max(known, key=lambda one: one[0])
        where = [address for value, _, address in known if value == worst]
        if len(where) == len(known):
            return found
        return found._replace(shown=f"{found.shown} at {listed(where)}")

    return of_all


def listed(names: Iterable[str]) -> str:
    """
    The first few of *names* as text, and the number of the others.
    """
    every: Sequence[str] = sorted(names)
    more = len(every) - MOST_NAMED

    return ", ".join(every[:MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _answers(readings: Readings) -> Measurement:
    servers = readings.servers
    away = [one for one in servers if one.trouble]
    if not servers:
        return Measurement(None)
    if not away:
        replicas = len(servers) - sum(one.is_primary for one in servers)
        shown = f"{len(servers) - replicas} serve, {replicas} follow"
        return Measurement(FINE, shown)
    grade = FAILED if any(one.is_primary for one in away) else WARNED

    return Measurement(
        grade,
        f"{len(away)} of {len(servers)} without an answer: "
        f"{listed(one.address for one in away)}; {away[0].trouble}",
    )


def _users(readings: Readings) -> Measurement:
    shown = [one for one in readings.servers if one.users]
    every = frozenset[str]().union(*(one.users for one in shown))
    lacking = {
        user: [one for one in shown if user not in one.users] for user in sorted(every)
    }
    found = [
        f"{user} is not on {listed(one.address for one in some)}"
        for user, some in lacking.items()
        if some
    ]
    if not shown:
        return Measurement(None)
    if not found:
        return Measurement(FINE, "the same everywhere")
    grade = WARNED
    if any(one.is_primary for some in lacking.values() for one in some):
        grade = FAILED

    return Measurement(grade, "; ".join(found[:MOST_NAMED]))


NODES: tuple[Indicator, ...] = (
    Indicator(
        "bus_nodes",
        "state",
        "whether the servers of the bus answer: failed if a primary does not, warned "
        "if a replica does not",
        "start the named server, or see its log and the network. If it refuses the "
        "user of the managers, make that user there too: everbus acl --role manager",
        _answers,
        warn=WARNED,
        fail=FAILED,
        wanted="all answer",
    ),
    Indicator(
        "bus_users",
        "state",
        "whether every server has the same users: failed if a primary lacks one, "
        "whom it then locks out; a replica does so after a failover",
        "of a MAD: everbus mads add NAME makes its user where it is missing, under its "
        "old password (everbus mads remove NAME ends it everywhere); of others: "
        "ACL SETUSER on the named server, with the rules that everbus acl prints",
        _users,
        warn=WARNED,
        fail=FAILED,
        wanted="the same everywhere",
    ),
)

"""
Kinds of failures: about a dozen, each with a permanent name.

The table in the folder's README is this one; a test compares the two. What is
counted under another name already is not counted twice: `everbus_failures_total`
adds up those counters, by kind, whenever somebody asks.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

from prometheus_client import REGISTRY, Counter
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from everbus.gateway.telemetry import metrics

Kind = Literal[
    "client_gone",
    "replica_crashed",
    "replica_deaf",
    "stale_owner",
    "poison_command",
    "defect",
    "hot_tier_away",
    "hot_tier_emptied",
    "hot_tier_went_back",
    "warm_tier_away",
    "cold_tier_away",
    "corrupted_state",
    "lost_entries",
    "refused_records",
    "diverged_records",
    "undecodable_records",
    "overload",
]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Failure(NamedTuple):
    """
    One kind of failure.

    Attributes:
        what: what has happened.
        detected: how it is noticed.
        recovery: what everbus does about it by itself.
        test: the test that shows it, `<file below tests/>::<function>`.
    """

    what: str
    detected: str
    recovery: str
    test: str


TABLE: Mapping[Kind, Failure] = {
    "client_gone": Failure(
        "a MAD ended or fell silent without goodbye",
        "its lease ran out: the event, or the sweep each second",
        "its epoch is fenced; `participant.lost` to every session it was in",
        "integration/test_lost_instances.py::"
        "test_every_session_of_the_lost_hears_of_it_once",
    ),
    "replica_crashed": Failure(
        "a manager ended or fell silent without goodbye",
        "its place among the living ran out",
        "the others take its lanes and replay what is pending",
        "integration/test_startup_checks.py::"
        "test_a_replica_that_is_killed_counts_as_crashed_once",
    ),
    "replica_deaf": Failure(
        "a lane is connected, and its exchanges do not complete",
        "10 s without a completed one while the replica's own do",
        "the lane is ended and begun anew on fresh connections",
        "unit/test_failures.py::test_a_deaf_lane_is_ended_and_counted",
    ),
    "stale_owner": Failure(
        "a paused owner of a lane, or archiver, wakes up after its successor began",
        "the epoch fence of its next read or commit",
        "it reads and commits nothing more, and lets go",
        "integration/test_takeover.py::"
        "test_a_paused_owner_that_wakes_up_commits_and_takes_nothing",
    ),
    "poison_command": Failure(
        "a command fails, or kills its replica, again and again",
        "five attempts, counted over deaths as well",
        "it becomes a dead letter that names them; its session goes on",
        "integration/test_poison.py::"
        "test_a_command_that_kills_its_replica_is_buried_after_five_deaths",
    ),
    "defect": Failure(
        "a fault of ours: a handler or a lane raised what is no refusal",
        "caught where it was raised, logged with its traceback",
        "only the session waits; tried again after 0.1, 0.2, 0.4, 0.8 s",
        "integration/test_poison.py::"
        "test_a_defect_that_passes_is_applied_and_leaves_no_letter",
    ),
    "hot_tier_away": Failure(
        "Redis does not answer, or refuses to write for now",
        "the deadline of an exchange, or the refusal's code",
        "connect anew, begin with what is pending; SDKs send again, by number",
        "integration/test_healing.py::test_what_was_acknowledged_survives_the_server",
    ),
    "hot_tier_emptied": Failure(
        "Redis lost its data: FLUSHALL, or a restart without any",
        "`eb:config` is gone",
        "configuration and MADs are put back; sessions come from MongoDB",
        "integration/test_healing.py::test_a_flush_of_everything_heals_loudly",
    ),
    "hot_tier_went_back": Failure(
        "Redis may have lost writes: a restart, another primary, an older copy",
        "the server's run or former primary is another than the lineage's",
        "a new lineage: sessions are compared with MongoDB before they are used; SDKs "
        "send again what is not settled",
        "integration/test_lost_memory.py::"
        "test_what_mongodb_holds_is_there_and_nothing_is_given_twice",
    ),
    "warm_tier_away": Failure(
        "MongoDB is away or too slow",
        "five failed calls in a row open its breaker",
        "hot sessions go on; the outbox keeps what it has to get; probes",
        "integration/test_degradations.py::"
        "test_hot_sessions_go_on_and_all_of_it_is_caught_up_with",
    ),
    "cold_tier_away": Failure(
        "S3 is away or too slow",
        "five failed calls in a row open its breaker",
        "archiving waits; archived sessions are `unavailable`; probes",
        "integration/test_degradations.py::"
        "test_archiving_waits_and_archived_sessions_are_unavailable",
    ),
    "corrupted_state": Failure(
        "an archive or a kept state is not what was put there",
        "its hash, whenever it is read",
        "it is refused and never served; what is in MongoDB stays",
        "integration/test_damaged_archives.py::"
        "test_with_a_flipped_byte_it_is_refused_until_that_is_put_back",
    ),
    "lost_entries": Failure(
        "somebody trimmed entries that were read and not settled",
        "the pending list names an entry that is gone",
        "a dead letter `trimmed`; everything else goes on",
        "integration/test_healing.py::"
        "test_an_entry_that_was_trimmed_while_pending_is_told_as_lost",
    ),
    "refused_records": Failure(
        "MongoDB refuses a record for good, or one cannot be decoded",
        "the code of its refusal",
        "a dead letter that keeps all of it; the records behind go on",
        "integration/test_confirmation.py::"
        "test_a_refused_record_becomes_a_dead_letter_with_all_of_it",
    ),
    "diverged_records": Failure(
        "a record of a branch that a later lineage does not have reached MongoDB",
        "the claims of its session's document, or another command in its place",
        "a dead letter `diverged` that keeps all of it; `warm` callers hear an error",
        "integration/test_split_brain.py::"
        "test_warm_writes_of_both_sides_are_kept_or_refused",
    ),
    "undecodable_records": Failure(
        "the record of a producer's settled numbers does not decode",
        "whenever a lane reads it: at its opening, each hour, before its commands",
        "its writes are refused, as they may be repeated: `unavailable`, or a dead "
        "letter `undecodable_record`; other producers go on",
        "integration/test_undecodable.py::"
        "test_only_the_producer_whose_record_does_not_decode_is_refused",
    ),
    "overload": Failure(
        "a lane's outbox has reached its limit: MongoDB is behind",
        "the backlog's count, with each commit",
        "requests are told `overloaded`, appends are held in order",
        "integration/test_healing.py::"
        "test_at_the_outbox_limit_requests_are_refused_and_appends_wait",
    ),
}


def total(counter: Counter, **labels: str) -> float:
    """
    What *counter* has counted with these labels, whatever its others are.
    """
    return sum(
        sample.value
        for metric in counter.collect()
        for sample in metric.samples
        if sample.name.endswith("_total") and labels.items() <= sample.labels.items()
    )


_ELSEWHERE: Mapping[Kind, Callable[[], float]] = {
    "client_gone": lambda: total(metrics.LOST_MADS),
    "replica_deaf": lambda: total(metrics.DISTURBED, cause="deaf"),
    "stale_owner": lambda: total(metrics.SUPERSEDED),
    "poison_command": lambda: total(metrics.DEAD, cause="poison"),
    "defect": lambda: total(metrics.DISTURBED, cause="defect"),
    "corrupted_state": lambda: total(metrics.CORRUPTED),
    "lost_entries": lambda: total(metrics.DEAD, cause="trimmed"),
    "refused_records": lambda: (
        total(metrics.BURIED_RECORDS) - total(metrics.BURIED_RECORDS, cause="diverged")
    ),
    "diverged_records": lambda: total(metrics.BURIED_RECORDS, cause="diverged"),
}


class FailureCounter(Collector):
    """
    Counts of each kind of failure in this process.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counted: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self._noticed_at: dict[Kind, float] = {}

    def count(self, kind: Kind, *, within_s: float = 0.0) -> None:
        """
        Count a failure that no other counter counts.

        Args:
            within_s: of what is noticed again and again while it lasts: notices
                that follow each other within so long are one failure.
        """
        now = self._clock()
        last = self._noticed_at.get(kind)
        self._noticed_at[kind] = now
        if last is None or now - last >= within_s:
            self._counted[kind] += 1

    def crashed(self, silent_ms: Sequence[int]) -> None:
        """
        Count replicas that ended without goodbye, each for so long out of time: all
        that while its lanes had no owner.
        """
        self._counted["replica_crashed"] += len(silent_ms)
        for one in silent_ms:
            metrics.RECLAIM.observe(one / 1000)

    def tier_away(self, tier: str) -> None:
        """
        Count that a tier's breaker has opened.
        """
        if tier == "warm":
            self.count("warm_tier_away")
        elif tier == "cold":
            self.count("cold_tier_away")

    def totals(self) -> dict[Kind, float]:
        """
        Kind → how often, with the counts kept elsewhere.
        """
        return {
            kind: counted + (_ELSEWHERE[kind]() if kind in _ELSEWHERE else 0)
            for kind, counted in self._counted.items()
        }

    def collect(self) -> Iterable[Metric]:
        """
        The counter for Prometheus.
        """
        family = CounterMetricFamily(
            "everbus_failures", "Failures noticed, by kind.", labels=["kind"]
        )
        for kind, times in self.totals().items():
            family.add_metric([kind], times)
        yield family

    def describe(self) -> Iterable[Metric]:
        """
        Its name, without counting.
        """
        yield CounterMetricFamily("everbus_failures", "", labels=["kind"])


NOTED = FailureCounter()
REGISTRY.register(NOTED)

"""
What a replica tells Prometheus; the table of names is in the folder's README.
"""

from collections.abc import Iterable, Mapping

from prometheus_client import Counter, Gauge, Histogram

COMMANDS = Counter(
    "everbus_commands_total", "Commands settled, by kind and outcome.", ["kind", "code"]
)
BATCH = Histogram(
    "everbus_batch_commands",
    "Commands per committed batch.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
)
COMMIT = Histogram(
    "everbus_commit_seconds",
    "Round trip of one commit, with the next read in the same write.",
    buckets=(0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5),
)
OLDEST = Gauge(
    "everbus_oldest_unsettled_seconds",
    "Age of the oldest command a lane has read and not settled.",
    ["lane"],
)
OWNED = Gauge("everbus_lane_owned", "1 while this replica owns the lane.", ["lane"])
BACKLOG = Gauge(
    "everbus_outbox_records", "Outbox records the archiver has not confirmed.", ["lane"]
)
TAKEOVERS = Counter("everbus_takeovers_total", "Lanes taken by this replica.")
SUPERSEDED = Counter(
    "everbus_superseded_total", "Times the epoch fence turned this replica away."
)
DISTURBED = Counter(
    "everbus_lane_disturbed_total",
    "Lane restarts that replay pending, by cause.",
    ["cause"],
)
DEAD = Counter("everbus_dead_letters_total", "Commands buried, by cause.", ["cause"])
PARKED = Gauge("everbus_parked_commands", "Commands that wait for a session.", ["lane"])
TRIMMED = Counter(
    "everbus_trimmed_entries_total",
    "Pending entries that somebody trimmed away: lost commands.",
)
CAUSES = frozenset(
    {
        "expired",
        "forbidden",
        "invalid",
        "invalid_id",
        "invalid_session",
        "newer_schema",
        "no_command",
        "not_found",
        "poison",
        "too_large",
        "trimmed",
        "unauthenticated",
        "undecodable",
        "unknown_kind",
        "version_conflict",
        "wrong_partition",
    }
)


def count_commit(
    outcomes: Mapping[tuple[str, str], int], letters: Iterable[str], took_s: float
) -> None:
    """
    Count one commit: how its commands ended, by (kind, code), and what it buried.
    """
    for (kind, code), count in outcomes.items():
        COMMANDS.labels(kind, code).inc(count)
    for cause in letters:
        DEAD.labels(cause if cause in CAUSES else "other").inc()
    BATCH.observe(sum(outcomes.values()))
    COMMIT.observe(took_s)

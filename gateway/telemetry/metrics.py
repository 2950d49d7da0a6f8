"""
Prometheus metrics of a replica; the folder's README has the table of names.
"""

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
RECLAIM = Histogram(
    "everbus_reclaim_seconds",
    "How long the lanes of a crashed replica had no owner when it was noticed.",
    buckets=(0.1, 0.2, 0.5, 1, 2, 3, 4, 5, 6, 7, 8, 10, 15, 30, 60),
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
TAKEN = Counter(
    "everbus_taken_entries_total",
    "Entries that somebody else read with the managers' group; they were taken back.",
)
WARM_LOADS = Counter(
    "everbus_warm_loads_total",
    "Sessions looked for below the hot tier, by what came of it.",
    ["outcome"],
)
DOUBTFUL = Counter(
    "everbus_doubtful_sessions_total",
    "Hot copies in doubt while MongoDB was away, by EVERBUS_DOUBT.",
    ["outcome"],
)
STALE_SIDE = Counter(
    "everbus_stale_side_total",
    "Sessions that another bus, promoted later, has claimed.",
)
LINEAGES = Counter(
    "everbus_lineages_total", "Lineages that began: the bus may have lost writes."
)
CORRUPTED = Counter(
    "everbus_cold_corrupted_total",
    "Objects of the cold tier that were not what was put there.",
)
BREAKER = Gauge(
    "everbus_breaker_state", "Of a tier: 0 closed, 1 half-open, 2 open.", ["tier"]
)
TIER_CALLS = Counter(
    "everbus_tier_calls_total",
    "Calls of a tier: ok, failed, refused.",
    ["tier", "outcome"],
)
TIER_SECONDS = Histogram(
    "everbus_tier_seconds",
    "How long a call of a tier took.",
    ["tier"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)
DRAINED = Counter("everbus_drained_records_total", "Outbox records confirmed.")
DRAIN_FAILING = Gauge(
    "everbus_drain_failing_seconds",
    "Since when the drain has got nothing done though there is something to do.",
)
BURIED_RECORDS = Counter(
    "everbus_buried_records_total", "Records that the warm tier refused.", ["cause"]
)
ARCHIVED = Counter(
    "everbus_archived_sessions_total", "Sessions moved to the cold tier."
)
RETURNED_ENTRIES = Counter(
    "everbus_returned_entries_total",
    "Timeline entries brought back from the cold tier.",
)
PURGED_ENTRIES = Counter(
    "everbus_purged_entries_total", "Archived entries removed from the warm tier."
)
RETIRED = Counter("everbus_retired_sessions_total", "Sessions deleted by age.")
LOST_MADS = Counter(
    "everbus_lost_mads_total",
    "MAD instances that were declared lost, by what noticed it.",
    ["noticed"],
)
LEASES = Gauge("everbus_leases", "MAD instances whose lease runs.")
DETECTION = Histogram(
    "everbus_detection_seconds",
    "How long after its deadline a MAD instance was declared lost.",
    buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 1.5, 2, 3, 5, 10, 30),
)
HEARTBEATS = Counter(
    "everbus_heartbeats_total", "Joins, beats and leaves of MAD instances.", ["kind"]
)
HEALTH = Gauge(
    "everbus_health", "Of an indicator: 0 pass, 1 warn, 2 fail.", ["indicator"]
)
HEALTH_VALUE = Gauge(
    "everbus_health_value", "What an indicator measured, in its unit.", ["indicator"]
)
BOUND_REACHED = Counter(
    "everbus_bound_reached_total",
    "Times a bound cut, refused or dropped something; docs/bounds.md lists them.",
    ["bound"],
)
INGRESS_BYTES = Gauge(
    "everbus_ingress_bytes",
    "Bytes of the streams of the MAD that takes most, of those this manager serves.",
)
REVOKED = Gauge(
    "everbus_revoked_tokens", "TokenRevocations that this process has heard of."
)
REVOKED_UNREAD = Gauge(
    "everbus_revocations_unread_seconds",
    "Since when the list of revoked tokens cannot be read; 0 while it can.",
)
REVOKED_REFUSALS = Counter(
    "everbus_revoked_refusals_total",
    "Tokens, commands and live streams refused because their token is revoked.",
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
        "undecodable_record",
        "undecodable_session",
        "unknown_kind",
        "version_conflict",
        "wrong_partition",
    }
)

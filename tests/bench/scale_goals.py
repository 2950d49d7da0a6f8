"""
What the issue asks of scale, by the figure's name; 0 is what must never be.
"""

from tests.bench.tier_rig import Goal

_NONE = Goal(0, "none")

GOALS = {
    "requests that failed": _NONE,
    "false conflicts": _NONE,
    "versions wrong on the bus": _NONE,
    "versions wrong in MongoDB": _NONE,
    "last seq wrong on the bus": _NONE,
    "last seq wrong in MongoDB": _NONE,
    "contended counts wrong": _NONE,
    "entries lost, doubled or out of order": _NONE,
    "replica RSS, end : after 1 min (a tenth)": Goal(1.1, "flat: ≤ 1.1 x"),
    "replica RSS at the end, MB": Goal(80, "≤ 80 MB"),
    "sessions that find nothing, or the wrong": _NONE,
    "warm get, 1 in flight, p95 ms": Goal(200, "< 200 ms"),
    "warm get, 4 in flight, p95 ms": Goal(200, "< 200 ms"),
    "MongoDB: a session by id, p95 ms": Goal(10, "< 10 ms"),
    "MongoDB: its 20 newest entries, p95 ms": Goal(10, "< 10 ms"),
    "MongoDB: 20 sessions by owner, p95 ms": Goal(10, "< 10 ms"),
    "MongoDB: one change written, p95 ms": Goal(10, "< 10 ms"),
    "append, us each, last 100,000 (a tenth) : first": Goal(1.3, "≤ 1.3 x"),
    "pages that are wrong": _NONE,
    "tail, server side, us: Redis + replica": Goal(2000, "< 2 ms"),
    "tail, request p50 beyond a bare one's, ms": Goal(2, "< 2 ms"),
    "page of 100 from MongoDB, p95 ms": Goal(20, "< 20 ms"),
    "page of 100 from MongoDB, p99 ms": Goal(20, "< 20 ms"),
    "page from Redis, p99 ms": Goal(20, "< 20 ms"),
    "same partition, p99, hot : off": Goal(2, "≤ 2 x"),
    "other partitions, p99, hot : off": Goal(2, "≤ 2 x"),
    "same partition, p99, paced : off": Goal(2, "≤ 2 x"),
    "other partitions, p99, paced : off": Goal(2, "≤ 2 x"),
    "updates of the hot session lost": _NONE,
    "commands of the paced lost": _NONE,
    "create at 200/s, p99 ms": Goal(100, "< 100 ms"),
    "hot get at 200/s, p99 ms": Goal(10, "< 10 ms"),
    "replica RSS, 10,000 read again, MB": Goal(80, "≤ 80 MB"),
    "replica RSS, 10,000 joined, changed and read, MB": Goal(80, "≤ 80 MB"),
    "replica RSS, 10,000 with 20 entries each, MB": Goal(80, "≤ 80 MB"),
}

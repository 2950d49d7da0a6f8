"""
Prometheus metrics of an edge; the table of names is in gateway/telemetry/README.md.

Every label has few values: route templates and never paths, known methods, classes of
status; no id, no name of a principal or a tenant.
"""

import time
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUESTS = Counter(
    "everbus_edge_requests_total",
    "Requests answered, by route template, method and class of status.",
    ["route", "method", "status"],
)
SECONDS = Histogram(
    "everbus_edge_request_seconds",
    "Duration of a request until its answer was sent, streams not counted.",
    ["route", "method"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)
IN_FLIGHT = Gauge("everbus_edge_requests_in_flight", "Requests in flight.")
STREAMS = Gauge("everbus_edge_streams", "Open live streams, by transport.", ["stream"])
LIMITED = Counter(
    "everbus_edge_limited_total", "Refused requests, by exceeded limit.", ["limit"]
)
READ_ONLY = Gauge("everbus_edge_read_only", "1 while the bus is away.")
READ_ONLY_SECONDS = Counter(
    "everbus_edge_read_only_seconds_total", "Seconds in which the bus was away."
)
READS = Counter("everbus_edge_reads_total", "Answered reads, by source.", ["source"])
REFUSED_WRITES = Counter(
    "everbus_edge_refused_writes_total",
    "Writes refused while the bus is away; sent: no, or maybe.",
    ["sent"],
)

METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
# Label of requests without a route: their paths are arbitrary.
UNMATCHED = "unmatched"
_EVENT_STREAM = b"text/event-stream"


class RequestMetrics:
    """
    ASGI middleware; counts and times every HTTP request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """
        Pass the request on and measure it.
        """
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        # A request that fails before its answer gets 500 from another middleware.
        answer: dict[str, Any] = {"status": 500, "streams": False}

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer["status"] = message["status"]
                answer["streams"] = _is_event_stream(message)
            await send(message)

        began = time.perf_counter()
        with IN_FLIGHT.track_inprogress():
            try:
                return await self.app(scope, receive, send_and_note)
            finally:
                took_s = time.perf_counter() - began
                _count(scope, answer["status"], None if answer["streams"] else took_s)


def set_read_only(away: bool, seconds: float) -> None:
    """
    Export whether the bus is away, and add *seconds* in which it was.
    """
    READ_ONLY.set(away)
    if away:
        READ_ONLY_SECONDS.inc(seconds)


def _count(scope: Scope, status: int, took_s: float | None) -> None:
    template = getattr(scope.get("route"), "path", UNMATCHED)
    method = scope["method"] if scope["method"] in METHODS else "other"
    REQUESTS.labels(template, method, f"{status // 100}xx").inc()
    if took_s is not None:
        SECONDS.labels(template, method).observe(took_s)


def _is_event_stream(start: Message) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(_EVENT_STREAM)
        for name, value in start.get("headers", ())
    )

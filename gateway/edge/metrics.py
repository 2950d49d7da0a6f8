"""
What an edge tells Prometheus; the table of names is in gateway/README.md.

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
    "How long a request took until its answer was sent, streams not counted.",
    ["route", "method"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)
IN_FLIGHT = Gauge("everbus_edge_requests_in_flight", "Requests being worked on.")
STREAMS = Gauge("everbus_edge_streams", "Live streams open, by transport.", ["stream"])
LIMITED = Counter(
    "everbus_edge_limited_total", "Requests refused, by the limit they met.", ["limit"]
)
READ_ONLY = Gauge("everbus_edge_read_only", "1 while the bus is away.")
READ_ONLY_SECONDS = Counter(
    "everbus_edge_read_only_seconds_total", "For how long the bus has been away."
)
READS = Counter("everbus_edge_reads_total", "Reads answered, by source.", ["source"])
REFUSED_WRITES = Counter(
    "everbus_edge_refused_writes_total",
    "Writes refused because the bus is away, by whether they may have been sent.",
    ["sent"],
)

METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
# What no route matches; a path is whatever somebody typed.
UNMATCHED = "unmatched"
_EVENT_STREAM = b"text/event-stream"


class Measured:
    """
    ASGI middleware that counts and times every HTTP request of *app*.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """
        Pass the request on, and measure it.
        """
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        # What breaks before it has answered is answered by others, with 500.
        answer: dict[str, Any] = {"status": 500, "streams": False}

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer["status"] = message["status"]
                answer["streams"] = _streams(message)
            await send(message)

        began = time.perf_counter()
        with IN_FLIGHT.track_inprogress():
            try:
                return await self.app(scope, receive, sending)
            finally:
                took_s = time.perf_counter() - began
                _count(scope, answer["status"], None if answer["streams"] else took_s)


def tell_away(away: bool, seconds: float) -> None:
    """
    Tell whether the bus is away, as it has been for the last *seconds*.
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


def _streams(start: Message) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(_EVENT_STREAM)
        for name, value in start.get("headers", ())
    )

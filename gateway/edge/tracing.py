"""
The span of a request at the edge, and the trace context of its commands.

A request without a trace gets one, named by its request id, so that the logs of every
process behind the edge can be searched for it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import Scope

from everbus.bus.trace_context import (
    current_traceparent,
    new_traceparent,
    parse_traceparent,
)

TRACE = "everbus.trace"

_tracer = trace.get_tracer("everbus.edge")
_propagator = TraceContextTextMapPropagator()


@contextmanager
def request_span(scope: Scope, headers: Headers) -> Iterator[Span]:
    """
    The span of one request, current for the time of the block; the traceparent for
    its commands is in the scope, as TRACE.
    """
    traceparent = headers.get("traceparent", "")
    carrier = {"traceparent": traceparent, "tracestate": headers.get("tracestate", "")}
    with _tracer.start_as_current_span(
        str(scope.get("method", "WEBSOCKET")),
        context=_propagator.extract(carrier),
        kind=SpanKind.SERVER,
        # The status reports the failure; an error's message may quote the request.
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        scope[TRACE] = current_traceparent() or _own_trace(
            traceparent, scope["everbus.request_id"]
        )
        yield span


def describe(span: Span, method: str, route: str, status: int) -> None:
    """
    Name *span* by its route, and set its attributes and status.
    """
    span.update_name(f"{method} {route}")
    span.set_attribute("http.request.method", method)
    span.set_attribute("http.route", route)
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_status(Status(StatusCode.ERROR))


def _own_trace(traceparent: str, request_id: str) -> str:
    found = parse_traceparent(traceparent)
    if found is not None:
        return str(found)
    named = parse_traceparent(f"00-{request_id}-{'1' * 16}-00")

    return str(new_traceparent(named.trace_id if named is not None else ""))

"""
The span of a request at the edge, and the trace context that its commands carry.

A request that belongs to no trace gets one of its own, named by its request id, so that
the logs of every process behind the door can be searched for it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import Scope

from bus.tracing import current, fresh, parsed

TRACE = "everbus.trace"

_tracer = trace.get_tracer("everbus.edge")
_propagator = TraceContextTextMapPropagator()


@contextmanager
def served(scope: Scope, headers: Headers) -> Iterator[Span]:
    """
    The span of one request, current for the time of the block; what the commands
    are to carry is in the scope, as TRACE.
    """
    given = headers.get("traceparent", "")
    carrier = {"traceparent": given, "tracestate": headers.get("tracestate", "")}
    with _tracer.start_as_current_span(
        str(scope.get("method", "WEBSOCKET")),
        context=_propagator.extract(carrier),
        kind=SpanKind.SERVER,
        # What went wrong is told by the status; messages may quote what was sent.
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        scope[TRACE] = current() or _own(given, scope["everbus.request_id"])
        yield span


def tell(span: Span, method: str, route: str, status: int) -> None:
    """
    Name *span* by its route, and tell how it ended.
    """
    span.update_name(f"{method} {route}")
    span.set_attribute("http.request.method", method)
    span.set_attribute("http.route", route)
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_status(Status(StatusCode.ERROR))


def _own(given: str, request_id: str) -> str:
    found = parsed(given)
    if found is not None:
        return str(found)
    named = parsed(f"00-{request_id}-{'1' * 16}-00")

    return str(fresh(named.trace_id if named is not None else ""))

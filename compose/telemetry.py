"""
Where spans go: to the collector that OpenTelemetry's own variables name.

Without `OTEL_EXPORTER_OTLP_ENDPOINT` nothing is recorded and nothing is sent.
"""

import atexit
import os

import structlog
from opentelemetry import trace

log = structlog.get_logger()

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def send_spans(role: str) -> None:
    """
    Have the spans of this process recorded and sent, if somebody collects them.

    Sampling, headers and the rest are as OpenTelemetry's variables say; the service's
    name is `everbus-<role>`, unless `OTEL_SERVICE_NAME` says otherwise.
    """
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        return
    try:
        # Late: the extra `otel`, which nobody needs who collects no spans.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("spans.not_sent", remedy="pip install 'everbus[otel]'")
        return
    named = os.environ.get("OTEL_SERVICE_NAME", f"everbus-{role}")
    provider = TracerProvider(resource=Resource.create({"service.name": named}))
    # A thread of its own, a bounded queue: a collector that is away costs spans only.
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    atexit.register(provider.shutdown)

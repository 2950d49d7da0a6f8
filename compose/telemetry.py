"""
Export of spans to the collector in OpenTelemetry's own variables.

Without `OTEL_EXPORTER_OTLP_ENDPOINT` the process records and sends nothing.
"""

import atexit
import os

import structlog
from opentelemetry import trace

log = structlog.get_logger()

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def send_spans(role: str) -> None:
    """
    Record and send the spans of this process, if a collector is configured.

    OpenTelemetry's variables set sampling, headers and the rest. The service's name is
    `everbus-<role>`, or `OTEL_SERVICE_NAME` if set.
    """
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        return
    try:
        # Imported late: only a process with a collector needs the extra `otel`.
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
    # Own thread, bounded queue: while the collector is away, only spans are lost.
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    atexit.register(provider.shutdown)

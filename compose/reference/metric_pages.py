"""
The page of Prometheus metrics, from the collectors that the processes register.
"""

from collections.abc import Iterator
from types import ModuleType

from prometheus_client.metrics import MetricWrapperBase

from everbus.compose.reference.markdown import in_code, page, table
from everbus.gateway.edge import metrics as edge
from everbus.gateway.telemetry import failures
from everbus.gateway.telemetry import metrics as lanes


def metrics_page() -> str:
    """
    Name, type, labels and meaning of every metric.
    """
    head = ("metric", "type", "labels", "what")

    return page(
        "Metrics",
        "A histogram also has `_bucket`, `_count` and `_sum`. No label holds an id, a "
        "name or a path.",
        "## Manager and archiver",
        table(head, sorted((*_metrics_of(lanes), *_metrics_of(failures)))),
        "## Edge",
        table(head, sorted(_metrics_of(edge))),
    )


def _metrics_of(module: ModuleType) -> Iterator[tuple[str, str, str, str]]:
    for collector in vars(module).values():
        if isinstance(collector, MetricWrapperBase | failures.FailureCounter):
            yield from _rows_of(collector)


def _rows_of(
    collector: MetricWrapperBase | failures.FailureCounter,
) -> Iterator[tuple[str, str, str, str]]:
    for metric in collector.collect():
        # A family knows its labels, a metric only its samples' ones.
        labels = getattr(collector, "_labelnames", ())
        if not labels:
            labels = getattr(metric, "_labelnames", ())
        name = metric.name + ("_total" if metric.type == "counter" else "")
        text = ", ".join(map(in_code, labels))
        yield in_code(name), metric.type, text, metric.documentation

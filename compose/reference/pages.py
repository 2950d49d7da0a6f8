"""
All reference pages, by file name.
"""

from collections.abc import Callable, Mapping

from everbus.compose.reference.asyncapi import asyncapi_page
from everbus.compose.reference.code_pages import errors_page, indicators_page
from everbus.compose.reference.command_pages import cli_page
from everbus.compose.reference.edge_description import openapi_page
from everbus.compose.reference.event_pages import events_page
from everbus.compose.reference.metric_pages import metrics_page
from everbus.compose.reference.settings_page import settings_page
from everbus.compose.reference.vectors import vectors_page

PAGES: Mapping[str, Callable[[], str]] = {
    "settings.md": settings_page,
    "metrics.md": metrics_page,
    "indicators.md": indicators_page,
    "errors.md": errors_page,
    "events.md": events_page,
    "cli.md": cli_page,
    "asyncapi.yaml": asyncapi_page,
    "openapi.json": openapi_page,
    "vectors.json": vectors_page,
}

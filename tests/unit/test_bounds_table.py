"""
Every bound of the settings is a row of docs/bounds.md, and the reverse.
"""

import re
from pathlib import Path
from typing import NamedTuple

import pytest
from prometheus_client import REGISTRY

from everbus.compose.bound_settings import BoundSettings
from everbus.compose.settings import SettingsError, load_settings
from everbus.gateway.edge import metrics as edge_metrics
from everbus.gateway.telemetry import metrics

HOUSE = Path(__file__).parent.parent.parent
UNITS = {"": 1, "s": 1, "KiB": 1024, "MiB": 1024 * 1024}
FIELDS = BoundSettings.model_fields
# Bound → the test that goes beyond it, and sees what happens then.
BROKEN_BY = {
    "batch_max_bytes": "unit/lane/test_fair_queue.py"
    "::test_a_batch_ends_before_the_command_that_exceeds_its_bytes",
    "cache_max_bytes": "unit/lane/test_cache_budget.py"
    "::test_a_cache_beyond_the_budget_forgets_its_oldest_sessions",
    "dead_letters_max_bytes": "integration/test_dead_letter_bounds.py"
    "::test_letters_are_bounded_in_bytes",
    "dead_letters_max_items": "integration/test_dead_letter_bounds.py"
    "::test_a_mads_newest_letters_push_out_its_oldest_and_nobody_elses",
    "edge_bad_messages": "integration/edge/test_live_edge.py"
    "::test_a_client_of_refused_messages_is_disconnected_and_slows_nobody",
    "edge_bad_tokens": "integration/edge/test_rest_limits.py"
    "::test_bad_tokens_of_an_address_refuse_no_good_one_from_there",
    "edge_connections": "unit/test_connections.py"
    "::test_addresses_that_speak_for_many_have_only_the_servers_bound",
    "edge_connections_per_address": "unit/test_connections.py"
    "::test_one_address_takes_no_more_than_its_share",
    "edge_head_timeout_s": "unit/test_connections.py"
    "::test_half_a_head_is_answered_and_closed_at_its_deadline",
    "fetched_max_bytes": "unit/test_fetch_budget.py"
    "::test_a_read_waits_until_others_are_committed",
    "ingress_max_bytes": "integration/test_quotas.py"
    "::test_a_mad_that_fills_a_stream_is_disabled_and_its_entries_stay",
    "mad_max_connections": "integration/test_quotas.py"
    "::test_too_many_connections_have_the_same_remedy",
    "mad_rate": "unit/lane/test_rates.py"
    "::test_a_mad_above_its_rate_is_told_when_to_come_again",
    "page_max_bytes": "unit/test_warm_pages.py"
    "::test_a_page_has_each_entry_once_and_in_order",
    "revoked_max_items": "unit/test_token_revocations.py"
    "::test_a_copy_beyond_its_bound_keeps_what_lasts_longest",
    "tenant_rate": "unit/lane/test_rates.py"
    "::test_a_tenants_rate_counts_all_its_mads_and_callers",
    "turn_max_entries": "unit/test_turns.py::test_a_turn_has_so_many_entries_at_most",
    "unread_max_bytes": "unit/test_unread.py"
    "::test_who_does_not_read_is_full_and_nobody_else",
    "unread_max_items": "unit/test_unread.py"
    "::test_who_does_not_read_is_full_and_nobody_else",
}


class Row(NamedTuple):
    """
    One row of the table.
    """

    name: str
    default: str
    setting: str
    metric: str
    text: str


def rows() -> dict[str, Row]:
    found = {}
    for line in (HOUSE / "docs" / "bounds.md").read_text().splitlines():
        if line.startswith("| `"):
            row = Row(*(cell.strip() for cell in line.strip("|").split("|")))
            found[row.name.strip("`")] = row
    return found


def in_numbers(default: str) -> int:
    number, _, unit = default.partition(" ")
    return int(number.replace(",", "")) * UNITS[unit]


def test_the_table_and_the_settings_name_the_same_bounds():
    assert rows().keys() == FIELDS.keys()


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_a_row_has_the_setting_its_default_and_what_happens(name):
    row = rows()[name]

    assert row.setting == f"`EVERBUS_{name.upper()}`"
    assert in_numbers(row.default) == getattr(load_settings({}), name)
    assert len(row.text) > 20


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_a_rows_metric_exists(name):
    assert metrics.BOUND_REACHED
    assert edge_metrics.LIMITED
    known = {
        f"{found.name}{suffix}"
        for found in REGISTRY.collect()
        for suffix in ("", "_total")
    }
    named = re.findall(r"`(everbus_\w+)`", rows()[name].metric)

    assert named
    assert set(named) <= known


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_a_bound_can_be_set_and_not_be_taken_away(name):
    asked = f"EVERBUS_{name.upper()}"
    chosen = FIELDS[name].default // 2

    assert getattr(load_settings({asked: str(chosen)}), name) == chosen
    with pytest.raises(SettingsError):
        load_settings({asked: "0"})


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_each_bound_has_a_test_that_goes_beyond_it(name):
    file, _, test = BROKEN_BY[name].partition("::")

    assert f"def {test}(" in (HOUSE / "tests" / file).read_text()

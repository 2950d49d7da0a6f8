"""
What a MAD's author needs to move from a store of its own: docs/migrate.md.
"""

from everbus.compose.migration.cutover import HOLD_S
from everbus.compose.migration.dual import DualStore
from everbus.compose.migration.mapping import load_mapping
from everbus.compose.migration.rules import MappingError
from everbus.compose.migration.second_store import DualStatus

__all__ = ["HOLD_S", "DualStatus", "DualStore", "MappingError", "load_mapping"]

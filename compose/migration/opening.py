"""
From a mapping to the open old store.
"""

from everbus.compose.migration.lines import JsonLines
from everbus.compose.migration.mapping import MigrationMapping
from everbus.compose.migration.source import OldStore
from everbus.compose.migration.tables import Tables


def open_store(mapping: MigrationMapping) -> OldStore:
    """
    The old store that *mapping* names.

    Raises:
        MappingError: it cannot be opened, or a table or column is missing.
    """
    source = mapping.source
    path = mapping.folder / source.path
    if source.kind == "jsonl":
        return JsonLines(path, source.messages, source.id)
    if source.kind == "mongodb":
        # Late: MADs with another store have no pymongo.
        from everbus.compose.migration.documents import Documents

        return Documents(source)
    columns = mapping.session_columns, mapping.entry_columns

    return Tables(path, source, *columns)

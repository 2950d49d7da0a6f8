"""
The dry run: what becomes what, without a connection to everbus.
"""

import asyncio
from typing import Any

import msgspec

from everbus.compose.migration.mapping import MigrationMapping
from everbus.compose.migration.reading import ConversationReader, RefusedRow
from everbus.compose.migration.source import OldStore, in_batches
from everbus.compose.progress import Advance

BATCH = 64
SHOWN_ENTRIES = 3
# Problems that are kept word for word; all are counted.
KEPT = 1_000


class PreviewedSession(msgspec.Struct, frozen=True):
    """
    The session that one conversation becomes, with its first entries.
    """

    where: str
    session: str
    owner: str
    tenant: str
    state: dict[str, Any]  # JSON values
    entries: list[Any]  # JSON values


class Preview(msgspec.Struct):
    """
    The result of a dry run: the first sessions, and counts of everything.
    """

    conversations: int = 0
    entries: int = 0
    refused: int = 0
    sessions: list[PreviewedSession] = []
    problems: list[RefusedRow] = []


async def preview(
    store: OldStore, mapping: MigrationMapping, first: int, advance: Advance
) -> Preview:
    """
    Read the whole old store by the mapping; show the *first* sessions.
    """
    found = Preview()
    reader = ConversationReader(store, mapping, lambda row: _note(found, row))
    batches = in_batches(store.conversations(), BATCH)
    while batch := await asyncio.to_thread(next, batches, None):
        for conversation in batch:
            plan = reader.plan(conversation)
            if plan is None:
                continue
            found.conversations += 1
            shown: list[Any] = []
            async for page in reader.pages(conversation):
                found.entries += len(page.entries)
                shown += page.entries[: SHOWN_ENTRIES - len(shown)]
            if len(found.sessions) < first:
                session = PreviewedSession(conversation.where, *plan[:4], shown)
                found.sessions.append(session)
        advance(len(batch))
    return found


def _note(found: Preview, row: RefusedRow) -> None:
    found.refused += 1
    if len(found.problems) < KEPT:
        found.problems.append(row)

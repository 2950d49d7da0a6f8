"""
All commits of a bus, read from its outboxes while no archiver trims them.
"""

import time
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

import msgspec
import redis.asyncio

from everbus.archiver.confirmation import ConfirmationLimits, confirmations, entry_of
from everbus.bus.messages import TimelineEntry
from everbus.compose.verify.commits import CommitCheck
from everbus.compose.verify.violations import Violations
from everbus.gateway.store import key_names
from everbus.gateway.store.hot_copy import VALUE_FIELD, unpack_records
from everbus.handlers.outcomes import Event


class CommitLog:
    """
    The outboxes' records, in order, checked as they come.

    Attributes:
        events: session → its events.
        entries: session → its timeline entries.
    """

    def __init__(self) -> None:
        self.events: dict[str, list[Event]] = defaultdict(list)
        self.entries: dict[str, list[TimelineEntry]] = defaultdict(list)
        self._violations = Violations()
        self._check = CommitCheck(self._violations)

    @classmethod
    async def read(cls, client: redis.asyncio.Redis, partitions: int) -> "CommitLog":
        """
        Every record of every outbox.
        """
        log = cls()
        for p in range(partitions):
            log.add(await client.xrange(key_names.outbox(p)))
        return log

    def add(self, entries: Any) -> None:
        """
        Add the records of outbox entries.
        """
        for _, fields in entries:
            for record in unpack_records(fields[VALUE_FIELD]):
                self._check.see(record)
                self.events[record.session] += record.events
                self.entries[record.session] += (
                    msgspec.msgpack.decode(e, type=TimelineEntry)
                    for e in record.entries
                )

    async def take(self, client: redis.asyncio.Redis, partitions: int) -> None:
        """
        Add the outboxes' records and confirm them, as an archiver does.
        """
        group = key_names.ARCHIVER_GROUP
        for p in range(partitions):
            outbox = key_names.outbox(p)
            if not any(
                g["name"] == group.encode() for g in await groups(client, outbox)
            ):
                await client.xgroup_create(outbox, group, "0", mkstream=True)
            read = await client.xreadgroup(group, "test", {outbox: ">"}, count=1000)
            entries = [entry for _, found in read for entry in found]
            taken = [entry_of(p, i, fields) for i, fields in entries]
            for command in confirmations(
                taken, (), time.time_ns() // 10**6, ConfirmationLimits()
            ):
                await client.execute_command(*command)
            self.add(entries)

    def check(self) -> None:
        """
        No command twice; versions and seqs of every session 1, 2, 3 …, made now.
        """
        assert self._violations.clean, self._violations.first
        for session, entries in self.entries.items():
            # On the server's clock, also where a takeover replayed them.
            ages_s = [
                (datetime.now(UTC) - entry.at).total_seconds() for entry in entries
            ]
            assert all(-60 < age < 3600 for age in ages_s), session

    def numbers(self, session: str, author: str) -> list[int]:
        """
        The `n` of the entries of *author*, in the timeline's order.
        """
        entries = self.entries[session]
        return [e.entry["n"] for e in entries if e.author == author]


async def groups(client: redis.asyncio.Redis, stream: str) -> list[Any]:
    """
    The groups of a stream; none if there is no stream.
    """
    return await client.xinfo_groups(stream) if await client.exists(stream) else []

"""
Comparison: the old store against everbus, conversation by conversation, seq by seq.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Literal, NamedTuple

import msgspec

from everbus.bus import Mad, NotFound, TimelinePage
from everbus.bus.errors import Forbidden
from everbus.compose.migration.copying import has_state
from everbus.compose.migration.mapping import MigrationMapping, SessionPlan
from everbus.compose.migration.reading import (
    ConversationReader,
    RefusedRow,
    same_json,
)
from everbus.compose.migration.source import OldConversation, OldStore, in_batches
from everbus.compose.progress import Advance
from everbus.compose.retried_calls import read_retrying
from everbus.compose.verify.readers import timeline_entries
from everbus.compose.worker_pool import each

BATCH = 64
AT_ONCE = 8
PAGE = 100
# Under dual write an entry may be on its way: only what lasts is a difference.
LOOKS = 4
LOOK_AGAIN_S = 0.5
# Differences that are kept word for word; all are counted.
KEPT = 1_000
# Of one conversation: the rest follows from the first.
KEPT_EACH = 10

DifferenceKind = Literal["no_session", "missing", "extra", "unequal", "state"]
MEANINGS: dict[str, str] = {
    "no_session": "conversations without a session",
    "missing": "entries that only the old store has",
    "extra": "entries that only everbus has",
    "unequal": "entries that differ",
    "state": "sessions whose owner, tags or contexts differ",
}


class StoreDifference(msgspec.Struct, frozen=True):
    """
    One difference; *seq* is 0 where it concerns the session.
    """

    kind: DifferenceKind
    conversation: str
    session: str
    seq: int = 0
    detail: str = ""

    def __str__(self) -> str:
        at = f" seq {self.seq}" if self.seq else ""
        detail = f": {self.detail}" if self.detail else ""

        return f"{self.kind} {self.session}{at} (old {self.conversation}){detail}"


class ComparisonReport(msgspec.Struct):
    """
    The result of a comparison.

    Attributes:
        counts: kind → number of differences.
        refused: rows of the old store that cannot be copied.
        last_old_write: newest `at` of the entries; empty if no entry has one.
    """

    conversations: int = 0
    entries: int = 0
    refused: int = 0
    counts: Counter[str] = msgspec.field(default_factory=Counter)
    differences: list[StoreDifference] = []
    last_old_write: str = ""

    @property
    def clean(self) -> bool:
        """
        Whether both stores hold the same, refused rows aside.
        """
        return not self.counts


class Comparison:
    """
    Compares all conversations, or those of one owner.
    """

    def __init__(
        self,
        store: OldStore,
        mapping: MigrationMapping,
        mad_of: Callable[[str], Awaitable[Mad]],
        owner: str = "",
    ) -> None:
        self.report = ComparisonReport()
        self._store = store
        self._mapping = mapping
        self._mad_of = mad_of
        self._owner = owner
        self._plans = ConversationReader(store, mapping, self._refused)
        # Rows are refused again at each look, and counted at the first.
        self._silent = ConversationReader(store, mapping, lambda _: None)

    async def run(self, advance: Advance) -> ComparisonReport:
        """
        Compare everything once.

        Raises:
            EverbusError: the bus is away for long, or refuses the token.
        """
        batches = in_batches(self._store.conversations(), BATCH)
        while batch := await asyncio.to_thread(next, batches, None):
            jobs = [job for one in batch if (job := await self._job(one))]
            await each(self._compare, jobs, AT_ONCE)
            advance(len(batch))
        return self.report

    async def _job(self, conversation: OldConversation) -> "_Pair | None":
        plan = self._plans.plan(conversation)
        if plan is None or self._owner not in ("", plan.owner):
            return None
        return _Pair(conversation, plan, await self._mad_of(plan.tenant))

    async def _compare(self, pair: "_Pair") -> None:
        look = await self._look(pair, self._plans)
        for _ in range(LOOKS - 1):
            if not look.counts:
                break
            await asyncio.sleep(LOOK_AGAIN_S)
            look = await self._look(pair, self._silent)
        report = self.report
        report.conversations += 1
        report.entries += look.entries
        report.counts.update(look.counts)
        report.last_old_write = max(report.last_old_write, look.newest)
        report.differences += look.differences[: KEPT - len(report.differences)]

    async def _look(self, pair: "_Pair", reader: ConversationReader) -> "_Look":
        look = _Look(str(pair.conversation.key), pair.plan.session_id)
        full = self._mapping.has_context
        try:
            session = await read_retrying(
                lambda: pair.mad.get_session(pair.plan.session_id, full=full)
            )
        except (NotFound, Forbidden) as error:
            look.note("no_session", 0, str(error))
            return look
        if session.owner_id != pair.plan.owner:
            look.note("state", 0, "owner")
        for part, value in pair.plan.state.items():
            if not has_state(session, part, value):
                look.note("state", 0, part)
        await look.entries_of(reader, pair)

        return look

    def _refused(self, _: RefusedRow) -> None:
        self.report.refused += 1


class _Pair(NamedTuple):
    conversation: OldConversation
    plan: SessionPlan
    mad: Mad


class _Look:
    """
    One look at one conversation.
    """

    def __init__(self, conversation: str, session: str) -> None:
        self.entries = 0
        self.newest = ""
        self.counts: Counter[str] = Counter()
        self.differences: list[StoreDifference] = []
        self._conversation, self._session = conversation, session

    def note(self, kind: DifferenceKind, seq: int, detail: str = "") -> None:
        """
        Count a difference, and keep the first ones.
        """
        self.counts[kind] += 1
        if len(self.differences) < KEPT_EACH:
            self.differences.append(
                StoreDifference(kind, self._conversation, self._session, seq, detail)
            )

    async def entries_of(self, reader: ConversationReader, pair: _Pair) -> None:
        """
        Compare the entries; both sides are read page by page.
        """
        there = timeline_entries(_pages(pair.mad, self._session))
        async for page in reader.pages(pair.conversation):
            for seq, entry in enumerate(page.entries, page.first):
                self.entries += 1
                self._see_time(entry)
                found = await anext(there, None)
                if found is None:
                    self.note("missing", seq)
                elif not same_json(found.entry, entry):
                    self.note("unequal", seq)
        async for beyond in there:
            self.note("extra", beyond.seq)

    def _see_time(self, entry: Any) -> None:
        at = entry.get("at") if isinstance(entry, dict) else None
        if isinstance(at, str):
            self.newest = max(self.newest, at)


def _pages(mad: Mad, session_id: str) -> Callable[[int], Awaitable[TimelinePage]]:
    return lambda after: read_retrying(
        lambda: mad.timeline(session_id, after=after, limit=PAGE)
    )

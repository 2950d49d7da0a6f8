"""
Dual write: what a MAD's author puts around the old store until it is switched off.

While the old store leads, everbus follows it: each write marks its conversation, and a
task brings the session up to what the old store then holds. So order and content are
the old store's own, despite failures and other writers. Once everbus leads, the old
store gets each message after everbus has it.
"""

import asyncio
import time
from asyncio import sleep
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from weakref import WeakValueDictionary

from everbus.bus import Mad
from everbus.bus.errors import NotFound
from everbus.compose.migration.copying import Copier, Diverged
from everbus.compose.migration.cutover import CutoverFile, Lead
from everbus.compose.migration.mapping import (
    MigrationMapping,
    SessionPlan,
    load_mapping,
)
from everbus.compose.migration.opening import open_store
from everbus.compose.migration.reading import ConversationReader
from everbus.compose.migration.rules import MappingError
from everbus.compose.migration.second_store import (
    DualStatus,
    Remembered,
    SecondStore,
    WriteOld,
)
from everbus.compose.migration.source import OldConversation


class DualStore:
    """
    Writes to the old store and to everbus, under the lead of one; in one event loop.

    The order of a conversation is kept: while the old store leads, it is that store's;
    while everbus leads, everbus's, and the old store gets the messages of this process
    in it. A failure of the second store is repeated, and never fails `append`.
    """

    def __init__(
        self,
        mapping: str | Path,
        mad: Mad,
        write_old: WriteOld,
        *,
        cutover: str | Path | None = None,
        wait_s: float = 0.0,
        mirror: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Wrap the old store that *mapping* names; *write_old* adds a message to it.

        Args:
            mad: a connected MAD whose token reaches the sessions.
            write_old: called with the conversation's id and the message's fields; it
                should end within HOLD_S.
            cutover: the file of `everbus migrate cutover`; without one the old store
                leads.
            wait_s: how long `append` waits for the second store; 0: it gets the message
                a moment later.
            mirror: whether the old store gets what everbus leads; without it there is
                no way back.

        Raises:
            MappingError: the mapping, or the store that it names, is wrong.
        """
        self._mapping: MigrationMapping = load_mapping(Path(mapping))
        if self._mapping.source.kind == "jsonl":
            raise MappingError(
                f"{mapping}: source.kind: 'jsonl' cannot be asked for one "
                "conversation; wanted a database"
            )
        self._store = open_store(self._mapping)
        self._status = DualStatus()
        self._reader = ConversationReader(self._store, self._mapping, self._refused)
        self._copier = Copier(mad, self._reader)
        self._mad, self._write_old = mad, write_old
        self._cutover = CutoverFile(Path(cutover)) if cutover is not None else None
        self._wait_s, self._mirror, self._clock = wait_s, mirror, clock
        self._second = SecondStore(self._bring_up, write_old, self._status)
        self._taken_over: Remembered[None] = Remembered()
        self._order: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def __aenter__(self) -> Self:
        self._second.start()

        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """
        Try once more to bring up the second store; `status` tells what it lacks.
        """
        await self._second.end()
        self._store.close()

    @property
    def status(self) -> DualStatus:
        """
        What the second store has not got yet.
        """
        return self._second.snapshot()

    async def session_id(self, conversation_id: str) -> str:
        """
        The id of the session that the conversation becomes.

        Raises:
            NotFound: the old store has no such conversation, or it cannot be copied.
        """
        return (await self._planned(conversation_id))[1].session_id

    def lead(self, user: str) -> Lead:
        """
        The store to read from for *user*, now.
        """
        if self._cutover is None:
            return "old"
        now = self._clock()

        return self._cutover.plan(now).at(now).of(user)

    async def append(
        self,
        conversation_id: str,
        message: Mapping[str, Any],
        *,
        user: str,
        command_id: str | None = None,
    ) -> None:
        """
        Add a message of *user* to the conversation, in both stores.

        Raises what the leading store raises. Around a cut-over of *user* it waits up to
        twice HOLD_S.

        Args:
            message: every field of the old store's row that the mapping names.
            command_id: as in `Mad.append_and_wait`, once everbus leads.
        """
        lock = self._order.setdefault(conversation_id, asyncio.Lock())
        async with lock:
            await self._hold(user)
            if self.lead(user) == "old":
                await self._append_to_old(conversation_id, message)
            else:
                await self._append_to_everbus(conversation_id, message, command_id)
        if self._wait_s:
            await self._second.attempt_within(conversation_id, self._wait_s)

    async def _hold(self, user: str) -> None:
        """
        Wait while the lead of *user* changes.
        """
        if self._cutover is None:
            return
        now = self._clock()
        while (hold_s := self._cutover.plan(now).hold_s(user, now)) > 0:
            await sleep(hold_s)
            now = self._clock()

    async def _append_to_old(self, key: str, message: Mapping[str, Any]) -> None:
        self._taken_over.forget(key)
        # Left from the time when everbus led: first, or the order would be another.
        await self._second.pay(key)
        await self._write_old(key, message)
        self._second.mark(key)

    async def _append_to_everbus(
        self, key: str, message: Mapping[str, Any], command_id: str | None
    ) -> None:
        session_id = await self._take_over(key)
        entry = self._mapping.entry(message)
        await self._mad.append_and_wait(session_id, entry, command_id=command_id)
        if self._mirror:
            self._second.owe(key, message)

    async def _take_over(self, key: str) -> str:
        """
        The session's id; it holds all that the old store had at the cut-over.
        """
        conversation, plan = await self._planned(key)
        if key not in self._taken_over:
            try:
                await self._copier.copy(conversation, plan)
            except Diverged:  # a comparison names it
                self._status.diverged += 1
            self._taken_over.put(key, None)

        return plan.session_id

    async def _planned(self, key: str) -> tuple[OldConversation, SessionPlan]:
        conversation = await asyncio.to_thread(self._store.conversation, key)
        plan = self._reader.plan(conversation) if conversation else None
        if conversation is None or plan is None:
            raise NotFound(
                f"the old store has no conversation {key!r} that the mapping can read"
            )
        return conversation, plan

    async def _bring_up(self, key: str, places: Remembered[Any]) -> None:
        conversation, plan = await self._planned(key)
        copied = await self._copier.copy(conversation, plan, *places.get(key))
        places.put(key, copied.place)

    def _refused(self, _: object) -> None:
        self._status.refused += 1

"""
Random histories of sessions, and what stores hold of them.
"""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import msgspec
from hypothesis import strategies as st

from everbus.compose.testing.contracts.assertions import (
    checkpoint_state,
    seqs,
    steps,
    whole,
)
from everbus.compose.testing.contracts.sample_histories import BEGIN, SampleHistory
from everbus.gateway.store.hot_copy import Record
from everbus.gateway.store.record_effects import context_patches, with_context
from everbus.gateway.store.warm_roles import WarmTier
from everbus.handlers.commands import ListSessions

NAMES = ("one", "two")
OPERATIONS = (
    *("update", "update", "context", "leap", "append", "append", "suspend"),
    *("full", "incremental", "archive", "purge", "return", "restore", "delete"),
)
histories = st.lists(
    st.tuples(st.sampled_from(OPERATIONS), st.sampled_from(NAMES)), max_size=30
)
# Records per write, and how many of those before are written again with them.
windows = st.lists(
    st.tuples(st.integers(1, 6), st.integers(0, 9)), min_size=1, max_size=9
)

Move = Callable[[WarmTier], Awaitable[None]]


class History:
    """
    What became of a few sessions, as records and moves in the order in which they
    have to reach a store first.

    Attributes:
        steps: records, and moves between the tiers.
        stories: all lives there were.
    """

    def __init__(self, operations: list[tuple[str, str]]) -> None:
        self.steps: list[Record | Move] = []
        self.stories: list[SampleHistory] = []
        self._living: dict[str, SampleHistory] = {}
        self._archived: dict[str, int] = {}
        self._contexts: dict[str, dict[str, Any]] = {}
        for n, (operation, name) in enumerate(operations):
            self._do(n, operation, name)

    def _do(self, n: int, operation: str, name: str) -> None:
        story = self._living.get(name)
        if story is None:
            self._begin(n, name)
        elif operation == "delete":
            self._add(story.delete())
            del self._living[name]
            self._archived.pop(name, None)
        elif operation == "purge" and name in self._archived:
            self.steps.append(purging(name))
        elif operation == "return" and name in self._archived:
            self.steps.append(returning(story, self._contexts[name]))
            story.moves += 1
            del self._archived[name]
        elif operation == "restore" and name not in self._archived:
            self.steps.append(restoring(name))
        elif name not in self._archived:
            self._change(n, operation, story)

    def _begin(self, n: int, name: str) -> None:
        story = SampleHistory(name, BEGIN + timedelta(hours=n), tags=(f"t{n}",))
        self._living[name] = story
        self._contexts[name] = {}
        self.stories.append(story)
        self._add(story.create())

    def _change(self, n: int, operation: str, story: SampleHistory) -> None:
        name = story.session.id
        match operation:
            case "update":
                self._add(story.update(context_summary={"n": n, f"k{n % 3}": n}))
            case "context":
                patch = {f"c{n % 3}": n if n % 2 else None} if n % 5 else None
                self._add(story.update(patch))
            case "leap":
                self._add(story.update({"leap": n}, steps=300))
            case "append":
                self._add(story.append(f"{n}a", f"{n}b"))
            case "suspend" if story.session.state == "active":
                self._add(story.suspend())
            case "full" | "incremental":
                self._add(story.checkpoint(f"c{n}", operation))
            case "archive":
                self._archived[name] = n
                self._add(story.archive(f"pointer{n}", n))

    def _add(self, record: Record) -> None:
        self.steps.append(record)
        if record.session in self._contexts:
            patches = context_patches([record], 0)
            context = with_context(self._contexts[record.session], patches)
            self._contexts[record.session] = context


def purging(name: str) -> Move:
    """
    A stub's entries leave, then its mark.
    """

    async def move(tier: WarmTier) -> None:
        held = (await tier.sessions([name]))[name]
        if not held.unpurged:
            return
        while await tier.purge(name, held.session.created_at, held.through, 3):
            pass
        done = msgspec.structs.replace(held, unpurged=False)
        assert await tier.swap(held, done)

    return move


def returning(story: SampleHistory, context: dict[str, Any]) -> Move:
    """
    A stub becomes a session again.
    """
    session, kept = story.session, dict(context)

    async def move(tier: WarmTier) -> None:
        stub = (await tier.sessions([session.id]))[session.id]
        assert await tier.swap(stub, whole(stub, session, kept))

    return move


def restoring(name: str) -> Move:
    """
    A returned session's mark goes.
    """

    async def move(tier: WarmTier) -> None:
        held = (await tier.sessions([name]))[name]
        done = msgspec.structs.replace(held, unrestored=False)
        assert await tier.swap(held, done)

    return move


async def deliver(
    tier: WarmTier, history: History, cuts: list[tuple[int, int]]
) -> None:
    """
    Write the history in windows of these sizes, each behind a repeat of so many
    records; a size without repeats also repeats what is long past.
    """
    written: list[Record] = []
    waiting: list[Record] = []
    for n, step in enumerate([*history.steps, None]):
        size, back = cuts[n % len(cuts)]
        if isinstance(step, Record):
            waiting.append(step)
            if len(waiting) < size:
                continue
        assert not await tier.write([*written[len(written) - back :], *waiting])
        written += waiting
        waiting = []
        # A paused archiver wakes up, and writes what it had read long ago.
        assert not await tier.write(written[back : back + size])
        if step is not None and not isinstance(step, Record):
            await step(tier)


async def deliver_once(tier: WarmTier, history: History) -> None:
    """
    Do each step of the history once, in order.
    """
    for step in history.steps:
        if isinstance(step, Record):
            assert not await tier.write([step])
        else:
            await step(tier)


async def content(tier: WarmTier, history: History) -> dict[str, Any]:
    """
    All that *tier* holds of the history's lives, in comparable form.
    """
    found: dict[str, Any] = {
        "held": await tier.sessions(NAMES, context=True),
        "removals": list(await tier.removals(100)),
        "newest": (await tier.find(ListSessions(), "ada")).sessions,
        "states": (await tier.counts()).states,
        "cold": (await tier.counts()).cold_bytes,
    }
    for story in history.stories:
        name, generation = story.session.id, story.generation
        page = await tier.checkpoints(name, generation, None, 100)
        found[f"{name} {generation}"] = {
            "seqs": await seqs(tier, story),
            "entries": [
                msgspec.msgpack.decode(packed)
                for packed in await tier.entries(name, generation, 1, 1000)
            ],
            "changes": await steps(tier, story),
            "snapshot": await tier.snapshot(name, generation, 10**6),
            "checkpoints": page,
            "states": [
                await checkpoint_state(tier, story, c.id) for c in page.checkpoints
            ],
        }
    return found

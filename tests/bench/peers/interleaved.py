"""
All arms of all passes, in turns: A B C, A B C, so that slow phases hit all alike.

An arm that fails once is dropped, with its reason; one of ours that fails ends it all.
"""

import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.peers import ours, queue_arms, store_arms
from tests.bench.peers.children import Failed
from tests.bench.peers.competitors import Found

# everbus is done sooner, so it gets more to do.
OUR_SHARE = 2.0
OUR_ARMS = (ours.BEFORE, ours.WHILE)


class Sizes(NamedTuple):
    """
    How much is measured: passes, and in each messages, round trips and store calls.
    """

    passes: int = 3
    messages: int = 20_000
    asks: int = 200
    calls: int = 1_000

    def short(self) -> "Sizes":
        """
        One pass of a fifth of the work: less than peers read at once shows nothing.
        """
        return Sizes(1, *(size // 5 for size in self[1:]))


@dataclass(frozen=True)
class Measured:
    """
    What every arm came to, a figure a pass.

    Attributes:
        queues: arm → its passes.
        stores: operation → arm → its passes.
        counts: arm → messages or calls in each pass.
        absent: arm → why it has no figures.
    """

    queues: dict[str, list[dict[str, float]]]
    stores: dict[str, dict[str, list[dict[str, float]]]]
    counts: dict[str, int]
    absent: dict[str, str]


class Passes:
    """
    The arms that are measured.
    """

    def __init__(
        self, queues: list[Found], stores: list[Found], sizes: Sizes, folder: Path
    ) -> None:
        self._queues = queues
        self._stores = stores
        self._sizes = sizes
        self._folder = folder
        self.found = Measured({}, {}, {}, {})

    async def run(self) -> None:
        """
        Measure.
        """
        for number in range(1, self._sizes.passes + 1):
            at = f"pass {number} of {self._sizes.passes}"
            if self._queues:
                await self._our_queue(at)
            for found in self._queues:
                await self._arm(at, found, self._queue, self._sizes.messages)
            if self._stores:
                await self._our_store(at)
            for found in self._stores:
                await self._arm(at, found, self._store, self._sizes.calls)

    async def _our_queue(self, at: str) -> None:
        _progress(at, "everbus")
        count = int(self._sizes.messages * OUR_SHARE)
        for arm, figures in (await ours.a_pass(count, self._sizes.asks)).items():
            self.found.counts[arm] = count
            self.found.queues.setdefault(arm, []).append(figures)

    async def _our_store(self, at: str) -> None:
        name = store_arms.EVERBUS.name
        _progress(at, f"{name} as a store")
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            told = await store_arms.our_pass(Path(folder), self._sizes.calls)
        self._keep(name, told)

    async def _arm(
        self, at: str, found: Found, measure: Callable[..., Awaitable[None]], size: int
    ) -> None:
        name = found.peer.name
        if name in self.found.absent:
            return
        _progress(at, name)
        count = max(1, int(size * found.peer.share))
        try:
            with tempfile.TemporaryDirectory(dir=self._folder) as folder:
                await measure(found, Path(folder), count)
        except Failed as failed:
            self._drop(name, f"{at}: {failed}")
        else:
            self.found.counts[name] = count

    async def _queue(self, found: Found, folder: Path, count: int) -> None:
        told = await queue_arms.a_pass(found, folder, count, self._sizes.asks)
        self.found.queues.setdefault(found.peer.name, []).append(told)

    async def _store(self, found: Found, folder: Path, count: int) -> None:
        self._keep(found.peer.name, await store_arms.a_pass(found, folder, count))

    def _keep(self, arm: str, told: dict[str, dict[str, float]]) -> None:
        for operation, figures in told.items():
            arms = self.found.stores.setdefault(operation, {})
            arms.setdefault(arm, []).append(figures)

    def _drop(self, arm: str, reason: str) -> None:
        print(f"{arm}: {reason}", file=sys.stderr)
        self.found.absent[arm] = reason
        self.found.queues.pop(arm, None)
        for arms in self.found.stores.values():
            arms.pop(arm, None)


def _progress(*words: Any) -> None:
    print(*words, sep=", ", file=sys.stderr, flush=True)

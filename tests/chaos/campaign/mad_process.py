"""
One MAD of the campaign in a process of its own, which may die at any instant.

It tells each write before it sends it and each answer after it came, one line of JSON
at a time, so that what a killed process has said is still known.
"""

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

from everbus.bus import Mad, connect
from everbus.bus.errors import (
    Defect,
    EverbusError,
    NotFound,
    ReplyTimeout,
    VersionConflict,
)
from everbus.bus.settled_numbers import RefusedCommand
from everbus.compose.bench.marks import MARK, field_of

# Marks of one MAD process, by durability; LATER has no reply.
HOT, REPLICATED, WARM, LATER = range(4)
LEVELS = ("hot", "replicated", "warm", "hot")
CLASSES = 4
CALL_S = 4.0
LOOPS = 3
SETTLE_S = 45.0
KEPT_IDS = 50
TEXT = "x" * 60


def main() -> None:
    """
    Run until stdin ends: argv is the bus, the name and the token.
    """
    uvloop.run(_main(*sys.argv[1:4]))


async def _main(url: str, name: str, token: str) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    teller = Teller()
    async with connect(
        url, mad=name, token=token, timeout=60, on_refused=teller.refused
    ) as mad:
        teller.tell(["ready"])
        running: Episode | None = None
        while line := await reader.readline():
            order = json.loads(line)
            if "go" in order:
                running = Episode(mad, teller, order["go"])
                running.start()
            elif running is not None:
                await running.end()
                running = None


class Teller:
    """
    What the process says, and what was refused later.
    """

    def __init__(self) -> None:
        self.later: dict[str, tuple[int, str, int, int]] = {}
        self.settled: dict[str, tuple[int, str, int, int]] = {}

    def tell(self, what: list[Any]) -> None:
        os.write(1, json.dumps(what).encode() + b"\n")

    def refused(self, refused: RefusedCommand) -> None:
        """
        A write without a reply was refused.
        """
        mark = self.later.pop(refused.id, None)
        if mark is not None:
            s, kind, c, n = mark
            self.tell(["refused", s, kind, c, n, refused.code])
        elif refused.id in self.settled:
            s, kind, c, n = self.settled.pop(refused.id)
            self.tell(["late", s, kind, c, n, refused.code])


class Episode:
    """
    The load of one episode.
    """

    def __init__(self, mad: Mad, teller: Teller, order: dict[str, Any]) -> None:
        self._mad = mad
        self._teller = teller
        self._sessions: list[str] = order["sessions"]
        self._misc: list[str] = order["misc"]
        self._base: int = order["client"] * CLASSES
        self._rate: float = order["rate"]
        self._levels: list[int] = order["levels"]
        self._chance = random.Random(order["seed"])
        self._last: dict[tuple[int, str, int], int] = {}
        # session → highest (version, seq) that was answered, by level.
        self._seen: dict[tuple[int, bool], tuple[int, int]] = {}
        self._unknown: list[tuple[str, int, str, int, int]] = []
        self._ids: list[str] = []
        self._stop = asyncio.Event()
        self._sent = self._reads = 0
        self._began = time.monotonic()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """
        Begin to send.
        """
        self._tasks = [asyncio.create_task(self._loop(n)) for n in range(LOOPS)]

    async def end(self) -> None:
        """
        Stop, settle all that can be settled, and say so.
        """
        self._stop.set()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for task in self._tasks:
            if (error := task.exception()) is not None:
                self._teller.tell(["broken", f"{type(error).__name__}: {error}"])
        until = time.monotonic() + SETTLE_S
        done = await self._flush(until)
        left = await self._resolve(until)
        self._teller.tell(["end", done, left, self._reads])

    async def _loop(self, number: int) -> None:
        actions: list[tuple[Callable[[], Awaitable[None]], int]] = [
            (self._burst, 6),
            (self._updates, 4),
            (self._appends, 4),
            (self._expecting, 2),
            (self._safe, 3),
            (self._read, 2),
            (self._page, 1),
            (self._misc_call, 2),
            (self._settle, 1),
        ]
        calls, weights = [one for one, _ in actions], [n for _, n in actions]
        while not self._stop.is_set():
            [action] = self._chance.choices(calls, weights)
            await action()
            ahead_s = self._sent / self._rate - (time.monotonic() - self._began)
            if ahead_s > 0:
                await asyncio.sleep(min(ahead_s, 0.25))
            else:
                await asyncio.sleep(0)

    def _give(self, s: int, kind: str, level: int) -> tuple[int, int]:
        c = self._base + level
        n = self._last[s, kind, c] = self._last.get((s, kind, c), 0) + 1
        self._sent += 1
        return c, n

    def _pick(self) -> int:
        return self._chance.randrange(len(self._sessions))

    async def _burst(self) -> None:
        """
        Appends and updates without a reply.
        """
        s, kind = self._pick(), self._chance.choice("aaau")
        count = self._chance.randrange(20, 60)
        c, n = self._given(s, kind, LATER, count)
        for m in range(n, n + count):
            try:
                if kind == "a":
                    id_ = self._mad.append(self._sessions[s], self._entry(c, m))
                else:
                    id_ = self._mad.update_later(self._sessions[s], _patch(c, m))
            except EverbusError as error:
                self._teller.tell(["refused", s, kind, c, m, error.code])
                await asyncio.sleep(0.05)
            else:
                self._teller.later[id_] = (s, kind, c, m)

    def _given(self, s: int, kind: str, level: int, count: int) -> tuple[int, int]:
        """
        The client and the first of *count* marks, which are told at once.
        """
        c, first = self._give(s, kind, level)
        for _ in range(count - 1):
            self._give(s, kind, level)
        self._teller.tell(["given", s, kind, c, first + count - 1])
        return c, first

    async def _settle(self) -> None:
        await self._flush(time.monotonic() + 1.0)

    async def _flush(self, until: float) -> bool:
        """
        Wait until what was sent without a reply is settled, and acknowledge that.
        """
        while True:
            upto = dict(self._teller.later)
            try:
                await self._mad.flush(
                    settled=True, timeout=max(0.5, min(5.0, until - time.monotonic()))
                )
            except EverbusError as error:
                # What was refused is known by `on_refused`; the rest is asked again.
                if "refused" not in error.details:
                    if time.monotonic() > until:
                        return not upto
                    await asyncio.sleep(0.05)
                continue
            self._acknowledge_later(upto)
            if len(self._teller.later) == 0 or not self._stop.is_set():
                return True

    def _acknowledge_later(self, upto: dict[str, tuple[int, str, int, int]]) -> None:
        marks: dict[tuple[int, str, int], list[int]] = {}
        later = self._teller.later
        for id_ in upto:
            mark = later.pop(id_, None)
            if mark is not None:
                s, kind, c, n = mark
                marks.setdefault((s, kind, c), []).append(n)
                self._teller.settled[id_] = mark
        for (s, kind, c), numbers in marks.items():
            self._teller.tell(["applied", s, kind, c, numbers])
        while len(self._teller.settled) > 20_000:
            self._teller.settled.pop(next(iter(self._teller.settled)))

    async def _updates(self) -> None:
        s = self._pick()
        await self._each(s, "u", HOT, 12)

    async def _appends(self) -> None:
        s = self._pick()
        await self._each(s, "a", HOT, 12)

    async def _safe(self) -> None:
        """
        Writes of the higher levels.
        """
        level = self._chance.choice(self._levels)
        s, kind = self._pick(), self._chance.choice("au")
        await self._each(s, kind, level, 6)

    async def _each(self, s: int, kind: str, level: int, count: int) -> None:
        c, first = self._given(s, kind, level, count)
        write = self._append if kind == "a" else self._update
        await asyncio.gather(
            *(write(s, c, first + n, level, None) for n in range(count))
        )

    async def _expecting(self) -> None:
        """
        Updates that expect one version: at most one of them may win.
        """
        s = self._pick()
        version = self._seen.get((s, False), (0, 0))[0]
        if not version:
            return
        c, n = self._given(s, "u", HOT, 3)
        won = await asyncio.gather(
            *(self._update(s, c, n + m, HOT, version) for m in range(3))
        )
        if sum(won) > 1:
            self._teller.tell(["seen", s, "forked", HOT, f"two won version {version}"])

    async def _update(
        self, s: int, c: int, n: int, level: int, expected: int | None
    ) -> bool:
        async def write() -> int:
            after = await self._mad.update_session(
                self._sessions[s],
                _patch(c, n),
                expected_version=expected,
                durability=LEVELS[level],  # type: ignore[arg-type]
                timeout=CALL_S,
            )
            if expected is not None and after.version != expected + 1:
                what = f"expected {expected}, made {after.version}"
                self._teller.tell(["seen", s, "forked", level, what])
            if after.context_summary.get(field_of(c)) != n:
                what = f"update {n} of {c} answered with another state"
                self._teller.tell(["seen", s, "out_of_order", level, what])
            return after.version

        return await self._write(s, "u", c, n, level, write)

    async def _append(self, s: int, c: int, n: int, level: int, _: int | None) -> bool:
        async def write() -> int:
            return await self._mad.append_and_wait(
                self._sessions[s],
                self._entry(c, n),
                durability=LEVELS[level],  # type: ignore[arg-type]
                timeout=CALL_S,
            )

        return await self._write(s, "a", c, n, level, write)

    async def _write(
        self,
        s: int,
        kind: str,
        c: int,
        n: int,
        level: int,
        write: Callable[[], Awaitable[int]],
    ) -> bool:
        try:
            number = await write()
        except VersionConflict as error:
            self._teller.tell(["refused", s, kind, c, n, error.code])
            self._note(s, HOT, error.current_version, 0)
            return False
        except (ReplyTimeout, Defect) as error:
            id_ = getattr(error, "command_id", "")
            if id_:
                self._unknown.append((id_, s, kind, c, n))
            return False
        except EverbusError as error:
            # It was settled, be it applied or refused: nobody knows.
            known = error.details.get("applied") or error.details.get("settled_before")
            if not known:
                self._teller.tell(["refused", s, kind, c, n, error.code])
                await asyncio.sleep(0.02)
            return False
        self._teller.tell(["answered", s, kind, c, n, number])
        self._note(s, level, *((number, 0) if kind == "u" else (0, number)))
        return True

    def _note(self, s: int, level: int, version: int, seq: int) -> None:
        for safe in (False, True) if level == WARM else (False,):
            v, q = self._seen.get((s, safe), (0, 0))
            self._seen[s, safe] = (max(v, version), max(q, seq))

    async def _read(self) -> None:
        s = self._pick()
        before = [self._seen.get((s, safe), (0, 0)) for safe in (False, True)]
        try:
            found = await self._mad.get_session(self._sessions[s], timeout=CALL_S)
        except EverbusError as error:
            self._unread(s, error)
            return
        self._reads += 1
        for level, (version, seq) in zip((HOT, WARM), before, strict=True):
            if found.version < version or found.last_seq < seq:
                got = f"{found.version}, {found.last_seq} after {version}, {seq}"
                self._teller.tell(["seen", s, "stale", level, got])

    def _unread(self, s: int, error: EverbusError) -> None:
        if isinstance(error, NotFound):
            safe = any(self._seen.get((s, True), (0, 0)))
            level = WARM if safe else HOT
            self._teller.tell(["seen", s, "lost", level, error.message])

    async def _page(self) -> None:
        s = self._pick()
        seq = self._seen.get((s, False), (0, 0))[1]
        try:
            page = await self._mad.timeline(
                self._sessions[s], after=None, limit=50, timeout=CALL_S
            )
        except EverbusError as error:
            self._unread(s, error)
            return
        self._reads += 1
        seqs = [entry.seq for entry in page.entries]
        if seqs and seqs != list(range(seqs[0], seqs[0] + len(seqs))):
            self._teller.tell(["seen", s, "gap", WARM, f"a page has {seqs}"])
        if (seqs[-1] if seqs else 0) < seq:
            what = f"a page ends at {seqs[-1:]} after {seq}"
            self._teller.tell(["seen", s, "stale", HOT, what])

    async def _misc_call(self) -> None:
        """
        Any other call; only its effects on the session's numbers are judged.
        """
        mad, session = self._mad, self._chance.choice(self._misc)
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: mad.join(session, timeout=CALL_S),
            lambda: mad.leave(session, timeout=CALL_S),
            lambda: mad.broadcast(session, {"n": 1}, timeout=CALL_S),
            lambda: mad.create_checkpoint(session, timeout=CALL_S),
            lambda: mad.checkpoints(session, timeout=CALL_S),
            lambda: mad.suspend_session(session, timeout=CALL_S),
            lambda: mad.resume_session(session, timeout=CALL_S),
            lambda: mad.durable(session, timeout=CALL_S),
            lambda: mad.create_session(mad.name, timeout=CALL_S),
            lambda: mad.get_session(session, full=True, timeout=CALL_S),
            lambda: mad.timeline(session, limit=10, timeout=CALL_S),
            lambda: mad.append_and_wait(session, "hello", timeout=CALL_S),
            lambda: mad.list_sessions(limit=5, timeout=CALL_S),
            lambda: mad.update_session(session, {"tags": ["a"]}, timeout=CALL_S),
        ]
        try:
            await self._chance.choice(calls)()
            self._sent += 1
        except EverbusError:
            await asyncio.sleep(0.01)

    async def _resolve(self, until: float) -> int:
        """
        Ask for the outcome of what had no answer; the number that stays unknown.
        """
        left = 0
        for id_, s, kind, c, n in self._unknown:
            state = await self._state(id_, until)
            if state == "applied":
                self._teller.tell(["applied", s, kind, c, [n]])
            elif state in ("rejected", "cancelled"):
                self._teller.tell(["refused", s, kind, c, n, state])
            else:
                left += 1
        return left

    async def _state(self, id_: str, until: float) -> str:
        while time.monotonic() < until:
            try:
                found = await self._mad.outcome(id_, timeout=CALL_S)
            except EverbusError:
                await asyncio.sleep(0.1)
                continue
            if found.state != "pending":
                return found.state
            await asyncio.sleep(0.05)
        return "unknown"

    def _entry(self, c: int, n: int) -> dict[str, Any]:
        return {MARK: [c, n], "text": TEXT}


def _patch(c: int, n: int) -> dict[str, Any]:
    return {"context_summary": {field_of(c): n}}

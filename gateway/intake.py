"""
How entries come into a lane: groups, fenced reads, waiting, trimming.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import structlog
from redis.exceptions import ResponseError

from bus import keys
from bus.errors import Malformed
from bus.wire import Command, Wire, error_word, refusal
from gateway import metrics
from gateway.delivery import Entry, Work, works_of
from gateway.errors import Disturbed, check_fenced
from gateway.store import names
from gateway.store.scripts import script

log = structlog.get_logger()

# One consumer a lane, whoever owns it: a takeover reads the same pending list.
CONSUMER = "lane"
PAGE = 256
READ_ENTRIES = 256
MAX_ID_PART = 2**64 - 1
# The waiting read is asked for one entry; it only tells that there is news.
WAIT_MS = 2_000
WAIT_MARGIN_S = 1.5


class Intake:
    """
    The ingress streams of one lane.

    Attributes:
        pending: MAD → ids of entries read and not yet acknowledged, in order.
    """

    def __init__(self, wire: Wire, partition: int, partitions: int, owner: str) -> None:
        self._wire = wire
        self._partition = partition
        self._partitions = partitions
        self._owner = owner
        self._cursors: dict[str, str] = {}
        self._untrimmed: set[str] = set()
        self._seen: dict[str, str] = {}
        self._astray = False
        self.pending: dict[str, dict[str, None]] = {}

    @property
    def mads(self) -> list[str]:
        """
        The MADs whose ingress is read.
        """
        return list(self._cursors)

    @property
    def astray(self) -> bool:
        """
        Whether an interrupted wait may have been given entries that we do not know.
        """
        return self._astray

    async def admit(self, mads: Iterable[str]) -> None:
        """
        Read these MADs' ingress too, making group and stream where they lack.

        A group is made at the checkpoint below which everything is settled, not
        at `$`, which would skip commands that are older than their first reader.

        Raises:
            WireFailed: the connection broke.
        """
        fresh = [mad for mad in mads if mad not in self._cursors]
        if not fresh:
            return
        p = self._partition
        await self._make_groups(fresh)
        groups = await self._wire.exchange(
            [("XINFO", "GROUPS", keys.ingress(p, mad)) for mad in fresh]
        )
        for mad, reply in zip(fresh, groups, strict=True):
            if isinstance(reply, ResponseError):
                raise Disturbed(f"ingress of {mad} vanished: {reply}", cause="nogroup")
            self._cursors[mad] = _last_delivered(reply)
            self.pending[mad] = {}

    async def replay(self) -> list[Work]:
        """
        What an earlier owner read and did not settle, per ingress in order.

        Raises:
            Superseded: the lane has another owner.
            WireFailed: the connection broke.
        """
        works: list[Work] = []
        for mad in self._cursors:
            after = "0"
            while entries := await self._pending_page(mad, after):
                after = entries[-1][0].decode()
                works += self._works(mad, entries)
        return works

    def read(self) -> Command:
        """
        The fenced read of the next entries, at most READ_ENTRIES in all.

        After an interrupted wait it reads what that one may have been given
        behind our back: what is pending behind the last entry that we know.
        """
        share = max(1, READ_ENTRIES // max(1, len(self._cursors)))
        if self._astray:
            return self._read_command(self._cursors, share)
        return self._read_command(dict.fromkeys(self._cursors, ">"), share)

    def accept(self, reply: Any) -> tuple[int, list[Work]]:
        """
        Server time in ms and the works in the reply to `read`.

        Raises:
            Superseded: the lane has another owner.
            Disturbed: a group is gone; the lane must begin anew.
        """
        now_ms, streams = _checked(reply)
        works: list[Work] = []
        for key, entries in streams or ():
            # A read of what is pending names its stream also if there is nothing.
            if entries:
                mad = key.decode().partition(":in:")[2]
                works += self._works(mad, entries)
                self._cursors[mad] = entries[-1][0].decode()
        self._astray = self._astray and bool(works)
        for mad, seen in self._seen.items():
            # Told of by the wait, but not to be had: must not wake us for ever.
            if _after(seen, self._cursors[mad]):
                self._cursors[mad] = seen
        self._seen.clear()

        return now_ms, works

    async def wait(self, wait_ms: int) -> Any:
        """
        The reply to a fenced read made once an ingress has news, or after *wait_ms*.

        The waiting read takes nothing away; the fenced one is written behind it,
        so that the server goes on to it without another round trip.

        Raises:
            WireFailed: no answer in time (connected, but deaf), or interrupted;
                the server may have given us entries behind our back.
        """
        if self._astray:
            # Written behind a wait, it would come late; and the wait would tell of
            # news that a read of what is pending cannot have.
            [pending] = await self._wire.exchange([self.read()])
            return pending
        streams = [keys.ingress(self._partition, mad) for mad in self._cursors]
        waiting: Command = (
            *("XREAD", "COUNT", 1, "BLOCK", max(1, wait_ms), "STREAMS"),
            *streams,
            *self._cursors.values(),
        )
        reading = self.read()
        self._astray = True
        seen, reply = await self._wire.exchange(
            [waiting, reading], timeout_s=wait_ms / 1000 + WAIT_MARGIN_S
        )
        self._astray = False
        if isinstance(seen, ResponseError):
            raise refusal(seen)
        for key, entries in seen or ():
            self._seen[key.decode().partition(":in:")[2]] = entries[-1][0].decode()

        return reply

    def settled(self, acknowledged: dict[str, list[str]]) -> None:
        """
        Note which entries a commit acknowledged.
        """
        for mad, ids in acknowledged.items():
            waiting = self.pending[mad]
            for identifier in ids:
                waiting.pop(identifier, None)
            if ids:
                self._untrimmed.add(mad)

    def trims(self) -> dict[str, str]:
        """
        MAD → the id below which its ingress is settled, where that has moved.

        Never by length, which would eat unread commands, and never by XDEL,
        which makes the group's lag unknowable.
        """
        found = {mad: self._settled_below(mad) for mad in self._untrimmed}
        self._untrimmed.clear()

        return found

    def oldest_ms(self) -> int | None:
        """
        When the oldest pending entry arrived; None if nothing is pending.
        """
        firsts = [next(iter(ids)) for ids in self.pending.values() if ids]
        return min((int(i.partition("-")[0]) for i in firsts), default=None)

    def _settled_below(self, mad: str) -> str:
        for identifier in self.pending[mad]:
            return identifier
        return _following(self._cursors[mad])

    async def _make_groups(self, mads: list[str]) -> None:
        p = self._partition
        points = await self._wire.call("HMGET", names.checkpoints(p), *mads)
        make = ("XGROUP", "CREATE")
        replies = await self._wire.exchange(
            [
                (*make, keys.ingress(p, mad), keys.GROUP, _before(point), "MKSTREAM")
                for mad, point in zip(mads, points, strict=True)
            ]
        )
        for mad, point, reply in zip(mads, points, replies, strict=True):
            if not isinstance(reply, ResponseError):
                # A checkpoint without a group: both were there, one was lost.
                level = log.error if point is not None else log.debug
                level("group.created", mad=mad, lane=p, start=_before(point))
            elif error_word(reply) != "BUSYGROUP":
                raise refusal(reply)

    async def _pending_page(self, mad: str, after: str) -> list[Any]:
        command = self._read_command({mad: after}, PAGE)
        [reply] = await self._wire.exchange([command])
        _, streams = _checked(reply)
        if not streams:
            return []
        entries: list[Any] = streams[0][1]
        return entries

    def _read_command(self, after: Mapping[str, str], count: int) -> Command:
        p = self._partition
        return script(
            "read",
            [names.owner(p), *(keys.ingress(p, mad) for mad in after)],
            *(self._owner, keys.GROUP, CONSUMER, count),
            *after.values(),
        )

    def _works(self, mad: str, entries: list[Any]) -> list[Work]:
        works: list[Work] = []
        for identifier, fields in entries:
            name = identifier.decode()
            self.pending[mad][name] = None
            if fields is None:
                works.append(_lost(mad, name))
                continue
            works += works_of(mad, name, fields, self._partition, self._partitions)
        return works


def _checked(reply: Any) -> list[Any]:
    answer = check_fenced(reply)
    if answer[0] == b"nogroup":
        raise Disturbed("a consumer group is gone", cause="nogroup")
    return [*answer, None][:2]


def _lost(mad: str, identifier: str) -> Work:
    """
    A pending entry that somebody trimmed away: a lost command, told loudly.
    """
    log.error("entry.trimmed", mad=mad, entry=identifier)
    metrics.TRIMMED.inc()
    work = Work(Entry(mad, identifier), 0, b"")
    work.entry.unsettled = 1
    work.trouble = Malformed("trimmed while it was pending: lost", cause="trimmed")
    return work


def _last_delivered(groups: list[Any]) -> str:
    for group in groups:
        told = dict(zip(group[::2], group[1::2], strict=True))
        if told[b"name"] == keys.GROUP.encode():
            last: bytes = told[b"last-delivered-id"]
            return last.decode()
    return "0-0"


def _before(point: bytes | None) -> str:
    """
    The last id below the checkpoint *point*, where a group has to start.
    """
    if point is None:
        return "0"
    ms, _, n = point.decode().partition("-")
    return f"{ms}-{int(n) - 1}" if int(n or 0) > 0 else f"{int(ms) - 1}-{MAX_ID_PART}"


def _following(identifier: str) -> str:
    """
    The next higher stream id; empty at the end of all ids.

    A hostile publisher can use the highest id on its own ingress, and a script
    that is handed an id beyond it would fail midway.
    """
    ms, _, n = identifier.partition("-")
    if int(n or 0) < MAX_ID_PART:
        return f"{ms}-{int(n or 0) + 1}"
    return f"{int(ms) + 1}-0" if int(ms) < MAX_ID_PART else ""


def _after(one: str, other: str) -> bool:
    return tuple(map(int, one.split("-"))) > tuple(map(int, other.split("-")))

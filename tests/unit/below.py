"""
One session in the tiers below, made by hand: what a reader finds in any situation.
"""

from datetime import timedelta
from typing import Any

import msgspec

from everbus.bus.errors import EverbusError
from everbus.bus.messages import TimelineEntry, pack
from everbus.compose.testing.memory.warm import MemoryWarm
from everbus.gateway.store.cold.archives import Archives
from everbus.gateway.store.cold.local import MemoryCold
from everbus.gateway.store.hot_copy import Record
from everbus.gateway.store.pricing import Prices
from everbus.gateway.store.reader import Reader
from everbus.gateway.store.tiers import ColdTier, WarmSession
from everbus.gateway.store.warm_roles import WarmTier
from everbus.handlers.history import difference, digest, state_of
from everbus.handlers.outcomes import Archived, Event, NewCheckpoint
from everbus.handlers.patches import merge
from tests.builders import NOW, a_session

# To the millisecond, as the bus server's clock tells it and MongoDB keeps it.
BEGUN = NOW.replace(microsecond=123_000)


def at(seq: int) -> Any:
    """
    When entry *seq* was committed: three share each second.
    """
    return BEGUN + timedelta(seconds=seq // 3)


def an_entry(seq: int, text: str = "x") -> bytes:
    return pack(TimelineEntry(seq, at(seq), "fiedler", {"text": f"{text} {seq}"}))


def entries(first: int, last: int) -> list[bytes]:
    return [an_entry(seq) for seq in range(first, last + 1)]


class CountedCold:
    """
    A cold tier that counts what is asked of it, and fails where a test says so.

    Attributes:
        failing: raised instead of any answer.
    """

    def __init__(self, cold: ColdTier) -> None:
        self.cold = cold
        self.gets: list[str] = []
        self.puts: list[str] = []
        self.failing: EverbusError | None = None

    async def put(self, key: str, data: bytes) -> None:
        self.puts.append(key)
        await self.cold.put(key, data)

    async def get(self, key: str, limit: int) -> bytes | None:
        if self.failing is not None:
            raise self.failing
        self.gets.append(key)
        return await self.cold.get(key, limit)

    async def size(self, key: str) -> int | None:
        return await self.cold.size(key)

    async def delete(self, key: str) -> None:
        await self.cold.delete(key)

    def close(self) -> None:
        self.cold.close()


class World:
    """
    A session, its tiers, and the plain truth about it.

    Attributes:
        session: as the hot tier would have it, without its tail.
        context: its full context.
        states: version → the state it had.
    """

    def __init__(
        self,
        warm: WarmTier | None = None,
        cold: ColdTier | None = None,
        session_id: str = "s1",
    ) -> None:
        self.warm = warm or MemoryWarm()
        self.cold = CountedCold(cold or MemoryCold())
        self.vault = Archives(self.cold)
        self.session = a_session(
            id=session_id, version=0, created_at=BEGUN, last_active=BEGUN
        )
        self.context: dict[str, Any] = {}
        self.states: dict[int, dict[str, Any]] = {0: {}}

    @property
    def id(self) -> str:
        return self.session.id

    def reader(self, **options: Any) -> Reader:
        known = {"vault": self.vault, "prices": Prices(), "catch_up_s": 0.0}

        return Reader(self.warm, **known | options)

    def tail(self, size: int) -> tuple[bytes, ...]:
        last = self.session.last_seq

        return tuple(entries(max(1, last - size + 1), last))

    async def change(self, kind: str = "session.updated", **fields: Any) -> None:
        """
        One step of the version, in the warm tier at once.
        """
        await self.warm.write([self.changed(kind, **fields)])

    def changed(self, kind: str = "session.updated", **fields: Any) -> Record:
        """
        One step of the version, on its way to the warm tier.
        """
        context = fields.pop("full_context", None)
        version = self.session.version + 1
        moment = max(self.session.last_active, BEGUN + timedelta(seconds=version))
        self.session = msgspec.structs.replace(
            self.session, version=version, last_active=moment, **fields
        )
        state = state_of(self.session)
        patch = difference(self.states[version - 1], state)
        self.states[version] = state
        if context is not None:
            self.context = merge(self.context, context)
            patch["full_context"] = context
        event = Event(
            kind="session.created" if version == 1 else kind,
            command_id=f"i1.0.{version}",
            mad="fiedler",
            principal="ada",
            version=version,
            seq=self.session.last_seq,
            at=moment,
            patch=patch,
        )
        return self.record(state=self.session, events=(event,))

    async def append(self, count: int) -> None:
        await self.warm.write([self.appended(count)])

    def appended(self, count: int) -> Record:
        first = self.session.last_seq + 1
        last = first + count - 1
        self.session = msgspec.structs.replace(
            self.session,
            last_seq=last,
            last_active=max(self.session.last_active, at(last)),
        )
        return self.record(entries=tuple(map(msgspec.Raw, entries(first, last))))

    async def keep(self, checkpoint_id: str, kind: str = "full") -> None:
        """
        A checkpoint of the present state.
        """
        state = state_of(self.session)
        made = NewCheckpoint(
            id=checkpoint_id,
            name="",
            version=self.session.version,
            last_seq=self.session.last_seq,
            kind=kind,
            at=self.session.last_active,
            author="fiedler",
            state=state,
            sha256=digest(state),
        )
        await self.warm.write([self.record(checkpoints=(made,))])

    async def archive(self, *, purged: int = 0) -> WarmSession:
        """
        Into the cold tier; of the entries, the first *purged* leave the warm one.
        """
        held = await self.held()
        archive = await self.vault.archive(held, self.read, lambda _: None)
        archived = Archived(
            pointer=archive.pointer,
            through=archive.through,
            bytes=archive.bytes,
            moves=held.moves,
        )
        await self.warm.write([self.record(archived=archived)])
        await self.purge(purged)

        return await self.held()

    async def read(self, first: int, last: int) -> list[bytes]:
        return entries(first, last)

    async def purge(self, count: int) -> None:
        if count:
            life = self.session.created_at
            await self.warm.purge(self.id, life, count, count)

    async def held(self) -> WarmSession:
        return (await self.warm.sessions([self.id], context=True))[self.id]

    def record(self, **fields: Any) -> Record:
        session = self.session

        return Record(
            session=session.id,
            created_at=session.created_at,
            version=session.version,
            last_seq=session.last_seq,
            last_active=session.last_active,
            **fields,
        )


async def with_history(versions: int) -> World:
    """
    A session with one entry and one change of state per version.
    """
    world = World()
    for version in range(versions):
        await world.change(
            work_in_progress=document(version),
            tags=("odd",) if version % 2 else (),
            full_context={"secret": version} if version % 3 == 0 else None,
        )
        await world.append(1)
    return world


def document(n: int) -> dict[str, Any]:
    return {"step": n, "nested": {"odd" if n % 2 else "even": n}}

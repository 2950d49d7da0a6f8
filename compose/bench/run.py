"""
One bench from its begin to its verdict: sessions, load, settling, judgement.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from bus import Mad, connect
from bus.errors import EverbusError
from bus.introduction import introduce
from bus.keys import partition_of
from bus.wire import Wire
from compose.bench.books import SessionBook
from compose.bench.caller import Caller
from compose.bench.crew import each
from compose.bench.figures import Figures
from compose.bench.kills import Kill, killing
from compose.bench.load import Load
from compose.bench.plan import Plan
from compose.bench.verdict import Findings
from compose.bench.witnesses import OutboxWitness, SdkWitness, Seen
from compose.progress import Advance

if TYPE_CHECKING:
    from compose.bench.own_stack import OwnStack

AT_ONCE = 64
# The bus is given so long to take up a MAD.
CONNECT_S = 30.0


class Identity(NamedTuple):
    """
    As whom one MAD of the bench connects.
    """

    name: str
    token: str

    def __repr__(self) -> str:
        return f"Identity({self.name!r})"


class Bench:
    """
    The MADs, the sessions and the books of one run.

    Attributes:
        kills: the replicas that were killed.
        settled_s: how long after the load's begin the last command was applied.
    """

    def __init__(self, plan: Plan, mads: Sequence[Mad], partitions: int) -> None:
        self.plan = plan
        self.mads = mads
        self.findings = Findings()
        self.figures = Figures(plan.warm_up_s, plan.seconds)
        self.books: list[SessionBook] = []
        self.kills: list[Kill] = []
        self.load_s = self.settled_s = 0.0
        self._partitions = partitions
        self._callers = [
            Caller(mad, number, plan, self.findings) for number, mad in enumerate(mads)
        ]
        self._load: Load | None = None
        self._ended = ""

    @property
    def ended(self) -> str:
        """
        Why the load ended early; empty if it did not.
        """
        return self._load.schedule.ended if self._load else self._ended

    @property
    def load(self) -> Load:
        """
        The load that runs or ran.
        """
        if self._load is None:
            raise RuntimeError("no load has run yet")
        return self._load

    def end(self, why: str) -> None:
        """
        Send nothing more.
        """
        self._ended = why
        if self._load is not None:
            self._load.schedule.end(why)

    async def create(self, advance: Advance) -> None:
        """
        Make the sessions, and let all MADs in.
        """
        host = self.mads[0]
        others = sorted({mad.name for mad in self.mads} - {host.name})

        async def one(_: int) -> None:
            made = await host.create_session(host.name, timeout=CONNECT_S)
            if others:
                acl = sorted({*made.acl, *others})
                made = await host.update_session(
                    made.id, {"acl": acl}, timeout=CONNECT_S
                )
            partition = partition_of(made.id, self._partitions)
            self.books.append(SessionBook(made.id, made.version, partition))
            advance(1)

        await each(one, range(self.plan.sessions), AT_ONCE)

    async def run_load(
        self, stack: "OwnStack | None" = None, kill_every_s: float | None = None
    ) -> None:
        """
        Send the load, killing replicas of *stack* meanwhile if that is wanted.

        Raises:
            Forbidden, Unauthenticated: a MAD is turned away.
        """
        load = self._load = Load(
            self.plan, self._callers, self.books, self.figures, self._partitions
        )
        if self._ended:
            load.schedule.end(self._ended)
        async with AsyncExitStack() as meanwhile:
            if stack is not None and kill_every_s:
                killer = killing(stack, kill_every_s, load, self.plan.seed)
                self.kills = await meanwhile.enter_async_context(killer)
            await load.run()
        self.load_s = load.schedule.now_s

    async def settle(self) -> None:
        """
        Return when all that was published is applied or refused.

        Raises:
            Unavailable: the managers do not answer.
        """
        pairs = [(book, mad) for book in self.books for mad in book.open_mads()]

        async def one(pair: tuple[SessionBook, int]) -> None:
            book, mad = pair
            await self._callers[mad].settle(book)

        await each(one, pairs, AT_ONCE)
        self.settled_s = self.load.schedule.now_s

    async def judge(self, advance: Advance, outboxes: str = "") -> Seen:
        """
        Compare what was acknowledged with what is there.

        Args:
            outboxes: the URL of the bus, if its outboxes hold everything.
        """
        if not outboxes:
            return await SdkWitness(self.mads, self.findings).judge(self.books, advance)
        wire = Wire(outboxes)
        try:
            witness = OutboxWitness(wire, self._partitions, self.mads, self.findings)
            return await witness.judge(self.books, advance)
        finally:
            await wire.close()

    async def delete(self) -> int:
        """
        Delete the sessions, as far as that is allowed; how many are left.
        """
        left = 0

        async def one(book: SessionBook) -> None:
            nonlocal left
            try:
                await self.mads[0].delete_session(book.id)
            except EverbusError:
                left += 1

        await each(one, self.books, AT_ONCE)

        return left


@asynccontextmanager
async def opened(
    plan: Plan, url: str, identities: Sequence[Identity]
) -> AsyncIterator[Bench]:
    """
    A bench with its MADs connected; `{mad}` in *url* stands for the name.

    Raises:
        Unavailable: no bus, or no manager has ever started on it.
        Unauthenticated: the bus or the managers refuse a token.
    """
    name = identities[0].name
    terms = await introduce(url.replace("{mad}", name), name, CONNECT_S)
    async with AsyncExitStack() as connections:
        mads = [
            await connections.enter_async_context(
                connect(
                    url.replace("{mad}", one.name),
                    mad=one.name,
                    token=one.token,
                    timeout=CONNECT_S,
                )
            )
            for one in identities
        ]
        yield Bench(plan, mads, terms.partitions)

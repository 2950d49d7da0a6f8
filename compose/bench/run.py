"""
One bench from its start to its verdict: sessions, load, settling, check.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from everbus.bus import Mad, connect
from everbus.bus.cluster_wire import wire_to
from everbus.bus.errors import EverbusError
from everbus.bus.handshake import handshake
from everbus.bus.keys import partition_of
from everbus.compose.bench.checking import CheckMethod, OutboxCheck, SdkCheck
from everbus.compose.bench.figures import Figures
from everbus.compose.bench.kills import Kill, killing
from everbus.compose.bench.load import Load
from everbus.compose.bench.load_client import LoadClient
from everbus.compose.bench.plan import BenchPlan
from everbus.compose.progress import Advance
from everbus.compose.verify.expectation import Client, SessionExpectation
from everbus.compose.verify.violations import Violations
from everbus.compose.worker_pool import each

if TYPE_CHECKING:
    from everbus.compose.bench.own_stack import OwnStack

AT_ONCE = 64
# How long a MAD may take to connect.
CONNECT_S = 30.0


class BenchIdentity(NamedTuple):
    """
    The identity with which one MAD of the bench connects.
    """

    name: str
    token: str

    def __repr__(self) -> str:
        return f"BenchIdentity({self.name!r})"


class Bench:
    """
    The MADs, the sessions and their expectations in one run.

    Attributes:
        violations: faults in the answers and in the final state.
        kills: the replicas that were killed.
        settled_s: time from the start of the load until the last command was applied.
    """

    def __init__(self, plan: BenchPlan, mads: Sequence[Mad], partitions: int) -> None:
        self.plan = plan
        self.mads = mads
        self.violations = Violations()
        self.figures = Figures(plan.warm_up_s, plan.seconds)
        self.expectations: list[SessionExpectation] = []
        self.kills: list[Kill] = []
        self.load_s = self.settled_s = 0.0
        self._partitions = partitions
        self._clients = [
            LoadClient(mad, number, plan, self.violations)
            for number, mad in enumerate(mads)
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
            self.expectations.append(
                SessionExpectation(made.id, made.version, partition)
            )
            advance(1)

        await each(one, range(self.plan.sessions), AT_ONCE)

    async def run_load(
        self, stack: "OwnStack | None" = None, kill_every_s: float | None = None
    ) -> None:
        """
        Send the load; with *kill_every_s*, kill replicas of *stack* meanwhile.

        Raises:
            Forbidden, Unauthenticated: a MAD is turned away.
        """
        load = self._load = Load(
            self.plan, self._clients, self.expectations, self.figures, self._partitions
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
        Return when every published command is applied or refused.

        Raises:
            Unavailable: the managers do not answer.
        """
        pairs = [
            (expectation, client)
            for expectation in self.expectations
            for client in expectation.open_clients()
        ]

        async def one(pair: tuple[SessionExpectation, Client]) -> None:
            expectation, client = pair
            await self._clients[int(client)].settle(expectation)

        await each(one, pairs, AT_ONCE)
        self.settled_s = self.load.schedule.now_s

    async def check(self, advance: Advance, outboxes: str = "") -> CheckMethod:
        """
        Compare the acknowledged writes with the observed sessions.

        Args:
            outboxes: the URL of the bus, if its outboxes hold everything.
        """
        if not outboxes:
            check = SdkCheck(self.mads, self.violations)
            return await check.run(self.expectations, advance)
        wire = wire_to(outboxes)
        try:
            commits = OutboxCheck(wire, self._partitions, self.mads, self.violations)
            return await commits.run(self.expectations, advance)
        finally:
            await wire.close()

    async def delete(self) -> int:
        """
        Delete the sessions, as far as that is allowed; the number that is left.
        """
        left = 0

        async def one(expectation: SessionExpectation) -> None:
            nonlocal left
            try:
                await self.mads[0].delete_session(expectation.id)
            except EverbusError:
                left += 1

        await each(one, self.expectations, AT_ONCE)

        return left


@asynccontextmanager
async def opened(
    plan: BenchPlan, url: str, identities: Sequence[BenchIdentity]
) -> AsyncIterator[Bench]:
    """
    A bench with its MADs connected; `{mad}` in *url* stands for the name.

    Raises:
        Unavailable: no bus, or no manager has ever started on it.
        Unauthenticated: the bus or the managers refuse a token.
    """
    name = identities[0].name
    terms = await handshake(url.replace("{mad}", name), name, CONNECT_S)
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

"""
The bus is emptied between two steps of a lane, also with the first one's answer lost,
and more than once: what is not settled counts once, and in order.

Each step is forced: the test's hook stands before or behind it.
"""

import pytest

from everbus.bus.wire import WireFailed
from everbus.gateway.lane.admission import Admission
from everbus.gateway.lane.connection import LaneConnection
from everbus.gateway.lane.loop import Lane
from everbus.gateway.lane.recovery import Recovery
from tests.replicas import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SENT = 6


def once(monkeypatch, owner, name, before=None, behind=None):
    """
    Await *before* and *behind* at the next call of a step; returns what arms it.
    """
    step, armed = getattr(owner, name), []

    async def hooked(self, *arguments, **options):
        at = armed.pop() if armed else None
        if at and before:
            await before(self)
        result = await step(self, *arguments, **options)
        if at and behind:
            await behind(self)
        return result

    monkeypatch.setattr(owner, name, hooked)
    return lambda: armed.append(True)


async def begun(mad, *, resting, stack):
    """
    A session with one entry; a resting one is not hot.
    """
    session = (await mad.create_session("ada")).id
    await mad.append_and_wait(session, "before", durability="warm")
    await mad.flush(settled=True, timeout=20)
    if resting:
        await mad.suspend_session(session, durability="warm")
        await stack.until_cold(session)
    return session


async def check(mad, session):
    found = await settled(mad, session)
    assert found == ["before", *range(SENT)]


async def settled(mad, session):
    """
    The timeline when all is settled; MongoDB has it.
    """
    await mad.flush(settled=True, timeout=30)
    page = await mad.timeline(session, timeout=20)
    held = await mad.durable(session, wait=True, timeout=20)
    assert held.seq == 1 + SENT

    return [one.entry for one in page.entries]


LONG = pytest.mark.campaign
STEPS = {
    "before the lookup": (Lane, "_load", "before"),
    "behind the lookup": (Lane, "_load", "behind"),
    "before the commit": (Lane, "_commit", "before"),
    "behind the commit": (Lane, "_commit", "behind"),
    "before the admission": (Admission, "admit", "before"),
    "behind the admission": (Admission, "admit", "behind"),
}


@pytest.mark.parametrize(
    "step",
    [
        pytest.param("before the lookup", marks=LONG),
        "behind the lookup",
        "before the commit",
        pytest.param("behind the commit", marks=LONG),
        pytest.param("before the admission", marks=LONG),
        "behind the admission",
    ],
)
async def test_emptied_between_two_steps(stack, monkeypatch, step):
    owner, name, side = STEPS[step]
    resting = owner is Admission
    emptied = []

    async def empty(_):
        await stack.client.flushall()
        emptied.append(step)

    arm = once(monkeypatch, owner, name, **{side: empty})
    async with stack.served() as (mad, hands), hands.draining():
        session = await begun(mad, resting=resting, stack=stack)
        arm()
        for n in range(SENT):
            mad.append(session, n)
        await until(lambda: emptied, 20)

        await check(mad, session)


@pytest.mark.parametrize(
    "held", [pytest.param(True, marks=LONG), False], ids=["drained", "lost"]
)
async def test_emptied_behind_a_commit_whose_answer_is_lost(stack, monkeypatch, held):
    """
    The lane does not know whether it committed; MongoDB has it, or nobody. Then it
    comes behind what the MAD sent before it learnt of the loss.
    """
    emptied = []
    exchange = LaneConnection.exchange
    losing = []

    async def losing_the_answer(self, commands, **options):
        replies = await exchange(self, commands, **options)
        if losing:
            session = losing.pop()
            if held:
                await stack.until_document(session, last_seq=2)
            await stack.client.flushall()
            emptied.append(session)
            await self.close()
            raise WireFailed("the answer is lost")
        return replies

    async def lose(_):
        losing.append(session)

    monkeypatch.setattr(LaneConnection, "exchange", losing_the_answer)
    arm = once(monkeypatch, Lane, "_commit", before=lose)
    async with stack.served() as (mad, hands):
        async with hands.draining():
            session = await begun(mad, resting=False, stack=stack)
            if held:
                arm()
                mad.append(session, 0)
                await until(lambda: emptied, 20)
        if not held:
            arm()
            mad.append(session, 0)
            await until(lambda: emptied, 20)
        async with hands.draining():
            for n in range(1, SENT):
                mad.append(session, n)
            first, *found = await settled(mad, session)
    assert (first, sorted(found)) == ("before", [*range(SENT)])
    assert [n for n in found if n] == [*range(1, SENT)]


@LONG
async def test_emptied_again_while_what_was_lost_is_sent_again(stack, monkeypatch):
    """
    Three times, each behind the commit that has some of it, before MongoDB has it.
    """
    times = []

    async def empty(_):
        await stack.client.flushall()
        times.append(1)

    arm = once(monkeypatch, Lane, "_commit", behind=empty)
    async with stack.served() as (mad, hands):
        async with hands.draining():
            session = await begun(mad, resting=False, stack=stack)
        for n in range(SENT):
            mad.append(session, n)
        for count in (1, 2, 3):
            arm()
            await until(lambda c=count: len(times) >= c, 20)
        async with hands.draining():
            await check(mad, session)


async def test_emptied_while_the_lane_replays_what_was_pending(stack, monkeypatch):
    emptied = []

    async def empty(_):
        if not emptied:
            await stack.client.flushall()
        emptied.append(1)

    async def break_off(lane):
        await lane._wire.close()
        raise WireFailed("before the commit")

    once(monkeypatch, Recovery, "enqueue", before=empty)()
    broken = once(monkeypatch, Lane, "_commit", before=break_off)
    async with stack.served() as (mad, hands), hands.draining():
        session = await begun(mad, resting=False, stack=stack)
        broken()
        for n in range(SENT):
            mad.append(session, n)
        await until(lambda: emptied, 20)

        await check(mad, session)

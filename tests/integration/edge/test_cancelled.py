"""
Requests that are given up in mid-flight: none is ever answered with another's data.
"""

import asyncio
import random
from contextlib import suppress

import httpx
import pytest

from tests.integration.edge.conftest import Edge, House, fresh
from tests.proxy import Proxy

pytestmark = pytest.mark.asyncio(loop_scope="module")

PRINCIPALS = 20
MAX_CONCURRENT = 40
# Of so many requests one is waited for, and must be answered with its own canary.
WAITED_FOR = 10
LONGEST_S = 0.5


class Asker:
    """
    A principal, its session, and the canary that is in it.
    """

    def __init__(self, client: httpx.AsyncClient, name: str) -> None:
        self.client = client
        self.canary = f"canary-of-{name}"
        self._name = name
        self._path = ""

    async def begin(self) -> None:
        """
        Make the session and put the canary into it.
        """
        made = await self.client.post("/sessions", json={"user_id": self._name})
        self._path = f"/sessions/{made.json()['id']}"
        patch = {"patch": {"context_summary": {"canary": self.canary}}}
        changed = await self.client.patch(self._path, json=patch)
        assert changed.status_code == 200, changed.text

    async def ask(self) -> None:
        """
        Read the session; its canary must be ours.
        """
        answer = await self.client.get(self._path)
        assert answer.status_code == 200, answer.text
        assert answer.json()["context_summary"] == {"canary": self.canary}


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "count", [150, pytest.param(10_000, marks=pytest.mark.campaign)]
)
async def test_cancelled_requests_mix_up_no_answers(house: House, count: int):
    """
    Between edge and bus lies a slow proxy, and only those count that are given up
    while their command or its reply is on the way.
    """
    chance = random.Random(7)
    host, port = house.url.removeprefix("redis://").partition("/")[0].split(":")
    in_flight = answered = 0
    async with Proxy(host, int(port)) as proxy:
        proxy.delay(0.1)
        settings = house.settings.model_copy(update={"redis_url": proxy.url()})
        async with House(settings).edge() as edge:
            askers = await _askers(edge)
            before = _published(edge)
            while in_flight < count:
                answered += await _round(askers, chance)
                in_flight = _published(edge) - before - answered
            for asker in askers:
                await asker.ask()
                await asker.client.aclose()
            assert edge.app.state.limiter.busy == 0
    assert answered


def _published(edge: Edge) -> int:
    """
    How many commands the edge's instance has numbered so far.
    """
    return sum(edge.parts.bus._requests._publisher._counts)


async def _askers(edge: Edge) -> list[Asker]:
    names = [fresh("asker") for _ in range(PRINCIPALS)]
    askers = [Asker(edge.client(name), name) for name in names]
    await asyncio.gather(*(asker.begin() for asker in askers))

    return askers


async def _round(askers: list[Asker], chance: random.Random) -> int:
    """
    Ask, and give most of it up at any moment; how many were answered.
    """
    tasks = [
        asyncio.create_task(askers[n % len(askers)].ask())
        for n in range(MAX_CONCURRENT)
    ]
    loop = asyncio.get_running_loop()
    for n, task in enumerate(tasks):
        if n % WAITED_FOR:
            loop.call_later(chance.uniform(0, LONGEST_S), task.cancel)
    return sum([await _ended(task) for task in tasks])


async def _ended(task: asyncio.Task[None]) -> bool:
    """
    Whether *task* came to its end; raises what it found wrong.
    """
    with suppress(asyncio.CancelledError):
        await task
        return True
    return False

"""
MADs on a bad network: what they say arrives once, and nobody is taken for dead.
"""

import asyncio
import random
from contextlib import AsyncExitStack

import pytest

from everbus.bus import Mad, connect
from everbus.compose.retried_calls import write_once
from everbus.gateway.store import key_names
from tests.integration.conftest import PARTITIONS, a_token, in_order, until
from tests.proxy import Proxy

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.usefixtures("manager"),
]

MADS = 6
# Breaks in a row, each healed after a moment shorter than the lease's TTL of 30 s.
BREAKS = 10
LONGEST_S = 0.4


class Talker:
    """
    A MAD that appends and updates until it is told to stop.
    """

    def __init__(self, mad: Mad) -> None:
        self.mad = mad
        self.session = ""
        self.said = 0
        self.changed = 0

    async def talk(self, stop: asyncio.Event) -> None:
        self.session = (await self.mad.create_session("ada", timeout=30)).id
        await write_once(self.mad, lambda: self.mad.join(self.session))
        while not stop.is_set():
            for _ in range(3):
                self.mad.append(self.session, self.said)
                self.said += 1
            mark = {"work_in_progress": {"n": self.changed}}
            await write_once(
                self.mad, lambda mark=mark: self.mad.update_session(self.session, mark)
            )
            self.changed += 1


def breaking(proxy: Proxy, chance: random.Random) -> None:
    """
    Begin one fault.
    """
    chance.choice(
        [
            proxy.cut,
            proxy.stall,
            proxy.black_hole,
            proxy.drop_requests,
            proxy.drop_replies,
            lambda: proxy.delay(0.1),
        ]
    )()


async def test_on_a_lossy_network_all_arrives_once_and_nobody_is_lost(bus):
    chance = random.Random(7)
    lost: list[int] = []
    stop = asyncio.Event()
    async with (
        Proxy("127.0.0.1", bus.server.port) as proxy,
        AsyncExitStack() as mads,
    ):
        talkers = [
            Talker(
                await mads.enter_async_context(
                    _connected(proxy.url(), f"lossy{n}", lost.append)
                )
            )
            for n in range(MADS)
        ]
        async with asyncio.TaskGroup() as talking:
            for one in talkers:
                talking.create_task(one.talk(stop))

            async def all_talk():
                return all(one.changed > 2 for one in talkers)

            await until(all_talk, "all talk")
            for _ in range(BREAKS):
                breaking(proxy, chance)
                await asyncio.sleep(chance.uniform(0.05, LONGEST_S))
                proxy.heal()
                await asyncio.sleep(chance.uniform(0.02, 0.2))
            bitten = proxy.dropped_bytes
            since = [one.changed for one in talkers]

            async def all_talk_again():
                return all(
                    one.changed > n for one, n in zip(talkers, since, strict=True)
                )

            await until(all_talk_again, "all talk again", within_s=30)
            stop.set()
        for one in talkers:
            await one.mad.flush(timeout=30)
            await bus.until_settled(one.mad.name, within_s=30)
            fenced = [
                await bus.client.hlen(key_names.fences(p)) for p in range(PARTITIONS)
            ]
            entries = await bus.entries(one.session)
            versions = await bus.versions(one.session)

            assert in_order(entries, one.mad.name) == list(range(one.said))
            # Created, joined, then as often as it was told so.
            assert versions == list(range(1, one.changed + 3))
            assert await bus.letters(one.mad.name) == []

    assert bitten > 0
    assert lost == []
    assert fenced == [0] * PARTITIONS


def _connected(url, name, on_lost):
    return connect(url, mad=name, token=a_token(name), on_lost=on_lost)

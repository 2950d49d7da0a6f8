"""
SIGKILL at every named point of a manager's work, under load.
"""

import random
import signal

import pytest
import pytest_asyncio

from everbus.gateway.failpoints import LANE
from tests.closed_load import ClosedLoad
from tests.commit_log import CommitLog
from tests.replicas import a_client, a_mad, letters, manager, settled
from tests.servers import valkey

PARTITIONS = 2
SESSIONS = 4


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory):
    async with valkey(tmp_path_factory.mktemp("valkey")) as real:
        yield real


@pytest.mark.parametrize("point", LANE)
@pytest.mark.parametrize(
    "kills",
    [3, pytest.param(20, marks=[pytest.mark.campaign, pytest.mark.timeout(300)])],
)
async def test_a_kill_at_any_point_loses_and_repeats_nothing(
    server, tmp_path, point, kills
):
    """
    Every append is there once and in order, every acknowledged update once.
    """
    nth = random.Random(f"{point} {kills}")
    async with a_client(server.url) as client:
        await client.flushall()
        async with manager(tmp_path, server.url, "m0") as first:
            await first.logged("lane.taken")
            async with a_mad(server.url, "ann") as ann, a_mad(server.url, "bob") as bob:
                sessions = [
                    (await ann.create_session("ada")).id for _ in range(SESSIONS)
                ]
                load = ClosedLoad([ann, bob], sessions)
                async with load.running():
                    await load.more(5)
                    await first.end(signal.SIGKILL)
                    deaths = [
                        await die(server.url, tmp_path, point, nth)
                        for _ in range(kills)
                    ]
                    async with manager(tmp_path, server.url, "m1"):
                        await load.more(5)
                        load.stop()
                        await settled(client)

        assert [-signal.SIGKILL] * kills == deaths
        load.check(await CommitLog.read(client, PARTITIONS))
        assert await letters(client, PARTITIONS) == []


async def die(url, folder, point, nth):
    """
    Run a manager armed at *point* until it is dead; its exit code.

    Only at `takeover` is it the first passing: it is passed once a lane, and
    only by a manager that finds something pending.
    """
    if point == "takeover":
        await leave_pending(url, folder)
    passing = 1 if point == "takeover" else nth.randint(3, 40)
    name = f"m{nth.randint(0, 1)}"
    settings = {"fail_point": f"{point}:{passing}"}
    async with manager(folder, url, name, **settings) as armed:
        return await armed.ended()


async def leave_pending(url, folder):
    async with manager(folder, url, "m0", fail_point="after_read:3") as armed:
        assert await armed.ended() == -signal.SIGKILL

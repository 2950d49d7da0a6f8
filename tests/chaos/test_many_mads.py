"""
Half of fifty MADs killed at once: all are missed, the others do not notice.

The MADs are real SDK instances in processes of their own, each in one of ten
conversations. By default five live in a process; in the campaign each has its own.
"""

import json
import signal
import time
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from everbus.bus import Mad
from everbus.bus.wire import Wire
from everbus.gateway.store import lease_records
from tests.commit_log import CommitLog
from tests.processes import PIPE, start_python
from tests.replicas import a_client, a_mad, a_token, manager, until
from tests.servers import inherited, valkey

MADS = 50
SESSIONS = 10
PARTITIONS = 4
TTL_S = 3
# How long after the lease's end a loss may be noticed, as promised.
NOTICED_WITHIN_S = 2.0
# From there to the participant.lost in the session: a look, a commit, a busy machine.
TOLD_WITHIN_S = 5.0

PROGRAM = """
import asyncio
import json
import sys
from contextlib import AsyncExitStack

from everbus.bus import connect


async def main(url):
    async with AsyncExitStack() as stack:
        talking = []
        for name, token, session in json.loads(sys.stdin.readline()):
            mad = await stack.enter_async_context(connect(url, mad=name, token=token))
            await mad.join(session)
            talking.append((mad, session))
        print("in", flush=True)
        n = 0
        while True:
            for mad, session in talking:
                mad.append(session, n)
            n += 1
            await asyncio.sleep(0.2)


asyncio.run(main(sys.argv[1]))
"""


@asynccontextmanager
async def talkers(url: str, mads: list[tuple[str, str]]):
    """
    A process with these MADs, each in its session; killed at the end.
    """
    process = await start_python(
        *("-c", PROGRAM, url),
        env=inherited(),
        stdin=PIPE,
        stdout=PIPE,
    )
    given = [(name, a_token(name, "mad"), session) for name, session in mads]
    process.stdin.write(json.dumps(given).encode() + b"\n")
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def lost_ones(wire: Wire) -> set[str]:
    """
    The MADs whose only instance was declared lost.
    """
    return {
        one.mad for one in await lease_records.instances(wire) if one.state == "lost"
    }


async def placed_by(host: Mad) -> list[tuple[str, str]]:
    """
    Each of the MADs, let in to one of the conversations.
    """
    sessions = [(await host.create_session("ada")).id for _ in range(SESSIONS)]
    placed = [(f"mad{n:02}", sessions[n % SESSIONS]) for n in range(MADS)]
    for name, session in placed:
        await host.add_participant(session, name)
    return placed


async def participants(host: Mad, placed: list[tuple[str, str]]) -> list[str]:
    """
    Who takes part, in all conversations together.
    """
    sessions = dict.fromkeys(session for _, session in placed)
    found = [await host.get_session(session) for session in sessions]

    return sorted(mad for session in found for mad in session.participants)


def told_of(log: CommitLog) -> list[str]:
    """
    Whom the conversations were told to have lost, as often as they were.
    """
    events = [event for events in log.events.values() for event in events]
    told = [e.patch["participants"] for e in events if e.kind == "participant.lost"]

    return sorted(mad for gone in told for mad in gone)


@pytest.mark.parametrize(
    "in_one",
    [5, pytest.param(1, marks=[pytest.mark.campaign, pytest.mark.timeout(300)])],
)
async def test_half_of_fifty_mads_killed_at_once_are_all_missed_once(tmp_path, in_one):
    settings = {"partitions": PARTITIONS, "lease_ttl_s": TTL_S}
    async with (
        valkey(tmp_path) as server,
        a_client(server.url) as client,
        manager(tmp_path, server.url, "m1", **settings) as first,
        manager(tmp_path, server.url, "m2", **settings),
        AsyncExitStack() as running,
    ):
        await first.logged("manager.ready")
        host = await running.enter_async_context(a_mad(server.url, "host"))
        placed = await placed_by(host)
        groups = [placed[n : n + in_one] for n in range(0, MADS, in_one)]
        processes = [
            await running.enter_async_context(talkers(server.url, group))
            for group in groups
        ]
        for process in processes:
            assert (await process.stdout.readline()).strip() == b"in"
        wire = Wire(server.url)
        running.push_async_callback(wire.close)
        lost = {name for group in groups[1::2] for name, _ in group}
        others = [name for name, _ in placed if name not in lost]

        for process in processes[1::2]:
            process.send_signal(signal.SIGKILL)
        killed = time.monotonic()

        async def all_noticed() -> bool:
            return await lost_ones(wire) == lost

        await until(all_noticed, TTL_S + NOTICED_WITHIN_S + 1, "all are noticed")
        noticed_s = time.monotonic() - killed

        async def all_told() -> bool:
            return await participants(host, placed) == others

        await until(all_told, TOLD_WITHIN_S, "every session has heard")
        assert await lost_ones(wire) == lost
        assert [process.returncode for process in processes[::2]] == [None] * (
            len(processes) // 2
        )
        log = await CommitLog.read(client, PARTITIONS)

    assert len(lost) == MADS // 2
    assert noticed_s < TTL_S + NOTICED_WITHIN_S
    assert told_of(log) == sorted(lost)
    log.check()

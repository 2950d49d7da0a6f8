"""
everbus in the same conditions: `session.update` that wants no reply, fully committed.

One replica reads, checks the version, writes the session's hash and the outbox, enters
the ledger and acknowledges. Twice: published while it is consumed (the publisher takes
its share of two cores; from the first publish to the last commit), and published
beforehand as for the peers, while the replica is stopped by SIGSTOP (from SIGCONT to
the last commit). Afterwards the versions of all sessions must tell of every command.
"""

import asyncio
import time

from everbus.bus import Mad
from tests.bench import rig
from tests.bench.arms import PATCH, SESSIONS, Arms
from tests.bench.peers.queue_arms import Figures, round_trips
from tests.bench.peers.script import WARMING
from tests.bench.peers.table import ENQUEUE, RATE, SERVER, WORKER

BEFORE, WHILE = "everbus, published beforehand", "everbus, published while consumed"
WITHIN_S = 120.0
# Our figure → what `Arms` calls it.
NAMES = {
    BEFORE: {
        RATE: "backlog, commands/s",
        WORKER: "backlog, worker CPU us a command",
        SERVER: "backlog, server CPU us a command",
    },
    WHILE: {
        RATE: "no reply, commands/s",
        WORKER: "worker CPU us a command",
        SERVER: "server CPU us a command",
        ENQUEUE: "appends published/s",
    },
}


async def a_pass(count: int, asks: int) -> dict[str, Figures]:
    """
    What one pass of both arms came to, on a bus that nobody used before.
    """
    async with asyncio.timeout(WITHIN_S), rig.station() as station:
        noted: dict[str, list[float]] = {}
        arms = Arms(station, noted)
        await arms.open()
        await arms.backlog(count)
        await arms.no_reply(count)
        await arms.check()
        await arms.appends(count)
        asked = await _asked(station.mad, arms.ids, asks) if asks else {}
        await arms.close()
    found = {
        arm: {figure: noted[name][0] for figure, name in names.items()}
        for arm, names in NAMES.items()
    }
    found[BEFORE] |= asked

    return found


async def _asked(mad: Mad, ids: list[str], asks: int) -> Figures:
    took = []
    for number in range(asks + WARMING):
        began = time.perf_counter()
        await mad.update_session(ids[number % SESSIONS], PATCH, timeout=WITHIN_S)
        took.append(time.perf_counter() - began)

    return round_trips(took[WARMING:])

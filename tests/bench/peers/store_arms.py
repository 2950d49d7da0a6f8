"""
One pass of one session store, and of everbus as one.
"""

import sys
from pathlib import Path

from tests.bench import rig
from tests.bench.peers.children import child, tree_of
from tests.bench.peers.competitors import HOUSE, Found, Peer, ours
from tests.bench.peers.queue_arms import Figures, new_bus
from tests.servers import inherited

EVERBUS = Peer(
    name="everbus",
    script="tests.bench.peers.stores.everbus",
    packages=("everbus",),
    settings="one replica, 16 partitions, no archiver",
    share=1.0,
)
MEASURED_S = 180.0

Operations = dict[str, Figures]


async def a_pass(found: Found, folder: Path, count: int) -> Operations:
    """
    What one pass of one store came to, an operation each.
    """
    if found.peer.target == "memory":
        return await _told(found, folder, "memory", count, [])
    if found.peer.target == "folder":
        filled = folder.parent / f"{found.peer.name}"
        if not filled.exists():
            filled.mkdir()
            await _told(found, folder, str(filled), 0, [])
        return await _told(found, folder, str(filled), count, [])
    async with new_bus(folder) as server:
        return await _told(found, folder, server.url, count, [server.pid])


async def our_pass(folder: Path, count: int) -> Operations:
    """
    The same of everbus; what is behind the client is the server and one replica.
    """
    command = (sys.executable, "-m", EVERBUS.script)
    env = inherited() | {
        "PYTHONPATH": str(HOUSE),
        "EVERBUS_TOKEN": rig.token("bench"),
    }
    found = Found(EVERBUS, command, ours(), env)
    async with new_bus(folder) as server:
        with rig.replica(server.url) as worker:
            behind = [server.pid, *tree_of(worker.pid)]
            return await _told(found, folder, server.url, count, behind)


async def _told(
    found: Found, folder: Path, target: str, count: int, behind: list[int]
) -> Operations:
    watched = [word for pid in behind for word in ("--watch", str(pid))]
    async with child(found, folder, target, str(count), *watched) as script:
        told = await script.told(MEASURED_S)
    operations: Operations = told["found"]
    return operations

"""
The bus of the embedded stack: one server, a primary behind Sentinels, or a cluster.

Redis's own processes write their configuration and their table of nodes; what exists
in the folder stays as it is, since it says who was the primary last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from everbus.bus.cluster_routing import SLOTS
from everbus.bus.errors import EverbusError
from everbus.bus.wire import Command, Wire
from everbus.compose.processes import ProcessSpec, RunningProcess
from everbus.compose.server_pings import redis_answers
from everbus.compose.servers import HOST, sentinel_server, valkey_server
from everbus.compose.stack_folder import TOPOLOGY, StackError, write_whole

Topology = Literal["server", "sentinel", "cluster"]

_SERVERS = tuple(f"valkey-{n}" for n in (1, 2, 3))
_SENTINELS = tuple(f"sentinel-{n}" for n in (1, 2, 3))
_GOSSIP = tuple(f"{name}-gossip" for name in _SERVERS)
NAME = "everbus"
# Processes of the bus, or ports that they need, by topology.
PORTS: dict[Topology, tuple[str, ...]] = {
    "server": ("valkey",),
    "sentinel": (*_SERVERS, *_SENTINELS),
    "cluster": (*_SERVERS, *_GOSSIP),
}


def claim_topology(data: Path, topology: Topology) -> None:
    """
    Note the topology in a new folder.

    Raises:
        StackError: the folder has the data of a bus of another topology.
    """
    path = data / TOPOLOGY
    known = path.read_text().strip() if path.exists() else ""
    if not known and (data / "valkey").exists():
        known = "server"
    if known not in ("", topology):
        raise StackError(
            f"{data} has the data of another bus ({known}); take another folder for "
            f"a bus of the topology {topology} (--data)"
        )
    write_whole(path, topology)


def bus_url(topology: Topology, ports: Mapping[str, int]) -> str:
    """
    The URL of the bus; it names every node.
    """
    if topology == "server":
        return f"redis://{HOST}:{ports['valkey']}/0"
    if topology == "cluster":
        return f"redis+cluster://{_named(_SERVERS, ports)}"
    return f"redis+sentinel://{_named(_SENTINELS, ports)}/{NAME}"


def bus_servers(
    topology: Topology, data: Path, ports: Mapping[str, int]
) -> list[ProcessSpec]:
    """
    The processes of the bus, in the order of their start.

    Raises:
        WheelMissing: the wheel of Valkey is not installed.
    """
    if topology == "server":
        return [valkey_server(data, ports["valkey"])]
    if topology == "cluster":
        return _cluster(data, ports)
    return _behind_sentinels(data, ports)


def _behind_sentinels(data: Path, ports: Mapping[str, int]) -> list[ProcessSpec]:
    primary = ports[_SERVERS[0]]
    servers = []
    for name in _SERVERS:
        lines = ["min-replicas-to-write 1", "repl-diskless-sync-delay 0"]
        if ports[name] != primary:
            lines.append(f"replicaof {HOST} {primary}")
        servers.append(_server(data, ports[name], name, lines))
    sentinels = [
        sentinel_server(data, ports[name], NAME, primary, name=name)
        for name in _SENTINELS
    ]

    async def writable(_: RunningProcess) -> bool:
        return await _takes_writes(bus_url("sentinel", ports))

    return [*servers, *sentinels[:-1], replace(sentinels[-1], ready=writable)]


def _cluster(data: Path, ports: Mapping[str, int]) -> list[ProcessSpec]:
    servers = []
    for name, gossip in zip(_SERVERS, _GOSSIP, strict=True):
        lines = ("cluster-enabled yes", f"cluster-port {ports[gossip]}")
        servers.append(_server(data, ports[name], name, lines))

    async def formed(_: RunningProcess) -> bool:
        pairs = zip(_SERVERS, _GOSSIP, strict=True)
        return await _forms([(ports[name], ports[gossip]) for name, gossip in pairs])

    # The others serve when the last one is there.
    return [*servers[:-1], replace(servers[-1], ready=formed)]


def _server(data: Path, port: int, name: str, lines: Sequence[str]) -> ProcessSpec:
    config = data / f"{name}.conf"
    known = config.read_text() if config.exists() else ""
    spec = valkey_server(data, port, name=name)
    config.write_text(known or "\n".join((config.read_text(), *lines, "")))

    return spec


async def _takes_writes(url: str) -> bool:
    """
    Whether the Sentinels know a primary, and it has a replica.
    """
    wire = Wire(url, name="everbus-dev")
    try:
        return b"state=online" in await wire.call("INFO", "replication")
    except EverbusError:
        return False
    finally:
        await wire.close()


async def _forms(ports: Sequence[tuple[int, int]]) -> bool:
    """
    Whether the nodes serve all slots as one cluster; makes one of new nodes.
    """
    if not all([await redis_answers(port) for port, _ in ports]):
        return False
    wires = [Wire(f"redis://{HOST}:{port}", name="everbus-dev") for port, _ in ports]
    try:
        if b"cluster_slots_assigned:0" in await wires[0].call("CLUSTER", "INFO"):
            for wire, command in _forming(wires, ports):
                await wire.call(*command)
        reports = [await wire.call("CLUSTER", "INFO") for wire in wires]
    except EverbusError:
        return False
    finally:
        for wire in wires:
            await wire.close()

    return all(b"cluster_state:ok" in report for report in reports)


def _forming(
    wires: Sequence[Wire], ports: Sequence[tuple[int, int]]
) -> list[tuple[Wire, Command]]:
    commands: list[tuple[Wire, Command]] = []
    share = SLOTS / len(wires)
    for n, wire in enumerate(wires):
        first, last = round(n * share), round((n + 1) * share) - 1
        commands += [
            (wire, ("CLUSTER", "SET-CONFIG-EPOCH", n + 1)),
            (wire, ("CLUSTER", "ADDSLOTSRANGE", first, last)),
        ]
    commands += [
        (wires[0], ("CLUSTER", "MEET", HOST, port, gossip))
        for port, gossip in ports[1:]
    ]

    return commands


def _named(names: Sequence[str], ports: Mapping[str, int]) -> str:
    return ",".join(f"{HOST}:{ports[name]}" for name in names)

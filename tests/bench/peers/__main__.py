"""
Peers side by side: `python -m tests.bench.peers [--passes N] [--short] [--only NAME]…`.

Queues with a no-op handler beside the full commit of everbus, and session stores beside
its appends and tail reads: same machine, same run, same Valkey without AOF (a new one
for each arm of each pass), passes interleaved. Prints Markdown tables and one line of
JSON. A peer that is not installed is reported as not run; `--help` tells how to install
them all.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from tests.bench.peers import competitors, report
from tests.bench.peers.competitors import QUEUES, STORES, Absent, Found, Peer
from tests.bench.peers.interleaved import Measured, Passes, Sizes


def parsed() -> argparse.Namespace:
    """
    The command line.
    """
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\n{report.REPRODUCE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--passes", type=int, help="of all arms; 3, of --short 1")
    parser.add_argument("--short", action="store_true", help="a fifth of the work")
    parser.add_argument("--only", action="append", metavar="NAME", help="a peer")
    parser.add_argument("--messages", type=int, help="of a fast peer, each pass")
    parser.add_argument(
        "--python", action="append", help="where peers are; several may be given"
    )
    parser.add_argument("--node", type=Path, help="where `npm install` was run")
    given = parser.parse_args()
    # Not resolved: a link to Python is what makes a virtual environment one.
    pythons = given.python or competitors.default_pythons()
    given.python = [os.path.abspath(python) for python in pythons]
    given.node = (given.node or competitors.default_node()).absolute()
    return given


def sizes_of(given: argparse.Namespace) -> Sizes:
    """
    How much the command line asks for.
    """
    sizes = Sizes().short() if given.short else Sizes()
    return sizes._replace(
        passes=given.passes or sizes.passes, messages=given.messages or sizes.messages
    )


def chosen(peers: tuple[Peer, ...], names: list[str] | None) -> tuple[Peer, ...]:
    """
    The peers with one of *names* in theirs; all of them without.
    """
    return tuple(
        peer
        for peer in peers
        if not names or any(name.lower() in peer.name.lower() for name in names)
    )


async def measured(queues: list[Found], stores: list[Found], sizes: Sizes) -> Measured:
    """
    All arms of all passes.
    """
    with tempfile.TemporaryDirectory() as folder:
        passes = Passes(queues, stores, sizes, Path(folder))
        await passes.run()
        return passes.found


def main() -> None:
    """
    Measure, and print the tables and one line of JSON.
    """
    given = parsed()
    here: list[list[Found]] = []
    absent: dict[str, str] = {}
    for peers in (chosen(QUEUES, given.only), chosen(STORES, given.only)):
        asked = competitors.found(peers, given.python, given.node)
        here.append([one for one in asked if isinstance(one, Found)])
        absent |= {o.peer.name: o.reason for o in asked if isinstance(o, Absent)}
    if not any(here):
        raise SystemExit(f"none of these peers can be run: {absent or given.only}")
    began = time.monotonic()
    result = uvloop.run(measured(*here, sizes_of(given)))
    result.absent.update(absent)
    found = [one for each in here for one in each]
    print("\n".join(report.tables(found, result)))
    print(report.as_json(found, result))
    print(f"took {time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()

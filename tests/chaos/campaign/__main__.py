"""
`python -m tests.chaos.campaign`: run episodes, print the table, write the report.
"""

import argparse
import asyncio
import shutil
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path

import uvloop

from everbus.compose.progress import counting_bar
from tests.chaos.campaign.arena import TOPOLOGIES, Topology, arena
from tests.chaos.campaign.episodes import RATE, Runner, Verdict
from tests.chaos.campaign.kinds import KINDS
from tests.chaos.campaign.report import report_of, table_of, written


def main() -> None:
    """
    Run; the exit code is 1 with violations, 130 after Ctrl-C.
    """
    given = _options()
    verdicts: list[Verdict] = []
    code = 0
    try:
        uvloop.run(_until_signal(given, verdicts))
    except (KeyboardInterrupt, asyncio.CancelledError):
        code = 130
    except Exception:  # noqa: BLE001 - what is known so far is told all the same
        traceback.print_exc()
        code = 2
    report = report_of(verdicts, given.seed)
    print(table_of(report))
    if given.json:
        written(report, Path(given.json))
    if any(one.violations for one in verdicts):
        code = code or 1
    sys.exit(code)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.campaign")
    parser.add_argument("--episodes", type=int, default=100, help="a topology")
    parser.add_argument(
        "--topology", nargs="*", default=["server", "sentinel", "cluster"]
    )
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--episode", type=int, help="only this one")
    parser.add_argument("--first", type=int, default=0, help="the first episode")
    parser.add_argument(
        "--kinds",
        nargs="*",
        help=f"only these, a+b for two at once: {', '.join(KINDS)}",
    )
    parser.add_argument("--rate", type=float, default=RATE, help="operations a second")
    parser.add_argument("--seconds", type=float, default=1e9, help="of a topology")
    parser.add_argument("--until-found", action="store_true")
    parser.add_argument("--json", help="the report's file")
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    parser.add_argument("--verbose", action="store_true")
    return parser.parse_args()


async def _until_signal(given: argparse.Namespace, verdicts: list[Verdict]) -> None:
    running = asyncio.ensure_future(_run(given, verdicts))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, running.cancel)
    await running


async def _run(given: argparse.Namespace, verdicts: list[Verdict]) -> None:
    print(f"seed {given.seed}", file=sys.stderr)
    for topology in given.topology:
        assert topology in TOPOLOGIES, topology
        folder = Path(tempfile.mkdtemp(prefix=f"everbus-campaign-{topology}-"))
        try:
            await _on(topology, folder, given, verdicts)
        finally:
            if given.keep:
                print(f"kept: {folder}", file=sys.stderr)
            else:
                shutil.rmtree(folder, ignore_errors=True)
        if given.until_found and any(one.violations for one in verdicts):
            return


async def _on(
    topology: Topology,
    folder: Path,
    given: argparse.Namespace,
    verdicts: list[Verdict],
) -> None:
    episodes = range(given.first, given.first + given.episodes)
    if given.episode is not None:
        episodes = range(given.episode, given.episode + 1)
    until_s = time.monotonic() + given.seconds
    with counting_bar(topology, len(episodes)) as advance:
        async with (
            arena(topology, folder) as made,
            Runner(made, given.seed, given.rate) as runner,
        ):
            for n in episodes:
                kinds = None
                if given.kinds:
                    names = given.kinds[n % len(given.kinds)].split("+")
                    kinds = [KINDS[name] for name in names]
                verdict = await runner.run(n, kinds)
                verdicts.append(verdict)
                advance(1)
                _tell(verdict, given)
                if given.until_found and verdict.violations:
                    return
                if time.monotonic() > until_s:
                    return


def _tell(verdict: Verdict, given: argparse.Namespace) -> None:
    if not (given.verbose or verdict.violations or not verdict.counts):
        return
    line = (
        f"{verdict.topology} --seed {verdict.seed} --episode {verdict.episode} "
        f"{'+'.join(verdict.kinds)}: bit {verdict.bit}, {verdict.acknowledged} "
        f"acknowledged, recovery {verdict.recovery_s} s, took {verdict.took_s} s "
        f"{verdict.lost_by_contract or ''} {verdict.violations or ''} "
        f"{verdict.notes or ''} {verdict.refused or ''}"
    )
    print(line, file=sys.stderr, flush=True)
    for first in verdict.first:
        print(f"    {first}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main()

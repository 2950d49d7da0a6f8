"""
Planted bugs: small breakages of the product, each of which the campaign has to find.

`python -m tests.chaos.campaign.planted` copies the tree, breaks the copy in one place,
runs the campaign there until it finds a violation, and tells the seed and the episode.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import msgspec

from tests.chaos.campaign.report import Report

HOUSE = Path(__file__).parents[3]
# What a copy needs to run the campaign.
COPIED = ("archiver", "bus", "compose", "everbus", "gateway", "handlers", "tests")
SEED = 13
EPISODES = 16


class Planted(NamedTuple):
    """
    One bug.

    Attributes:
        old: stands once in *file*; new: what it is replaced by.
        kinds: the faults to try, in turn; a bug that shows without any needs no more
            than one that does no harm.
        also: one more replacement in the file.
    """

    name: str
    file: str
    old: str
    new: str
    kinds: tuple[str, ...]
    topology: str = "server"
    also: tuple[str, str] = ("", "")


PLANTED = (
    Planted(
        "a producer's window knows no settled number",
        "gateway/lane/sequence.py",
        "return not self.runs or self._run_of(n) is None",
        "return False",
        ("link_half_open", "kill_bus"),
    ),
    Planted(
        "numbers that are jumped over count as settled",
        "gateway/lane/sequence.py",
        "if n > self.high_water + 1:\n",
        "if n > self.high_water + 10**9:\n",
        ("flushall", "kill_bus", "kill_mongo+kill_bus"),
    ),
    Planted(
        "a commit checks neither its owner nor what was read",
        "gateway/lua/commit.lua",
        "if redis.call('GET', KEYS[1]) ~= ARGV[1] then\n  return {'superseded'}\nend\n"
        "local stale",
        "local stale",
        ("stop_manager",),
        also=("if #stale > 1 then\n  return stale\nend\n", ""),
    ),
    Planted(
        "the drain confirms before it writes",
        "archiver/drain.py",
        "refused = await _of_the_warm_tier(self._warm.write(records))\n",
        "await self._confirm(entries, (), now_ms)\n"
        "        refused = await _of_the_warm_tier(self._warm.write(records))\n",
        ("kill_mongo", "kill_archiver", "swallow_mongo"),
    ),
    Planted(
        "no new lineage begins after a restart",
        "gateway/lua/lineage.lua",
        "if lineage == 0 or held[2] ~= ARGV[2] or held[3] ~= ARGV[3] then",
        "if lineage == 0 then",
        ("truncated_aof", "stop_archiver+truncated_aof"),
    ),
    Planted(
        "a takeover skips what is pending",
        "gateway/lane/loop.py",
        "pending = await self._intake.replay()",
        "pending = []",
        ("kill_manager+link_delay", "kill_all_managers+link_delay"),
    ),
    Planted(
        "the outbox is capped",
        "gateway/lua/commit.lua",
        "redis.call('XADD', KEYS[2], '*', 'b', ARGV[10], 'n', ARGV[9])",
        "redis.call('XADD', KEYS[2], 'MAXLEN', 5, '*', 'b', ARGV[10], 'n', ARGV[9])",
        ("stop_archiver", "stop_mongo"),
    ),
    Planted(
        "an admission overwrites a newer hot copy",
        "gateway/store/claims.py",
        "keeps = claim.hot is not None and descends and claim.hot >= held",
        "keeps = False",
        ("stop_archiver+kill_bus", "stop_mongo+kill_bus", "kill_bus"),
    ),
    Planted(
        "warm writes are answered when they are hot",
        "gateway/lane/replies.py",
        'if level == "hot":\n            batch.reply(',
        'if level in ("hot", "warm"):\n            batch.reply(',
        ("stop_archiver+flushall", "stop_mongo+flushall"),
    ),
    Planted(
        "replicated writes are answered without a replica",
        "gateway/lane/replies.py",
        'if level == "hot":\n            batch.reply(',
        'if level in ("hot", "replicated"):\n            batch.reply(',
        ("split_brain", "stop_archiver+split_brain"),
        "sentinel",
    ),
    Planted(
        "every 64th seq is given twice",
        "handlers/patches.py",
        "first, at = session.last_seq + 1, not_before(session, now)",
        "first = session.last_seq + (session.last_seq % 64 != 63)\n"
        "    at = not_before(session, now)",
        ("link_delay",),
    ),
    Planted(
        "an ingress is trimmed beyond what is pending",
        "gateway/lane/intake.py",
        "for identifier in self.pending[mad]:\n            return identifier\n",
        "",
        ("kill_manager+link_delay", "kill_all_managers+link_delay"),
    ),
    Planted(
        "a Cluster's lost node is not noticed",
        "bus/cluster_wire.py",
        "self._disturbed = True\n        await self._nodes.drop(address)",
        "await self._nodes.drop(address)",
        ("failover_stop", "failover_kill"),
        "cluster",
    ),
    Planted(
        "expected versions are not compared",
        "handlers/sessions.py",
        "version = command.expected_version",
        "version = None",
        ("link_delay",),
    ),
    Planted(
        "a lost group begins at the end",
        "gateway/lane/intake.py",
        "starts = map(_before, points)",
        'starts = ("0" if point is None else "$" for point in points)',
        ("groups_destroyed",),
    ),
    Planted(
        "pending commands are replayed backwards",
        "gateway/lane/loop.py",
        "await self._recovery.enqueue(pending, self._now)",
        "await self._recovery.enqueue(pending[::-1], self._now)",
        ("kill_manager+link_delay", "kill_all_managers+link_delay"),
    ),
    Planted(
        "what is sent again goes behind what is new",
        "bus/send_queue.py",
        "self._queues[partition].extendleft(reversed(again))",
        "self._queues[partition].extend(again)",
        ("truncated_aof", "stop_archiver+truncated_aof"),
    ),
    Planted(
        "waiting commands go on in the wrong order",
        "gateway/lane/loop.py",
        "self._queue.put_back(self._waiting.release())",
        "self._queue.put_back(self._waiting.release()[::-1])",
        ("kill_bus", "flushall", "stop_mongo+kill_bus"),
    ),
    Planted(
        "an entry that the bus did not take counts as sent",
        "bus/publisher.py",
        "refused.append(as_passing(refusal(reply)))",
        "self._queue.arrived(partition, entry)",
        ("out_of_memory", "busy_script", "credentials_refused"),
    ),
    Planted(
        "an archiver forgets what its predecessor has read",
        "archiver/drain.py",
        'while await self._move("0"):',
        "while False:",
        ("kill_archiver", "kill_archiver+stop_mongo"),
        also=('                await self._move("0")\n', "                pass\n"),
    ),
    Planted(
        "a commit keeps only its last event",
        "gateway/lane/commit.py",
        "events=tuple(self.events),",
        "events=tuple(self.events[-1:]),",
        ("link_delay",),
    ),
    Planted(
        "a connection that ended while idle counts as there",
        "bus/wire.py",
        "return connection.is_connected and not _has_ended(connection)\n",
        "return True\n",
        ("truncated_aof",),
    ),
    Planted(
        "nothing is sent again on a new connection",
        "bus/publisher.py",
        "self._unsettled.send_all_again()\n",
        "pass\n",
        ("truncated_aof", "stop_archiver+truncated_aof"),
    ),
)


def broken_copy(bug: Planted, folder: Path) -> Path:
    """
    A copy of the tree with *bug* in it.
    """
    for name in COPIED:
        shutil.copytree(
            HOUSE / name,
            folder / name,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    path = folder / bug.file
    text = path.read_text()
    assert text.count(bug.old) == 1, f"{bug.name}: {bug.file} has changed"
    path.write_text(text.replace(bug.old, bug.new).replace(*bug.also))
    return folder


def found_by(bug: Planted, seed: int, episodes: int, rate: float) -> Report:
    """
    The report of a campaign on the broken copy; it ends with the first violation.
    """
    with tempfile.TemporaryDirectory(prefix="everbus-planted-") as made:
        folder = broken_copy(bug, Path(made))
        report = folder / "report.json"
        subprocess.run(
            [
                *(sys.executable, "-m", "tests.chaos.campaign", "--until-found"),
                *("--topology", bug.topology, "--seed", str(seed)),
                *("--episodes", str(episodes), "--kinds", *bug.kinds),
                *("--rate", str(rate), "--json", str(report)),
            ],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        return msgspec.json.decode(report.read_bytes(), type=Report)


def main() -> None:
    """
    Try all bugs, or those that `--only` names by a part of their names.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.campaign.planted")
    parser.add_argument("--only", nargs="*", default=[""])
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--episodes", type=int, default=EPISODES)
    parser.add_argument("--rate", type=float, default=2000.0)
    given = parser.parse_args()
    print(
        "| bug | topology | seed, episode | fault | violations |\n|---|---|---|---|---|"
    )
    missed = 0
    for bug in PLANTED:
        if any(part in bug.name for part in given.only):
            try:
                report = found_by(bug, given.seed, given.episodes, given.rate)
            except OSError:
                print(f"| {bug.name} | {bug.topology} | the campaign broke | | |")
                missed += 1
                continue
            print(_row(bug, report), flush=True)
            missed += not report.found
    sys.exit(bool(missed))


def _row(bug: Planted, report: Report) -> str:
    if not report.found:
        return f"| {bug.name} | {bug.topology} | NOT FOUND in {len(report.all)} | | |"
    first = report.found[0]
    found = ", ".join(f"{n} {kind}" for kind, n in first.violations.items())
    where = f"{first.seed}, {first.episode}"
    return (
        f"| {bug.name} | {bug.topology} | {where} | {'+'.join(first.kinds)} | {found} |"
    )


if __name__ == "__main__":
    main()

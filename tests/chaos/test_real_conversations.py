"""
The main job on real input: recorded conversations through killed replicas.

The recordings lie beside the checkout, in the shared folder; where they do not,
the same campaign runs over conversations made here.
"""

import asyncio
import itertools
import json
from pathlib import Path

import psutil
import pytest

from everbus.compose.recordings import read_recordings, roles_of
from everbus.compose.replay import ReplayReport, replay, tokens_for
from everbus.compose.settings import load_settings
from everbus.compose.stack import EmbeddedStack

REAL = Path(__file__).parents[3] / "shared" / "data" / "airline-conversations.jsonl"
REPLICAS = 3
KILL_EVERY_S = 2.0
# A pass is often over before a second kill; then the recordings play once more.
MIN_KILLS = 3


@pytest.mark.timeout(300)
async def test_every_message_is_there_once_and_in_order_through_killed_replicas(
    tmp_path: Path,
) -> None:
    """
    Three MADs replay, while one replica after another dies by SIGKILL.
    """
    stack = EmbeddedStack(tmp_path / "data", managers=REPLICAS)
    async with stack:
        killer = Killer(stack)
        killing = asyncio.create_task(killer.run())

        reports = [await play(stack, tmp_path, 0)]
        while killer.kills < MIN_KILLS:
            reports.append(await play(stack, tmp_path, len(reports)))
        killing.cancel()

    assert killer.kills >= MIN_KILLS
    assert [report.violations for report in reports] == [()] * len(reports)
    assert all(report.messages > 0 for report in reports)


class Killer:
    """
    Ends one replica after another by SIGKILL; the stack starts them again.
    """

    def __init__(self, stack: EmbeddedStack) -> None:
        self.kills = 0
        self._stack = stack

    async def run(self) -> None:
        for number in itertools.cycle(range(1, REPLICAS + 1)):
            await asyncio.sleep(KILL_EVERY_S)
            before = self._stack.pid(f"manager-{number}")
            await self._stack.kill(f"manager-{number}")
            assert not psutil.pid_exists(before)
            self.kills += 1


async def play(stack: EmbeddedStack, folder: Path, number: int) -> ReplayReport:
    settings = load_settings(stack.environment())
    recordings = read_recordings(REAL if REAL.exists() else made(folder), f"-{number}")
    tokens = tokens_for(settings, roles_of(recordings))

    return await replay(recordings, settings.redis_url, tokens)


def made(folder: Path) -> Path:
    """
    Conversations of three roles, for a checkout without the shared folder.
    """
    file = folder / "made.jsonl"
    roles = ("user", "assistant", "tool", "assistant")
    lines = [
        {
            "conversation_id": f"made-{c}",
            "user_id": f"customer-{c}",
            "messages": [
                {"role": roles[m % 4], "content": f"{c}:{m}"} for m in range(25)
            ],
        }
        for c in range(200)
    ]
    file.write_text("\n".join(map(json.dumps, lines)))

    return file

"""
The campaign's engine, on one server: a few episodes of every day.

`python -m tests.chaos.campaign` runs the long ones, `make chaos` after the tests.
"""

from pathlib import Path

import pytest

from tests.chaos.campaign.arena import Arena
from tests.chaos.campaign.episodes import Runner
from tests.chaos.campaign.kinds import KINDS
from tests.chaos.campaign.planted import HOUSE, PLANTED, Planted


@pytest.mark.timeout(120)
async def test_an_episode_bites_and_is_judged_clean(tmp_path: Path):
    async with Arena("server", tmp_path) as arena, Runner(arena, seed=1) as runner:
        found = [
            await runner.run(n, [KINDS[name]])
            for n, name in enumerate(["link_cut", "kill_manager"])
        ]

    assert [one.first for one in found] == [[], []]
    assert all(one.counts for one in found)
    assert all(one.acknowledged > 200 for one in found)


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.name)
def test_a_planted_bug_still_fits_the_code(bug: Planted):
    """
    Whether the campaign finds it shows `python -m tests.chaos.campaign.planted`.
    """
    assert (HOUSE / bug.file).read_text().count(bug.old) == 1
    assert {name for kinds in bug.kinds for name in kinds.split("+")} <= {*KINDS}

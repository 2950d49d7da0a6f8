"""
The tables of `tests.bench.peers`: ratios within a pass, verdicts, who was not run.
"""

import json
from pathlib import Path

import pytest

from tests.bench.peers import competitors, report, table
from tests.bench.peers.competitors import Absent, Found, Peer
from tests.bench.peers.interleaved import Measured
from tests.bench.peers.script import MESSAGE_BYTES, Tally, bodies

OURS = "everbus"
# The third pass is a slow phase of the machine: it hits all arms alike.
PASSES = {
    OURS: [{"consume/s": 30_000.0}, {"consume/s": 24_000.0}, {"consume/s": 9_000.0}],
    "rust": [{"consume/s": 10_000.0}, {"consume/s": 10_000.0}, {"consume/s": 3_000.0}],
    "slow": [{"consume/s": 2_000.0}, {"consume/s": 1_000.0}, {"consume/s": 900.0}],
    "slower": [{"consume/s": 1_000.0}, {"consume/s": 2_400.0}, {"consume/s": 300.0}],
    "lists": [{"consume/s": 90_000.0}] * 3,
}
KINDS = {"rust": "native", "slow": "python", "slower": "python", "lists": "batch"}


def a_peer(name: str = "rust", package: str = "rust") -> Peer:
    return Peer(name=name, script="x.y", packages=(package,), settings="all at once")


def test_a_ratio_is_of_the_same_pass():
    found = table.ratios(PASSES, OURS, ["rust"])

    assert found["rust"]["rate, everbus : it"] == [3.0, 2.4, 3.0]


def test_a_ratio_of_what_one_arm_does_not_have_is_left_out():
    found = table.ratios(PASSES, OURS, ["rust"])

    assert found["rust"]["worker CPU, it : everbus"] == []
    assert table.ratio_rows(found).endswith("| rust | 3.00 [2.40-3.00] |  |  |  |")


def test_costs_are_turned_round_so_that_more_than_one_is_always_better():
    passes = {
        OURS: [{"worker us": 20.0, "server us": 10.0, "result p50 ms": 0.5}],
        "rust": [{"worker us": 60.0, "server us": 40.0, "result p50 ms": 1.0}],
    }

    (found,) = table.ratios(passes, OURS, ["rust"]).values()

    assert list(found.values()) == [[], [3.0], [4.0], [2.0]]


def test_the_best_is_chosen_anew_in_each_pass():
    found = table.best(PASSES, ["slow", "slower"])

    assert [figures["consume/s"] for figures in found] == [2_000.0, 2_400.0, 900.0]


def test_goals_are_judged_by_the_median_and_lists_are_no_rival():
    printed, met = table.goals(PASSES, [OURS], KINDS)

    assert met == {
        "everbus : rust": True,
        "everbus : the best of slow, slower": True,
    }
    assert "| everbus : rust | 3.00 [2.40-3.00] | >= 2.5 | met |" in printed
    assert "10.00 [10.00-15.00] | >= 10.0 | met |" in printed


@pytest.mark.parametrize(("rate", "verdict"), [(10_000.0, True), (9_990.0, False)])
def test_a_goal_is_met_from_its_very_number_on(rate, verdict):
    passes = {OURS: [{"consume/s": rate}], "rust": [{"consume/s": 4_000.0}]}

    _, met = table.goals(passes, [OURS], {"rust": "native"})

    assert met == {"everbus : rust": verdict}


def test_one_good_pass_of_three_meets_no_goal():
    ours = [{"consume/s": rate} for rate in (24_000.0, 30_000.0, 24_000.0)]
    passes = {OURS: ours, "rust": [{"consume/s": 10_000.0}] * 3}

    printed, met = table.goals(passes, [OURS], {"rust": "native"})

    assert met == {"everbus : rust": False}
    assert "| 2.40 [2.40-3.00] | >= 2.5 | NOT MET |" in printed


def test_a_goal_without_a_rival_is_no_row():
    printed, met = table.goals(PASSES, [OURS], {"lists": "batch"})

    assert met == {}
    assert len(printed.splitlines()) == 2


def test_who_was_not_run_is_told_with_the_reason():
    result = Measured({}, {}, {}, {"lazy": "pass 1 of 3: ended\nearly | twice"})
    here = Found(a_peer(), ("python",), {"rust": "1.2"})
    late = Found(a_peer("lazy"), ("python",), {"lazy": "3"})

    printed = "\n".join(report.tables([here, late], result))

    assert "| rust | rust 1.2 | all at once |" in printed
    assert "| lazy |  | not run: pass 1 of 3: ended early / twice |" in printed


def test_a_peer_is_run_by_the_first_python_that_has_it(monkeypatch):
    has = {"one": {"Python": "3.11"}, "two": {"Python": "3.12", "rust": "1.2"}}
    monkeypatch.setattr(competitors, "_probe", lambda python, _: has[python])
    peers = (a_peer(), a_peer("gone", "gone"))

    rust, gone = competitors.found(peers, ["one", "two"], Path("nowhere"))

    assert isinstance(rust, Found)
    assert rust.command == ("two", "-m", "x.y")
    assert rust.versions == {"Python": "3.12", "rust": "1.2"}
    assert gone == Absent(
        peers[1], "gone is not installed in any Python given (3.11, 3.12)"
    )


def test_a_peer_of_node_that_is_not_installed_is_absent(tmp_path):
    node = Peer(name="bull", script="b/peer.js", packages=("bull",), settings="")

    (found,) = competitors.found((node,), [], tmp_path)

    assert isinstance(found, Absent)
    assert found.reason.startswith("no node, or bull not in --node")


def test_the_tally_tells_of_the_first_and_of_the_last_that_is_new(capsys):
    tally = Tally(3)
    first, second, third = bodies(3)

    for body in (first, second, second, first):
        tally.took(body)
    early = capsys.readouterr().out.splitlines()
    tally.took(third)
    (late,) = capsys.readouterr().out.splitlines()

    assert [json.loads(line)["handled"] for line in early] == [1]
    assert {"handled": 3, "repeated": 2}.items() <= json.loads(late).items()


def test_messages_are_of_their_size():
    assert {len(body) for body in bodies(11)} == {MESSAGE_BYTES}


def test_every_peer_has_its_script():
    for peer in (*competitors.QUEUES, *competitors.STORES):
        inside = peer.script.removeprefix("tests.bench.peers.").replace(".", "/")
        file = peer.script if peer.script.endswith(".js") else f"{inside}.py"
        assert (competitors.HERE / file).is_file(), peer.name

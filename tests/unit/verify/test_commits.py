"""
The check of all commits: no command twice, versions and seqs without gap or fork.
"""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from everbus.bus.messages import TimelineEntry, pack
from everbus.compose.verify.commits import CommandIds, CommitCheck
from everbus.compose.verify.violations import Violations
from everbus.gateway.store.hot_copy import Record
from everbus.handlers.outcomes import Event

AT = datetime(2026, 1, 1, tzinfo=UTC)


def an_update(n, version):
    return Event(
        kind="session.updated",
        command_id=f"i.0.{n}",
        mad="ann",
        principal="ann",
        version=version,
        patch={},
    )


def an_append(n, version=1):
    return Event(
        kind="timeline.appended",
        command_id=f"i.0.{n}",
        mad="ann",
        principal="ann",
        version=version,
    )


def a_record(*events, seqs=(), made=AT):
    entries = tuple(pack(TimelineEntry(seq, AT, "ann", "x")) for seq in seqs)
    return Record(
        session="s1",
        created_at=made,
        version=1,
        last_seq=0,
        last_active=AT,
        events=events,
        entries=entries,
    )


def found_in(*records):
    violations = Violations()
    check = CommitCheck(violations)
    for record in records:
        check.see(record)
    return dict(violations.counts), violations.first


def test_commits_in_order_are_clean():
    counts, _ = found_in(
        a_record(an_update(1, 1), an_update(2, 2)),
        a_record(an_append(3), an_append(4), an_update(5, 3), seqs=(1, 2)),
    )

    assert counts == {}


def test_a_command_that_is_applied_twice_is_doubled():
    counts, [first] = found_in(
        a_record(an_append(1), seqs=(1,)), a_record(an_append(1))
    )

    assert counts == {"doubled": 1}
    assert (first.session, first.command_id) == ("s1", "i.0.1")


def a_turn(n, version, entries=2):
    end = msgspec.structs.replace(an_update(n, version), kind="session.turned")
    return (*(an_append(n) for _ in range(entries)), end)


def test_the_several_effects_of_one_command_are_no_repetition():
    woken = msgspec.structs.replace(an_update(5, 4), kind="session.resumed")

    counts, _ = found_in(
        a_record(an_update(1, 1)),
        a_record(*a_turn(2, 2), *a_turn(3, 3, entries=0), seqs=(1, 2)),
        a_record(woken, an_append(5), seqs=(3,)),
    )

    assert counts == {}


@pytest.mark.parametrize("at_once", [True, False])
def test_a_turn_that_is_taken_twice_is_doubled(at_once):
    first, again = a_turn(2, 1), a_turn(2, 2)
    records = [a_record(*first, *again, seqs=(1, 2, 3, 4))]
    if not at_once:
        records = [a_record(*first, seqs=(1, 2)), a_record(*again, seqs=(3, 4))]

    assert found_in(*records)[0] == {"doubled": 3}


def test_an_append_that_is_taken_twice_in_one_commit_is_doubled():
    assert found_in(a_record(an_append(1), an_append(1)))[0] == {"doubled": 1}


def test_two_mads_may_choose_the_same_id():
    mine = msgspec.structs.replace(an_append(1), command_id="order-7")
    records = a_record(mine), a_record(msgspec.structs.replace(mine, mad="bob"))

    assert found_in(*records)[0] == {}
    assert found_in(a_record(mine), a_record(mine))[0] == {"doubled": 1}


@pytest.mark.parametrize(
    ("versions", "found"),
    [((1, 2, 4), {"gap": 1}), ((1, 2, 2), {"forked": 1}), ((2,), {"gap": 1})],
)
def test_versions_have_no_gap_and_no_fork(versions, found):
    records = [a_record(an_update(n, v)) for n, v in enumerate(versions)]

    assert found_in(*records)[0] == found


@pytest.mark.parametrize(
    ("seqs", "found"),
    [((1, 3), {"gap": 1}), ((1, 1), {"forked": 1})],
)
def test_seqs_have_no_gap_and_no_fork(seqs, found):
    assert found_in(a_record(seqs=seqs))[0] == found


def test_a_session_that_is_made_again_begins_at_one():
    again = AT + timedelta(seconds=1)
    records = a_record(an_update(1, 1)), a_record(an_update(2, 1), made=again)

    assert found_in(*records)[0] == {}


def test_command_ids_take_one_bit_each():
    ids = CommandIds()

    assert all(ids.add(f"i.0.{n}") for n in range(1, 5000))
    assert not any(ids.add(f"i.0.{n}") for n in range(1, 5000))
    assert ids.add("i.1.1")
    assert ids.add("order-7")
    assert not ids.add("order-7")
    assert sum(map(len, ids._blocks.values())) < 1000

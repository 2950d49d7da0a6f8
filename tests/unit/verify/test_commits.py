"""
The check of all commits: no command twice, versions and seqs without gap or fork.
"""

from datetime import UTC, datetime, timedelta

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

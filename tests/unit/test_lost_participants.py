"""
What `participant.lost` means: who leaves, what becomes orphaned, what stays.
"""

from datetime import timedelta

import msgspec
import pytest

from everbus.handlers import commands as body
from everbus.handlers.commands import Attachment
from everbus.handlers.history import merge
from everbus.handlers.participants import lost_participant
from everbus.handlers.patches import HOT_BYTES
from tests.builders import NOW, a_command, a_session

PART = {"joined_at": NOW.isoformat(), "role": ""}
LATER = NOW + timedelta(seconds=5)


def in_it(mad="bo", instance="i1", epoch=1):
    return Attachment(mad, instance, "s1", epoch)


def there(**fields):
    parts = {"bo": PART, "cy": PART}
    return a_session(participants=parts, acl=("bo", "cy"), **fields)


def lose(session, *attached, epoch=1):
    wanted = body.LostParticipant(mad="bo", instance="i1", epoch=epoch)
    command = a_command("participant.lost", wanted, attached=attached)

    return lost_participant(session, command, LATER)


def test_a_mad_leaves_with_its_only_instance_and_the_event_tells():
    outcome = lose(there(), in_it(), in_it("cy", "i2"))

    [event] = outcome.events
    assert list(outcome.session.participants) == ["cy"]
    assert outcome.session.acl == ("bo", "cy")
    assert (outcome.session.version, outcome.session.last_active) == (2, LATER)
    assert (event.kind, event.version) == ("participant.lost", 2)
    assert event.patch == {"participants": {"bo": None}}


@pytest.mark.parametrize(
    "attached",
    [
        [],
        [in_it("cy")],
        [in_it(instance="i2")],
        [in_it(epoch=2)],
        [in_it("cy", "i1")],
    ],
    ids=["nobody", "another MAD", "another instance", "later epoch", "same name"],
)
def test_nothing_changes_if_that_instance_is_not_in_the_session(attached):
    session = there(work_in_progress={"a": {"owner": "bo/i1"}})

    outcome = lose(session, *attached)

    assert outcome.session is session
    assert outcome.events == ()


@pytest.mark.parametrize(
    "other", [in_it(instance="i2"), in_it(epoch=2)], ids=["instance", "epoch"]
)
def test_a_mad_stays_while_another_instance_of_it_is_there(other):
    outcome = lose(there(), in_it(), other)

    assert outcome.session.version == 1
    assert outcome.events == ()


def test_its_own_work_becomes_orphaned_and_nobody_elses():
    work = {
        "draft": {"owner": "bo", "text": "so far"},
        "query": {"owner": "bo/i1"},
        "mail": {"owner": "bo/i2"},
        "plan": {"owner": "cy"},
        "odd": {"owner": ["bo"]},
        "text": "bo",
    }
    before = there(work_in_progress=work)

    outcome = lose(before, in_it())

    now = outcome.session.work_in_progress
    assert now["draft"] == {"orphaned": "bo", "text": "so far"}
    assert now["query"] == {"orphaned": "bo/i1"}
    assert {k: now[k] for k in ("mail", "plan", "odd", "text")} == {
        k: work[k] for k in ("mail", "plan", "odd", "text")
    }
    assert merge(work, outcome.events[0].patch["work_in_progress"]) == now


def test_while_another_instance_is_there_only_the_lost_ones_work_is_orphaned():
    work = {"draft": {"owner": "bo"}, "query": {"owner": "bo/i1"}}

    outcome = lose(there(work_in_progress=work), in_it(), in_it(instance="i2"))

    assert list(outcome.session.participants) == ["bo", "cy"]
    assert outcome.session.work_in_progress == {
        "draft": {"owner": "bo"},
        "query": {"orphaned": "bo/i1"},
    }
    assert "participants" not in outcome.events[0].patch


def test_a_dormant_session_hears_of_it_and_goes_on_resting():
    outcome = lose(there(state="dormant"), in_it())

    assert (outcome.session.state, outcome.session.version) == ("dormant", 2)


def test_a_session_that_is_gone_is_no_error():
    assert lose(None, in_it()).session is None


def test_a_loss_is_never_refused_for_the_size_of_the_session():
    """
    Marking what is orphaned makes it longer; then its tail gives way.
    """
    many = {f"item{n}": {"owner": "bo"} for n in range(1500)}
    full = there(work_in_progress=many, context_summary={"x": "y" * 14_000})
    entry = msgspec.msgpack.encode("e" * 500)
    full = msgspec.structs.replace(full, recent_timeline=(entry,) * 20)

    outcome = lose(full, in_it())

    assert len(msgspec.msgpack.encode(outcome.session)) < HOT_BYTES + 8 * 1024
    assert outcome.session.work_in_progress["item7"] == {"orphaned": "bo"}

"""
The chain of a decision, step by step, without a server.
"""

from datetime import timedelta

import msgspec
import pytest

from everbus.bus.errors import (
    Cancelled,
    EverbusError,
    Expired,
    Invalid,
    Overloaded,
    Rejection,
    Superseded,
    Unauthenticated,
    Unavailable,
)
from everbus.bus.messages import pack_envelope
from everbus.bus.outgoing_command import INHERITED_EPOCH
from everbus.gateway.identity.grants import Grants, derived_key
from everbus.gateway.identity.policy import Policy
from everbus.gateway.identity.principal import Principal
from everbus.gateway.lane.commit import Batch, BatchLimits
from everbus.gateway.lane.decision import Decider, Decision, in_time, moment
from everbus.gateway.lane.delivery import (
    KINDS,
    Delivery,
    Now,
    Undecodable,
    received_in,
)
from everbus.gateway.lane.fencing import Fence
from tests.builders import a_session, an_envelope, sealed_grant

SECRET = "a-secret-of-at-least-thirty-two-bytes"
NOW = Now.at(1_790_000_000_000)
GRANT = sealed_grant(SECRET, "ada", "admin", mad="ada", instance="i1")


def received(kind, session="s1", n=1, **fields):
    known = {"id": f"i1.0.{n}", "grant": GRANT, "reply": True}
    packed = pack_envelope(an_envelope(kind, session=session, **known | fields))
    [one] = received_in("ada", f"{NOW.ms - 1000}-{n}", [b"c", packed], 0, 1)

    return one


def delivered(kind, **fields) -> Delivery:
    one = received(kind, **fields)
    assert isinstance(one, Delivery)
    return one


def an_update(**fields) -> Delivery:
    return delivered("session.update", body={"patch": {"tags": ["x"]}}, **fields)


@pytest.fixture
def decider():
    made = Decider(Grants(derived_key(SECRET)), Policy(KINDS))
    made.cache.sessions["s1"] = a_session(id="s1", owner_id="ada")
    return made


@pytest.fixture
def batch():
    return Batch(0, BatchLimits(), NOW)


def outcomes(batch):
    return dict(batch.outcomes)


def test_a_write_settled_by_the_same_batch_is_settled(decider, batch):
    first, again = an_update(), an_update()
    decider.cache.observe(first)

    decisions = [decider.decide(one, batch) for one in (first, again)]

    assert decisions == [Decision.SETTLED] * 2
    assert decider.settled(again, batch)
    assert outcomes(batch) == {
        ("session.update", "ok"): 1,
        ("session.update", "repeated"): 1,
    }


def test_a_repeated_read_is_read_anew(decider, batch):
    read = delivered("session.get")
    decider.cache.observe(read)
    decider.decide(read, batch)

    assert not decider.settled(delivered("session.get"), batch)


def test_a_deadline_counts_from_the_arrival(decider):
    in_time(an_update(deadline_ms=1001), NOW)
    with pytest.raises(Expired):
        in_time(an_update(deadline_ms=1000), NOW)


def test_the_sender_is_noted_on_the_delivery(decider):
    update = an_update()

    sender = decider.who(update)

    assert (sender.name, sender.role) == ("ada", "admin")
    assert update.principal is sender


def test_a_command_without_a_grant_has_no_sender(decider):
    with pytest.raises(Unauthenticated):
        decider.who(an_update(grant=b""))


def test_a_cancelled_command_is_valid_no_longer(decider):
    update = an_update()
    sender = decider.who(update)
    decider.still_valid(update, sender)
    decider.revocation.cancelled[update.command] = (sender.tenant, sender.name)

    with pytest.raises(Cancelled):
        decider.still_valid(update, sender)


def test_only_the_sender_cancels_a_command(decider):
    update = an_update()
    decider.revocation.cancelled[update.command] = ("", "eve")

    decider.still_valid(update, decider.who(update))


def test_a_command_of_a_fenced_epoch_is_valid_no_longer(decider):
    update = an_update(epoch=3)
    window = decider.cache.observe(update)
    window.fences = (Fence(3, NOW.ms - 2000),)

    with pytest.raises(Superseded):
        decider.still_valid(update, decider.who(update))


def test_what_the_lower_tiers_refuse_is_refused(decider, batch):
    update = an_update(session="s2")
    update.given = Unavailable("MongoDB is away")

    assert decider.decide(update, batch) is Decision.SETTLED
    assert outcomes(batch) == {("session.update", "unavailable"): 1}


def test_a_session_on_its_way_to_the_cold_tier_waits(decider, batch):
    decider.cache.sessions["s1"] = a_session(id="s1", state="archived")

    assert decider.decide(an_update(), batch) is Decision.LEAVING
    assert not batch.changes


def test_the_policy_is_asked_before_the_handler(decider, batch):
    grant = sealed_grant(SECRET, "eve", "mad", mad="ada", instance="i1")
    update = an_update(grant=grant)
    session = decider.session_of(update)

    with pytest.raises(Rejection):
        decider.may(update, decider.who(update), session, batch)

    assert "s1" in batch.changes  # so that the commit checks the session


def test_an_authorised_command_names_its_sender(decider, batch):
    update = an_update(expected_version=4)

    command = decider.may(
        update, decider.who(update), decider.session_of(update), batch
    )

    assert (command.mad, command.principal) == ("ada", "ada")
    assert command.expected_version == 4


def test_a_write_is_ready_unless_the_outbox_is_full(decider):
    update = an_update()
    given = (update, decider.who(update), decider.session_of(update), NOW)
    decider.ready(*given)
    decider.overloaded = True

    with pytest.raises(Overloaded):
        decider.ready(*given)


def test_a_read_is_ready_under_overload(decider):
    read = delivered("session.get")
    decider.overloaded = True

    decider.ready(read, decider.who(read), decider.session_of(read), NOW)


@pytest.mark.parametrize(
    ("durability", "error"), [("eternal", Invalid), ("warm", Unavailable)]
)
def test_a_write_is_not_ready_for_a_durability_that_nobody_keeps(
    decider, durability, error: type[EverbusError]
):
    update = an_update(durability=durability)

    with pytest.raises(error):
        decider.ready(update, decider.who(update), decider.session_of(update), NOW)


def test_an_append_that_nobody_waits_for_waits_under_overload(decider, batch):
    decider.overloaded = True
    append = delivered("timeline.append", body={"entry": "hi"}, reply=False)

    assert decider.defers(append)
    assert decider.decide(append, batch) is Decision.DEFERRED
    assert not batch


def test_a_staged_change_is_what_the_next_command_sees(decider, batch):
    before = decider.cache.sessions["s1"].version
    update = an_update()
    decider.cache.observe(update)

    assert decider.decide(update, batch) is Decision.SETTLED
    assert decider.cache.sessions["s1"].version == before + 1
    assert batch.changes["s1"].now is decider.cache.sessions["s1"]


def test_a_defect_fails_one_command_only(decider, batch, monkeypatch):
    monkeypatch.setattr(decider, "handle", lambda *_: 1 / 0)
    update = an_update()

    assert decider.decide(update, batch) is Decision.FAILED
    assert update.attempts == ["ZeroDivisionError: division by zero"]
    assert not batch


def test_a_new_generation_begins_later_than_the_one_before(decider, batch):
    born = NOW.datetime + timedelta(seconds=5)
    change = batch.touch("s1", a_session(id="s1", created_at=born))
    change.now = None

    assert moment(an_update(), batch) > born


def test_a_field_that_is_no_envelope_is_undecodable():
    [one] = received_in("ada", "1-0", [b"c", b"\xc1"], 0, 1)

    assert isinstance(one, Undecodable)
    assert one.delivery is None


def test_an_undecodable_command_is_buried_and_answered(decider, batch):
    unknown = received("session.explode")
    assert isinstance(unknown, Undecodable)
    decider.cache.observe(unknown)

    decider.replies.bury_undecodable(unknown, batch)

    assert batch.letters == ["unknown_kind"]
    assert unknown.answerable is not None
    assert list(batch.kept) == ["ada:i1.0.1"]
    assert batch.acknowledged == {"ada": [unknown.entry.id]}


def test_a_command_of_another_partition_is_buried_without_a_reply(decider, batch):
    packed = pack_envelope(an_envelope("session.get", id="i1.7.1", reply=True))
    [foreign] = received_in("ada", "1-0", [b"c", packed], 0, 8)
    assert isinstance(foreign, Undecodable)

    decider.replies.bury_undecodable(foreign, batch)

    assert foreign.answerable is None
    assert batch.letters == ["wrong_partition"]
    assert not batch.kept


def test_a_dead_letter_keeps_no_token(decider, batch):
    token = b"eyJhbGciOiJub25lIn0.e30.x"
    [one] = received_in("ada", "1-0", [b"c", b"\xc1" + token], 0, 1)

    decider.replies.bury_undecodable(one, batch)

    letters = [a for a in batch.command("owner") if isinstance(a, bytes)]
    assert not any(token in letter for letter in letters)
    assert any(b"*" * len(token) in letter for letter in letters)


def test_a_dead_letter_keeps_its_command_without_the_grant(decider, batch):
    append = delivered("timeline.append", body={"entry": "hi"}, reply=False)
    batch.bury(append, "poison", "died")

    letters = [a for a in batch.command("owner") if isinstance(a, bytes)]
    assert not any(bytes(msgspec.Raw(GRANT)) in letter for letter in letters)


def test_what_comes_too_late_is_refused_by_the_chain(decider, batch):
    """
    Before the sender is even asked for: `in_time` stands early in `decide`.
    """
    late = an_update(deadline_ms=1000, grant=b"")

    assert decider.decide(late, batch) is Decision.SETTLED
    assert outcomes(batch) == {("session.update", "expired"): 1}
    assert not batch.changes


class Ticking:
    now = NOW.ms / 1000

    def __call__(self):
        return self.now


def expiring(ttl_s, instance="i1"):
    """
    A grant of ada's that is over so many seconds after NOW.
    """
    grants = Grants(derived_key(SECRET))
    principal = Principal("ada", "admin", NOW.ms / 1000 + ttl_s)

    return grants.for_instance(principal, "ada", instance)


def test_each_batch_verifies_a_grant_anew():
    """
    Within a batch once: a grant that ends is refused from the next batch on.
    """
    clock = Ticking()
    decider = Decider(Grants(derived_key(SECRET), clock=clock), Policy(KINDS))
    grant = expiring(60)
    decider.who(an_update(n=1, grant=grant))
    clock.now += 120

    decider.cache.begin(NOW.datetime)

    with pytest.raises(Unauthenticated):
        decider.who(an_update(n=2, grant=grant))


@pytest.mark.parametrize(
    "other",
    [
        {"id": "i2.0.1"},
        {"grant": expiring(60, "i2")},
        {"grant": b"x" * 99},
        {"grant": b""},
    ],
    ids=["another instance", "its grant", "no grant of ours", "none"],
)
def test_what_one_command_may_says_nothing_of_another_sender(decider, other):
    decider.who(an_update())

    with pytest.raises(Unauthenticated):
        decider.who(an_update(**other))


def test_an_inherited_epoch_opens_no_way_for_the_next_command(decider):
    """
    A spool goes out under the grant of the next instance; nothing else does.
    """
    decider.who(an_update(id="i0.0.1", epoch=INHERITED_EPOCH))

    with pytest.raises(Unauthenticated):
        decider.who(an_update(id="i0.0.2"))

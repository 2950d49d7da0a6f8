"""
The loads of a lane before it decides, and their order.
"""

from everbus.bus.messages import pack_envelope
from everbus.gateway.identity.grants import Grants, derived_key
from everbus.gateway.identity.policy import Policy
from everbus.gateway.lane.commit import Batch, BatchLimits
from everbus.gateway.lane.decision import Decider, Decision
from everbus.gateway.lane.delivery import KINDS, Delivery, Now, received_in
from tests.builders import a_session, an_envelope, sealed_grant

SECRET = "a-secret-of-at-least-thirty-two-bytes"
NOW = Now.at(1_790_000_000_000)


def a_decider() -> Decider:
    return Decider(Grants(derived_key(SECRET)), Policy(KINDS))


def a_delivery(n: int, session: str) -> Delivery:
    grant = sealed_grant(SECRET, "fiedler", "admin", mad="fiedler", instance="i1")
    envelope = an_envelope(
        "session.get", session=session, id=f"i1.0.{n}", grant=grant, reply=True
    )
    fields = [b"c", pack_envelope(envelope)]
    [delivery] = received_in("fiedler", f"{1_790_000_000_000 + n}-0", fields, 0, 1)

    return delivery


def test_a_command_that_was_seen_first_is_not_gone_because_a_later_one_settled():
    """
    The first command of a publisher waits with its session; the second, of
    another session, is settled first. The first must still be applied.
    """
    decider = a_decider()
    decider.cache.sessions |= {"s1": a_session(id="s1"), "s2": a_session(id="s2")}
    first, second = a_delivery(1, "s1"), a_delivery(2, "s2")
    for delivery in (first, second):
        decider.cache.observe(delivery)

    settled = decider.decide(second, Batch(0, BatchLimits(), NOW))

    assert settled is Decision.SETTLED
    assert not decider.cache.settled_before(first)


def test_a_publisher_that_begins_late_has_nothing_before_it():
    decider = a_decider()
    late = a_delivery(7, "s1")

    window = decider.cache.observe(late)

    assert window is not None
    assert window.settled(6)
    assert not decider.cache.settled_before(late)


def test_where_records_were_lost_numbers_before_the_first_one_may_be_sent_again():
    cache = a_decider().cache
    cache.records_lost = True

    window = cache.observe(a_delivery(7, "s1"))

    assert window is not None
    assert not window.settled(6)
    window.settle(7, 0)
    assert not window.settled(6)

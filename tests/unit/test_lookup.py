"""
What a lane learns before it judges, and in which order it learns it.
"""

from bus.codec import pack_envelope
from gateway.batch import Batch, Limits
from gateway.clock import Now
from gateway.delivery import KINDS, Work, works_of
from gateway.identity.grants import Grants, derived_key
from gateway.policy import Policy
from gateway.settlement import Settlement, Verdict
from tests.builders import a_session, an_envelope, sealed_grant

SECRET = "a-secret-of-at-least-thirty-two-bytes"
NOW = Now.at(1_790_000_000_000)


def a_settlement() -> Settlement:
    return Settlement(Grants(derived_key(SECRET)), Policy(KINDS))


def a_work(n: int, session: str) -> Work:
    grant = sealed_grant(SECRET, "fiedler", "admin", mad="fiedler", instance="i1")
    envelope = an_envelope(
        "session.get", session=session, id=f"i1.0.{n}", grant=grant, reply=True
    )
    fields = [b"c", pack_envelope(envelope)]
    [work] = works_of("fiedler", f"{1_790_000_000_000 + n}-0", fields, 0, 1)

    return work


def test_a_command_that_was_seen_first_is_not_gone_because_a_later_one_settled():
    """
    The first command of a publisher waits with its session; the second, of
    another session, is settled first. The first must still be applied.
    """
    settlement = a_settlement()
    settlement.known.sessions |= {"s1": a_session(id="s1"), "s2": a_session(id="s2")}
    first, second = a_work(1, "s1"), a_work(2, "s2")
    for work in (first, second):
        settlement.known.sight(work)

    settled = settlement.judge(second, Batch(0, Limits()), NOW)

    assert settled is Verdict.SETTLED
    assert not settlement.known.settled_before(first)


def test_a_publisher_that_begins_late_has_nothing_before_it():
    settlement = a_settlement()
    late = a_work(7, "s1")

    progress = settlement.known.sight(late)

    assert progress is not None
    assert progress.settled(6)
    assert not settlement.known.settled_before(late)

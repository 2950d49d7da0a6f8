"""
Claimed sessions on their way into the hot tier, without a server.
"""

import pytest

from everbus.bus.errors import Unavailable
from everbus.gateway.lane.admission import (
    Admission,
    AdmissionTerms,
    Changed,
    Unclaimed,
)
from everbus.gateway.lane.cache import LaneCache
from everbus.gateway.lane.connection import LaneLost, UndecodableSession
from everbus.gateway.lane.lookup import Doubt
from everbus.gateway.lane.sequence import ProducerWindow
from everbus.gateway.store.claims import Claim
from everbus.gateway.store.hot_copy import Found
from everbus.gateway.store.tiers import Admissible
from tests.builders import a_session
from tests.lane_parts import NOW, FakeWire

AWAY = Unavailable("MongoDB is away")
HOT = a_session(version=2)


async def admitted(read, hot=None, *, reply=b"ok", doubts="wait", cache=None, **found):
    wire = FakeWire(admit=[reply], HMGET=lambda command: [None] * (len(command) - 2))
    doubt = Doubt(Claim(session="s1", lineage=7), Found(hot, **found))
    terms = AdmissionTerms(doubts=doubts)

    states = await Admission(wire, 0, cache or LaneCache(), terms).admit(
        {"s1": (doubt, read)}, NOW
    )

    return states["s1"], wire.words()


async def test_a_claimed_session_is_made_hot():
    assert await admitted(Admissible(a_session())) == (a_session(), ["admit"])


async def test_a_session_that_is_nowhere_is_none_and_that_is_admitted_too():
    assert await admitted(Admissible(None)) == (None, ["admit"])


async def test_a_hot_copy_counts_if_the_claim_says_so():
    assert await admitted(Admissible(None, keeps_hot=True), HOT) == (HOT, ["admit"])


async def test_what_the_warm_tier_holds_replaces_a_hot_copy_that_does_not_count():
    state, _ = await admitted(Admissible(a_session()), HOT)

    assert state == a_session()


async def test_a_hot_copy_that_changed_meanwhile_is_looked_up_again():
    state, _ = await admitted(Admissible(a_session()), reply=b"changed")

    assert state is Changed.CHANGED


async def test_a_superseded_owner_admits_nothing():
    with pytest.raises(LaneLost):
        await admitted(Admissible(a_session()), reply=b"superseded")


@pytest.mark.parametrize("hot", [None, HOT])
async def test_with_mongodb_away_a_session_in_doubt_waits(hot):
    assert await admitted(AWAY, hot) == (AWAY, [])


async def test_with_mongodb_away_its_hot_copy_is_served_where_that_is_chosen():
    state, words = await admitted(AWAY, HOT, doubts="serve")

    assert isinstance(state, Unclaimed)
    assert (state.session, words) == (HOT, [])


async def test_the_stale_side_of_a_split_serves_nothing():
    error = Unavailable("claimed by a later lineage", stale_side=True)

    assert await admitted(error, HOT, doubts="serve") == (error, [])


async def test_a_hot_copy_that_nobody_can_read_is_an_error_and_stays():
    state, words = await admitted(Admissible(None), undecodable=True)

    assert isinstance(state, UndecodableSession)
    assert words == []


async def test_the_numbers_that_a_session_brings_are_read_anew():
    """
    They are settled in the same script; the cached window does not have them.
    """
    cache = LaneCache()
    cache.windows["ada:i1"] = ProducerWindow.starting_at(1)

    await admitted(Admissible(a_session(), commands=[("ada", "i1.0.5")]), cache=cache)

    assert "ada:i1" not in cache.windows

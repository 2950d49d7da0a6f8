"""
Which ids are so young that a session that is not hot cannot be anywhere.
"""

import pytest
import uuid_utils
from hypothesis import given
from hypothesis import strategies as st

from everbus.bus.errors import Invalid
from everbus.gateway.store.uuid_age import (
    SKEW_MS,
    check_made,
    is_newborn,
    made_ms,
    stays_ms,
)

HOUR_MS = 3_600_000
NOW_MS = 1_790_000_000_000


def an_id(ms: int) -> str:
    """
    A UUIDv7 of that time.
    """
    return f"{ms >> 16:08x}-{ms & 0xFFFF:04x}-7abc-8def-0123456789ab"


def test_the_time_in_the_sdks_ids_is_read():
    made = uuid_utils.uuid7()

    assert made_ms(str(made)) == made.timestamp


@pytest.mark.parametrize(
    "other",
    # A UUIDv4, and a UUIDv7 that is not written as the SDK writes them.
    [
        "s1",
        "d680173b-e3c3-4bc3-a277-bda17f251b3d",
        "",
        "01A1FF05-2B1C-7506-B0AC-A976595FE990",
    ],
)
def test_other_ids_tell_nothing_and_are_never_newborn(other):
    assert made_ms(other) is None
    assert not is_newborn(other, NOW_MS, 0, HOUR_MS)
    assert stays_ms(other, NOW_MS, HOUR_MS) == HOUR_MS


@pytest.mark.parametrize(
    ("age_ms", "since_ms", "newborn"),
    [
        (0, 0, True),
        (HOUR_MS - 1, 0, True),
        (HOUR_MS, 0, False),
        (1_000, NOW_MS - 500, False),
        # Its maker's clock may have been ahead when the hot tier was lost.
        (1_000, NOW_MS - SKEW_MS, False),
        (1_000, NOW_MS - SKEW_MS - 1_001, True),
        (-SKEW_MS + 1, 0, True),
        (-SKEW_MS, 0, False),
    ],
)
def test_an_id_is_newborn_within_the_ttl_while_nothing_was_lost(
    age_ms, since_ms, newborn
):
    made = an_id(NOW_MS - age_ms)

    assert is_newborn(made, NOW_MS, since_ms, HOUR_MS) is newborn


@given(
    made=st.integers(NOW_MS - 10**8, NOW_MS + SKEW_MS - 1),
    written=st.integers(NOW_MS, NOW_MS + 10**8),
    asked=st.integers(0, 10**9),
)
def test_no_hot_copy_leaves_before_its_id_has_grown_up(made, written, asked):
    """
    Whatever the maker's clock said: once the copy may have expired, it is looked for.
    """
    session_id = an_id(made)
    gone_at = written + stays_ms(session_id, written, HOUR_MS)

    assert not is_newborn(session_id, gone_at + asked, 0, HOUR_MS)


def test_no_session_begins_under_an_id_of_the_future():
    """
    It would count as newborn, and be nowhere, when its time comes.
    """
    check_made(an_id(NOW_MS + SKEW_MS - 1), NOW_MS)
    check_made("anything", NOW_MS)
    with pytest.raises(Invalid, match="Set the clock") as refused:
        check_made(an_id(NOW_MS + SKEW_MS), NOW_MS)

    assert refused.value.details["field"] == "session"


def test_a_bus_whose_clock_was_set_back_refuses_no_new_session():
    """
    The manager's own clock is as good as the bus's, and the id agrees with it.
    """
    behind_ms = NOW_MS - HOUR_MS

    check_made(an_id(NOW_MS), behind_ms, NOW_MS)
    with pytest.raises(Invalid, match=r"was made 6\d s from now"):
        check_made(an_id(NOW_MS + SKEW_MS + 1000), behind_ms, NOW_MS)

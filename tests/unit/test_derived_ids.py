"""
Ids that follow from names belong to the tenant of these names.
"""

import uuid

import pytest

from everbus.bus.derived_ids import check_reserved, user_session_id
from everbus.bus.errors import Invalid

ADAS = user_session_id("acme", "ada")
OF_A_KEY = str(uuid.UUID(int=7 | 8 << 76 | 2 << 62))


def test_no_two_users_share_an_id():
    whose = [("", "ada"), ("acme", "ada"), ("", "acme/ada"), ("", "/ada"), ("a", "b/c")]

    assert len({user_session_id(*one) for one in whose}) == len(whose)


@pytest.mark.parametrize(
    ("session_id", "tenant", "user", "mad"),
    [
        (ADAS, "acme", "ada", "fiedler"),
        (user_session_id("", "ada"), "", "ada", "edge"),
        (OF_A_KEY, "acme", "ada", "edge"),
        (str(uuid.UUID(int=9 | 4 << 76 | 2 << 62)), "evil", "eve", "eve"),
        ("a-name-of-my-own", "evil", "eve", "eve"),
    ],
)
def test_its_own_names_may_use_an_id(session_id, tenant, user, mad):
    check_reserved(session_id, tenant, user, mad)


@pytest.mark.parametrize(
    ("session_id", "tenant", "user", "mad"),
    [
        (ADAS, "evil", "ada", "eve"),
        (ADAS, "", "ada", "edge"),
        (ADAS, "acme", "eve", "fiedler"),
        (ADAS.upper(), "evil", "ada", "eve"),
        (OF_A_KEY, "acme", "ada", "fiedler"),
    ],
)
def test_nobody_else_may(session_id, tenant, user, mad):
    with pytest.raises(Invalid) as refused:
        check_reserved(session_id, tenant, user, mad)

    assert refused.value.details == {"field": "session"}

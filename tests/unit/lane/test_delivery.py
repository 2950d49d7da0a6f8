"""
The commands of an entry as a lane is given them.
"""

import pytest

from everbus.bus.errors import Rejection
from everbus.bus.messages import MAX_COMMAND_ID, check_command_id, ordinal_of
from everbus.gateway.lane.delivery import Delivery, received_in
from tests.lane_parts import ARRIVED_MS, packed

IDS = (
    *("i1.0.1", "i1.0.01", "i1.0.0", "i1.00.1", "i1.0.", "i1..1", ".0.1", "i1.0.+1"),
    *("i1.0.1\n", "i1.0\n.1", "i 1.0.1", "-i.0.1", "i1.x.1", "i1.0.1.1", "a.i1.0.1"),
    *("i1.1.1", "i1.0.²", "i1.0.٣", "ï.0.1", "free", "", "i1.0.x"),
    *(f"i1.0.{9 * 10**17}", f"i1.0.{10**18}"),
    *(f"{'i' * (MAX_COMMAND_ID - 4)}.0.1", f"{'i' * (MAX_COMMAND_ID - 3)}.0.1"),
)


def by_the_contract(identifier):
    """
    The ordinal that the id has in lane 0, or that it is refused.
    """
    try:
        ordinal = ordinal_of(check_command_id(identifier))
    except Rejection:
        return "invalid_id"
    if ordinal is not None and ordinal.partition != 0:
        return "wrong_partition"
    return ordinal


@pytest.mark.parametrize("identifier", IDS, ids=ascii)
def test_an_id_is_read_as_the_contract_has_it(identifier):
    """
    A lane reads the usual ids by a shorter way than the contract's expressions.
    """
    entry = [b"c", packed("session.update", id=identifier)]

    [one] = received_in("ada", f"{ARRIVED_MS}-1", entry, 0, 1)

    found = one.ordinal if isinstance(one, Delivery) else one.cause
    assert found == by_the_contract(identifier)
    if one.ordinal is not None:
        assert one.publisher == f"ada:{one.ordinal.instance}"

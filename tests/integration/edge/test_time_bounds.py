"""
Times whose UTC lies outside the calendar are refused by name, and never a fault.
"""

import pytest

from tests.integration.edge.conftest import Edge, fresh

pytestmark = pytest.mark.asyncio(loop_scope="module")

BEYOND = (
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-01:00",
    "9999-12-31T23:59:59.999999Z",
)
PLACES = (
    ("/sessions/{id}/timeline", "since"),
    ("/sessions/{id}/timeline", "until"),
    ("/sessions", "active_since"),
    ("/sessions", "active_before"),
)


@pytest.mark.parametrize("at", BEYOND)
@pytest.mark.parametrize(("path", "name"), PLACES)
async def test_a_time_beyond_the_calendar_names_its_field(
    edge: Edge, path: str, name: str, at: str
):
    who = fresh()
    async with edge.client(who) as client:
        made = await client.post("/sessions", json={"user_id": who})
        answer = await client.get(path.format(id=made.json()["id"]), params={name: at})

    assert answer.status_code == 422
    assert (answer.json()["code"], answer.json()["field"]) == ("invalid", name)

"""
The servers of a bus: their addresses in what servers tell, and their URLs.
"""

import pytest
from redis.exceptions import ResponseError

from everbus.bus.bus_servers import (
    BusServer,
    _of_shards,
    reachable,
    replicas_in,
    url_at,
)
from everbus.bus.wire import Wire, WireFailed
from everbus.gateway.health.readings import _report


@pytest.mark.parametrize(
    ("url", "there"),
    [
        ("redis://h:1/0", "redis://10.0.0.2:7/0"),
        ("rediss://u:p%40@h:1/0?x=y", "rediss://u:p%40@10.0.0.2:7/0?x=y"),
        ("redis://h", "redis://10.0.0.2:7"),
        ("redis+cluster://u:p@h:1,i:2", "redis://u:p@10.0.0.2:7"),
        ("redis+sentinel://u:p@h:1/bus?db=3", "redis://u:p@10.0.0.2:7?db=3"),
    ],
)
def test_each_server_is_asked_with_the_credentials_of_the_bus(url, there):
    assert url_at(url, "10.0.0.2:7") == there


def test_replicas_are_in_the_report_of_their_primary():
    info = (
        "# Replication\r\nrole:master\r\nconnected_slaves:2\r\n"
        "slave0:ip=10.0.0.2,port=7,state=online,offset=1,lag=0\r\n"
        "slave1:ip=::1,port=8,state=online,offset=1,lag=0\r\n"
        "slave_repl_offset:5\r\n"
    )

    assert replicas_in(info) == ["10.0.0.2:7", "[::1]:8"]


@pytest.mark.parametrize(("port", "there"), [("port", 7), ("tls-port", 8)])
def test_nodes_without_slots_are_in_the_report_of_the_shards(port, there):
    node = [b"id", b"x", b"port", 7, b"tls-port", 8, b"endpoint", b"?"]

    found = _of_shards([[b"slots", [], b"nodes", [node]]], "h:1", port)

    assert found == [f"h:{there}"]
    assert _of_shards(PermissionError("NOPERM"), "h:1", port) == []


def test_replicas_may_be_away_and_primaries_may_not():
    wire, away = Wire("redis://h:1"), WireFailed("away")
    there = BusServer("p:1", True, wire)
    lost = BusServer("r:1", False, wire, away)

    assert reachable([there, lost]) == [there]
    with pytest.raises(WireFailed):
        reachable([lost._replace(is_primary=True), there])


async def test_a_server_that_refuses_to_tell_its_time_is_in_trouble_and_no_defect():
    class Refusing:
        async def exchange(self, commands, timeout_s):
            return [ResponseError("MASTERDOWN no link")] * len(commands)

    report = await _report(BusServer("r:1", False, Refusing()))

    assert (report.address, report.is_primary) == ("r:1", False)
    assert "MASTERDOWN" in report.trouble

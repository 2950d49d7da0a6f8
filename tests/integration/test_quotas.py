"""
A MAD above its quota is disabled, named, and enabled again; what it sent stays.
"""

from pathlib import Path

import pytest

from everbus.bus import keys
from everbus.bus.errors import EverbusError
from everbus.bus.wire import Wire
from everbus.compose.acl import mad_rules, role_rules
from everbus.compose.bus_url import url_for_user
from everbus.compose.exit_codes import CONFLICT
from everbus.compose.servers import CLIENT_BOUNDS
from everbus.gateway.health.indicators import INDICATORS
from everbus.gateway.health.readings import read_bus
from everbus.gateway.health.server_report import LARGEST_BULK
from everbus.gateway.health.verdicts import examine
from everbus.gateway.presence.mad_quotas import MadQuotas, QuotaLimits
from everbus.gateway.store import mad_access
from everbus.gateway.telemetry import metrics
from tests.commandline import CommandLine
from tests.replicas import until
from tests.servers import valkey

HOUSE = Path(__file__).parent.parent.parent
MIB = 1024 * 1024
LIMITS = QuotaLimits(ingress_bytes=MIB, connections=20)
PASSWORD = "a-password-of-nobody"


class Bus:
    """
    A server with a MAD `evil` and a manager's user; it closes what it opened.
    """

    def __init__(self, url):
        self.url = url
        self.opened = []

    def wire(self, user=""):
        wire = Wire(url_for_user(self.url, user, PASSWORD) if user else self.url)
        self.opened.append(wire.close)
        return wire

    def quotas(self):
        url = url_for_user(self.url, "manager", PASSWORD)
        watch = MadQuotas(
            url, "one", LIMITS, lambda: [0, 1, keys.PRESENCE], lambda: {"evil"}
        )
        self.opened.append(watch.close)
        return watch


@pytest.fixture
async def server(tmp_path):
    async with valkey(tmp_path) as real:
        bus = Bus(real.url)
        wire = bus.wire()
        user = ("on", f">{PASSWORD}", *mad_rules("evil", partitions=2))
        await wire.call("ACL", "SETUSER", "evil", *user)
        manager = ("on", f">{PASSWORD}", *role_rules("manager", partitions=2))
        await wire.call("ACL", "SETUSER", "manager", *manager)
        await wire.call("HSET", keys.CONFIG, "partitions", 2)
        await wire.call("HSET", keys.MADS, "evil", "{}")
        try:
            yield bus
        finally:
            for close in bus.opened:
                await close()


async def flood(server, lane, count=40):
    """
    What the MAD itself can publish, as its own user.
    """
    wire = server.wire("evil")
    for _ in range(count):
        await wire.call("XADD", keys.ingress(lane, "evil"), "*", "c", b"x" * 50_000)
    return wire


async def is_let_in(server):
    try:
        return await server.wire("evil").call("PING") == b"PONG"
    except EverbusError:
        return False


def reached(bound):
    return metrics.BOUND_REACHED.labels(bound)._value.get()


@pytest.mark.parametrize("lane", [0, 1, keys.PRESENCE])
async def test_a_mad_that_fills_a_stream_is_disabled_and_its_entries_stay(server, lane):
    before = reached("ingress_max_bytes")
    await flood(server, lane)
    watch = server.quotas()

    await watch.beat()

    wire = server.wire()
    [one] = await mad_access.disabled_mads(wire)
    assert (one.mad, one.bound, one.off) == ("evil", "ingress_max_bytes", True)
    assert one.value > MIB
    assert not await is_let_in(server)
    assert await wire.call("XLEN", keys.ingress(lane, "evil")) == 40
    assert reached("ingress_max_bytes") == before + 1


async def test_its_open_connections_end(server):
    wire = await flood(server, 0)
    await server.quotas().beat()

    with pytest.raises(EverbusError):
        await wire.call("XADD", keys.ingress(0, "evil"), "*", "c", b"x")


async def test_a_mad_below_its_quota_is_left_alone(server):
    await flood(server, 0, count=5)

    await server.quotas().beat()

    assert await is_let_in(server)


async def test_the_quota_counts_all_streams_of_the_mad_together(server):
    for lane in (0, 1, keys.PRESENCE):
        await flood(server, lane, count=10)

    await server.quotas().beat()

    assert not await is_let_in(server)


async def test_small_entries_before_large_ones_do_not_deceive_it(server):
    wire = server.wire()
    stream = keys.ingress(0, "evil")
    await wire.exchange([("XADD", stream, "*", "c", b"x")] * 500)
    await flood(server, 0)

    await server.quotas().beat()

    assert not await is_let_in(server)


async def test_too_many_connections_have_the_same_remedy(server):
    for _ in range(LIMITS.connections + 1):
        await server.wire("evil").call("PING")
    await server.quotas().beat()

    [one] = await mad_access.disabled_mads(server.wire())
    assert (one.bound, one.off) == ("mad_max_connections", True)


async def test_a_restart_without_users_file_does_not_enable_it(server):
    await flood(server, 0)
    await server.quotas().beat()
    wire = server.wire()
    await wire.call("ACL", "SETUSER", "evil", "on")

    await server.quotas()._begin()

    assert not await is_let_in(server)


async def test_doctor_names_it_and_says_when_users_cannot_be_disabled(server):
    await flood(server, 0)
    wire = server.wire()
    await wire.call("ACL", "SETUSER", "manager", "-acl|setuser")
    watch = server.quotas()

    await watch._begin()
    await watch.beat()

    found = {one.name: one for one in examine(await read_bus(wire), INDICATORS)}
    assert found["disabled_mads"].verdict == "warn"
    assert "evil (ingress_max_bytes" in found["disabled_mads"].shown
    assert "not disabled" in found["disabled_mads"].shown
    assert found["quota_rights"].verdict == "warn"


async def test_an_operator_enables_it_after_trimming(server, monkeypatch):
    monkeypatch.setenv("EVERBUS_INGRESS_MAX_BYTES", str(MIB))
    await flood(server, 0)
    await server.quotas().beat()
    everbus = CommandLine(server.url)
    mads = (await everbus("mads", "list", "-o", "json")).json

    refused = await everbus("mads", "enable", "evil")
    enabled = await everbus("mads", "enable", "evil", "--trim")

    assert [one["mad"] for one in mads["disabled"]] == ["evil"]
    assert (refused.code, enabled.code) == (CONFLICT, 0)
    assert await is_let_in(server)
    assert await mad_access.disabled_mads(server.wire()) == ()


async def test_the_server_refuses_a_bulk_beyond_any_of_ours(server):
    largest = b"x" * LARGEST_BULK
    manager, evil = server.wire(), server.wire("evil")
    await manager.call("SET", "eb:largest", largest)

    with pytest.raises(EverbusError):
        await evil.call("XADD", keys.ingress(0, "evil"), "*", "c", largest + largest)

    assert await manager.call("XLEN", keys.ingress(0, "evil")) == 0


def test_the_shipped_configuration_has_the_bounds_of_the_embedded_one():
    conf = (HOUSE / "compose" / "valkey" / "valkey.conf").read_text()
    shipped = dict(
        line.split(maxsplit=1) for line in conf.splitlines() if line and line[0] != "#"
    )

    assert CLIENT_BOUNDS.keys() <= shipped.keys()
    assert shipped["proto-max-bulk-len"] == CLIENT_BOUNDS["proto-max-bulk-len"]


async def test_a_connection_that_the_server_closed_while_idle_is_opened_anew(server):
    idle = server.wire()
    number = await idle.call("CLIENT", "ID")
    await server.wire().call("CLIENT", "KILL", "ID", number)
    await until(idle._connection._reader.at_eof, what="the end of the connection")

    assert await idle.call("PING") == b"PONG"

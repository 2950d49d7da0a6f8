"""
Whose address a request has, whatever its headers claim.
"""

import pytest
from starlette.requests import HTTPConnection

from everbus.compose.settings import SettingsError, load_settings
from everbus.gateway.edge.addresses import TrustedProxies, counted_as

PROXY, OUTER = "10.0.0.9", "10.0.0.8"
TRUSTED = ("10.0.0.0/8", "2001:db8:1::/48")


def client_of(
    proxies: TrustedProxies, peer: str, *stated: str, header: str = "x-forwarded-for"
) -> str:
    headers = [(header.encode(), value.encode()) for value in stated]
    scope = {"type": "http", "headers": headers, "client": (peer, 1)}

    return proxies.client_of(HTTPConnection(scope))


@pytest.mark.parametrize(
    ("peer", "stated", "client"),
    [
        ("192.0.2.7", ["198.51.100.1"], "192.0.2.7"),  # no proxy of ours
        (PROXY, [], PROXY),
        (PROXY, ["198.51.100.1"], "198.51.100.1"),
        (PROXY, ["198.51.100.1:4711"], "198.51.100.1"),
        (PROXY, ["6.6.6.6, 198.51.100.1"], "198.51.100.1"),  # the left is claimed
        (PROXY, ["6.6.6.6", "198.51.100.1"], "198.51.100.1"),  # two lines, one list
        (PROXY, [f"6.6.6.6, 198.51.100.1, {OUTER}"], "198.51.100.1"),
        (PROXY, [f"{OUTER}"], OUTER),
        (PROXY, ["198.51.100.1, unknown"], PROXY),
        (PROXY, [f"198.51.100.1, _hidden, {OUTER}"], OUTER),
        (PROXY, ["", ""], PROXY),
        (PROXY, ["1," * 10_000 + "198.51.100.1"], "198.51.100.1"),
        ("::ffff:10.0.0.9", ["198.51.100.1"], "198.51.100.1"),
        ("2001:db8:1::5", ["[2001:db8:7::1]:443"], "2001:db8:7::/64"),
    ],
)
def test_the_client_is_the_rightmost_that_is_no_trusted_proxy(peer, stated, client):
    assert client_of(TrustedProxies(TRUSTED), peer, *stated) == client


@pytest.mark.parametrize(
    ("stated", "client"),
    [
        ("for=198.51.100.1", "198.51.100.1"),
        ('by=10.0.0.9;For="198.51.100.1:4711";proto=https', "198.51.100.1"),
        ('for=6.6.6.6, for="[2001:db8:7::1]:4711"', "2001:db8:7::/64"),
        ("for=_secret", PROXY),
        ("proto=https", PROXY),
    ],
)
def test_forwarded_is_read_in_place_of_the_other_header(stated, client):
    proxies = TrustedProxies(TRUSTED, "forwarded")

    assert client_of(proxies, PROXY, stated, header="forwarded") == client
    assert client_of(proxies, PROXY, "6.6.6.6") == PROXY


def test_without_proxies_no_header_is_read():
    assert client_of(TrustedProxies(), PROXY, "198.51.100.1") == PROXY


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:7:1:aaaa::1", "2001:db8:7:1::/64"),
        ("2001:db8:7:1:bbbb::2", "2001:db8:7:1::/64"),
        ("testclient", "testclient"),
        ("", ""),
    ],
)
def test_an_ipv6_address_counts_as_its_network(host, name):
    assert counted_as(host) == name


def test_connections_of_a_trusted_proxy_are_not_counted_as_one_address():
    proxies = TrustedProxies(TRUSTED)

    assert proxies.counted_connection(PROXY) == ""
    assert proxies.counted_connection("192.0.2.7") == "192.0.2.7"


@pytest.mark.parametrize("bad", ["10.0.0.0/33", "ingress", "10.0.0.1/8"])
def test_a_setting_that_is_no_network_is_refused(bad):
    with pytest.raises(SettingsError, match="EVERBUS_EDGE_TRUSTED_PROXIES"):
        load_settings({"EVERBUS_EDGE_TRUSTED_PROXIES": bad})

"""
The URL of a bus: what works, what is one coded line, and what is shown of it.
"""

import pytest

from everbus.bus.bus_address import server_url, shown_address
from everbus.bus.errors import Invalid


@pytest.mark.parametrize(
    ("url", "used"),
    [
        ("redis://h:1", "redis://h:1"),
        ("redis://h:1?protocol=3", "redis://h:1"),
        ("redis://h:1?protocol=3&db=2&decode_responses=true", "redis://h:1?db=2"),
        ("valkey://u:p@h:6379/2", "redis://u:p@h:6379/2"),
        ("valkeys://h?ssl_cert_reqs=none", "rediss://h?ssl_cert_reqs=none"),
        ("valkey+cluster://a:1,b:2", "redis+cluster://a:1,b:2"),
        ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock?db=1"),
        ("redis://{mad}:pw@h:1", "redis://{mad}:pw@h:1"),
    ],
)
def test_schemes_of_valkey_and_a_chosen_protocol_work(url, used):
    assert server_url(url) == used


@pytest.mark.parametrize(
    "url",
    [
        *("redis://u:secret@h?nonsense=1", "redis://u:secret@h?ssl_ca_certs=x"),
        *("http://u:secret@h", "u:secret@h", "redis://u:secret@h:port", "redis://[::1"),
        *("redis://u:se/secret@h", "redis://u:secret@h?db=x"),
    ],
)
def test_what_cannot_work_is_one_line_without_the_password(url):
    with pytest.raises(Invalid) as refused:
        server_url(url)

    assert refused.value.details["field"] == "url"
    assert "\n" not in refused.value.message
    assert "secret" not in refused.value.message
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://u:s@h:1/0?db=1", "h:1"),
        ("redis+cluster://u:s@a:1,b:2", "a:1,b:2"),
        ("unix:///run/redis.sock", "/run/redis.sock"),
    ],
)
def test_only_the_place_is_shown(url, shown):
    assert shown_address(url) == shown

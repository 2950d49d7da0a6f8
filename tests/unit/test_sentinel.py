"""
Which primary the Sentinels' answers make, and what a Sentinel URL says.
"""

import pytest
from redis.exceptions import AuthenticationError

from everbus.bus.connector import check_role
from everbus.bus.sentinel import (
    NoPrimary,
    SentinelAnswer,
    agreed_primary,
    find_primary,
    is_sentinel,
    sentinel_address,
    with_sentinel_login,
)
from everbus.bus.settings import BusSettings
from everbus.compose.bus_url import database_of, url_for_user
from everbus.compose.settings import SettingsError, load_settings, masked_url

URL = "redis+sentinel://ann:secret@one,two:26380,[::1]:26381/bus?db=3"


def test_a_url_names_sentinels_the_bus_and_the_servers_credentials():
    bus = sentinel_address(URL)

    assert is_sentinel(URL)
    assert bus.sentinels == ("one:26379", "two:26380", "[::1]:26381")
    assert bus.name == "bus"
    assert bus.server_url("ten:6379") == "redis://ann:secret@ten:6379?db=3"
    assert bus.sentinel_url("one:26379") == "redis://one:26379"
    assert database_of(URL) == 3
    assert "secret" not in repr(bus)


def test_sentinels_have_credentials_and_tls_of_their_own():
    url = "rediss+sentinel://ann:secret@one/bus?ssl_ca_certs=ca.pem"

    bus = sentinel_address(with_sentinel_login(url, "watch", "p@ss"))

    expected = "rediss://watch:p%40ss@one:26379?ssl_ca_certs=ca.pem"
    assert bus.sentinel_url(bus.sentinels[0]) == expected
    assert bus.server_url("two:1") == "rediss://ann:secret@two:1?ssl_ca_certs=ca.pem"


@pytest.mark.parametrize("url", ["redis+sentinel://one", "redis+sentinel:///bus"])
def test_a_url_without_a_name_or_a_sentinel_is_refused_with_its_form(url):
    with pytest.raises(SettingsError, match="host/NAME"):
        load_settings({"EVERBUS_REDIS_URL": url})


def test_the_settings_give_every_url_the_sentinels_password(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("of-sentinels\n")
    given = {
        "EVERBUS_REDIS_URL": URL,
        "EVERBUS_SENTINEL_USERNAME": "watch",
        "EVERBUS_SENTINEL_PASSWORD_FILE": str(secret),
    }

    url = load_settings(given).redis_url

    assert sentinel_address(url).login == ("watch", "of-sentinels")
    assert "of-sentinels" not in masked_url(url)
    assert "of-sentinels" not in url_for_user(url, "ada", "pw")


def test_a_mad_reads_the_sentinels_password_from_its_environment(monkeypatch, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("of-sentinels\n")
    monkeypatch.setenv("EVERBUS_SENTINEL_PASSWORD_FILE", str(secret))

    url = BusSettings().reachable(URL)

    assert sentinel_address(url).login == ("", "of-sentinels")
    assert BusSettings().reachable("redis://one") == "redis://one"


def test_the_newest_epoch_counts_once_a_majority_names_it():
    """
    Before that nobody is the primary: what the others name is about to be demoted.
    """
    old, new = SentinelAnswer(4, "a:1"), SentinelAnswer(5, "b:1")

    assert agreed_primary([new, new, old], 2) == "b:1"
    assert agreed_primary([old, old], 2) == "a:1"
    for answers in ([new, old, old], [new, old]):
        with pytest.raises(NoPrimary, match="2 must"):
            agreed_primary(answers, 2)


def test_a_primary_is_down_when_a_majority_says_so():
    up, down = SentinelAnswer(4, "a:1"), SentinelAnswer(4, "a:1", down=True)

    assert agreed_primary([up, up, down], 2) == "a:1"
    with pytest.raises(NoPrimary, match="down"):
        agreed_primary([down, up, down], 2)


def test_a_bus_that_a_sentinel_is_moving_has_no_primary():
    """
    Its writes would be confirmed by a replica and dropped by both.
    """
    still, moving = SentinelAnswer(4, "a:1"), SentinelAnswer(4, "a:1", moving=True)

    with pytest.raises(NoPrimary, match="move the bus away from a:1"):
        agreed_primary([still, still, moving], 2)


@pytest.mark.asyncio
async def test_sentinels_that_do_not_answer_make_no_primary():
    bus = sentinel_address("redis+sentinel://127.0.0.1:1,127.0.0.1:2/bus")

    with pytest.raises(NoPrimary, match="0 of 2 Sentinels"):
        await find_primary(bus)
    assert not issubclass(NoPrimary, AuthenticationError)


def test_only_a_server_that_calls_itself_primary_counts():
    check_role([b"server", b"redis", b"role", b"master"], "a:1")

    with pytest.raises(NoPrimary, match="a:1 is a replica now"):
        check_role([b"server", b"redis", b"role", b"replica"], "a:1")

"""
Plain text beyond this machine is refused, unless a setting names it.
"""

import pytest
from structlog.testing import capture_logs

from everbus.bus.bus_address import url_with_tls
from everbus.compose.exit_codes import USAGE, Failed
from everbus.compose.plaintext import check_plaintext, plain_connections
from everbus.compose.settings import SettingsError, load_settings

EVERYTHING = {
    "EVERBUS_REDIS_URL": "redis://bus:6379",
    "EVERBUS_MONGO_URL": "mongodb://one:27017,two:27017/?replicaSet=r",
    "EVERBUS_S3_ENDPOINT": "http://s3:8333",
    "EVERBUS_EDGE_HOST": "0.0.0.0",  # noqa: S104 - a case
}


def plain(**settings: str) -> list[str]:
    environ = {f"EVERBUS_{name.upper()}": value for name, value in settings.items()}

    return list(plain_connections(load_settings(environ), edge=True))


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, []),
        ({"redis_url": "redis://localhost"}, []),
        ({"redis_url": "redis://u:p@[::1]:6379/0"}, []),
        ({"redis_url": "redis://127.9.9.9:1"}, []),
        ({"redis_url": "unix:///run/redis.sock"}, []),
        ({"redis_url": "redis://10.0.0.1:6379"}, ["redis"]),
        ({"redis_url": "redis://127.0.0.1.evil.example"}, ["redis"]),
        ({"redis_url": "redis://localhost:1@evil.example"}, ["redis"]),
        ({"redis_url": "rediss://10.0.0.1:6379"}, []),
        ({"redis_url": "valkeys://10.0.0.1:6379"}, []),
        ({"redis_url": "valkey://10.0.0.1:6379"}, ["redis"]),
        ({"redis_url": "redis+cluster://127.0.0.1:1,10.0.0.1:1"}, ["redis"]),
        ({"redis_url": "rediss+cluster://10.0.0.1:1,10.0.0.2:1"}, []),
        ({"redis_url": "redis+sentinel://s1:1,s2:1/bus"}, ["redis"]),
        ({"mongo_url": "mongodb://localhost:1"}, []),
        ({"mongo_url": "mongodb://localhost:1,db:1"}, ["mongo"]),
        ({"mongo_url": "mongodb://db/?tls=true"}, []),
        ({"mongo_url": "mongodb+srv://db.example"}, []),
        ({"s3_endpoint": "http://s3:1"}, ["s3"]),
        ({"s3_endpoint": "http://127.0.0.1:1"}, []),
        ({"s3_endpoint": "https://s3.example"}, []),
        ({"edge_host": "0.0.0.0"}, ["edge"]),  # noqa: S104 - a case
        ({"edge_host": "::"}, ["edge"]),
        ({"edge_host": "::1"}, []),
    ],
)
def test_what_leaves_this_machine_in_plain_text_is_known(settings, found):
    assert plain(**settings) == found


def test_all_of_it_is_refused_with_a_remedy_each():
    with pytest.raises(Failed) as refused:
        check_plaintext(load_settings(EVERYTHING), edge=True)

    assert refused.value.exit_code == USAGE
    assert "redis and mongo and s3 and edge" in str(refused.value)
    assert "EVERBUS_PLAINTEXT=edge,mongo,redis,s3" in str(refused.value)


def test_only_what_is_named_may_be_plain():
    allowed = EVERYTHING | {"EVERBUS_PLAINTEXT": "redis, mongo,s3"}

    check_plaintext(load_settings(allowed))
    with pytest.raises(Failed, match="edge would"):
        check_plaintext(load_settings(allowed), edge=True)
    with pytest.raises(SettingsError, match="EVERBUS_PLAINTEXT"):
        load_settings({"EVERBUS_PLAINTEXT": "all"})


@pytest.mark.parametrize(
    ("name", "url", "option"),
    [
        ("redis", "rediss://bus?ssl_cert_reqs=none", "ssl_cert_reqs=none"),
        ("redis", "rediss://bus?db=1&ssl_check_hostname=false", "ssl_check_hostname"),
        ("mongo", "mongodb+srv://db/?tlsInsecure=true", "tlsInsecure=true"),
        ("mongo", "mongodb+srv://d/?tlsAllowInvalidCertificates=true", "Certificates"),
    ],
)
def test_a_server_that_nobody_verifies_is_told_loudly(name, url, option):
    with capture_logs() as logs:
        check_plaintext(load_settings({f"EVERBUS_{name.upper()}_URL": url}))

    [told] = [one for one in logs if one["event"] == "tls.unverified"]
    assert (told["log_level"], told["connection"]) == ("warning", name)
    assert option in told["option"]


def test_the_files_of_tls_travel_in_the_urls(tmp_path):
    ca = tmp_path / "ca.pem"
    ca.write_text("")
    settings = load_settings(
        {
            "EVERBUS_REDIS_URL": "rediss://bus",
            "EVERBUS_REDIS_CA": str(ca),
            "EVERBUS_MONGO_URL": "mongodb://db",
            "EVERBUS_MONGO_CA": str(ca),
        }
    )

    assert f"ssl_ca_certs={str(ca).replace('/', '%2F')}" in settings.redis_url
    assert settings.mongo_url.startswith("mongodb://db/?tls=true&tlsCAFile=")
    assert url_with_tls("redis://bus", str(ca)) == "redis://bus"
    mine = "rediss://bus?ssl_ca_certs=other"
    assert url_with_tls(mine, str(ca)) == mine


def test_a_missing_file_names_the_setting():
    with pytest.raises(SettingsError, match="EVERBUS_REDIS_CA"):
        load_settings({"EVERBUS_REDIS_CA": "/nowhere/ca.pem"})

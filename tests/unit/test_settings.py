"""
Settings: what is accepted, what is refused, and in which words.
"""

import pytest

from everbus.compose.settings import SettingsError, load_settings, masked_url

SECRET = "correct-horse-battery-staple-0123456789"


def refusal(**environ):
    with pytest.raises(SettingsError) as refused:
        load_settings({f"EVERBUS_{name}": value for name, value in environ.items()})
    return str(refused.value)


def test_nothing_needs_to_be_set():
    settings = load_settings({})

    assert settings.redis_url == "redis://127.0.0.1:6379"
    assert settings.partitions == 16
    assert settings.log_format == "auto"
    assert not settings.development


def test_the_given_environment_is_the_only_source(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text("EVERBUS_PARTITIONS=4\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVERBUS_PARTITIONS", "8")

    assert load_settings({}).partitions == 16


def test_an_empty_variable_counts_as_not_set():
    assert load_settings({"EVERBUS_HEALTH_PORT": ""}).health_port == 0


def test_other_programs_variables_are_none_of_ours():
    assert load_settings({"REDIS_URL": "x", "everbus_x": "1"}) == load_settings({})


def test_settings_do_not_change():
    settings = load_settings({})

    with pytest.raises(ValueError, match="frozen"):
        settings.partitions = 4


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("REDIS_ULR", "EVERBUS_REDIS_URL"),
        ("JWT_SECRETFILE", "EVERBUS_JWT_SECRET_FILE"),
        ("PARTITION", "EVERBUS_PARTITIONS"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, nearest):
    said = refusal(**{name: SECRET})

    assert f"EVERBUS_{name} is no setting" in said
    assert f"did you mean {nearest}?" in said
    assert SECRET not in said


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("PARTITIONS", "0", "EVERBUS_PARTITIONS=0: wanted greater than or equal to 1"),
        ("PARTITIONS", "1025", "less than or equal to 1024"),
        ("PARTITIONS", "many", "EVERBUS_PARTITIONS=many: wanted integer"),
        ("LEDGER_TTL_S", "599", "greater than or equal to 600"),
        ("ARCHIVE_EVERY_S", "inf", "finite number"),
        ("PRICE_HOT_GIB_MONTH", "nan", "EVERBUS_PRICE_HOT_GIB_MONTH=nan: wanted"),
        ("LOG_FORMAT", "xml", "'auto', 'console' or 'json'"),
        ("JWT_ALGORITHM", "none", "'HS256'"),
        ("DEVELOPMENT", "perhaps", "EVERBUS_DEVELOPMENT=perhaps: wanted boolean"),
        ("REDIS_URL", "127.0.0.1:6379", "one of redis://"),
        ("MONGO_URL", "http://x", "a URL of the scheme mongodb"),
        ("S3_BUCKET", "A", "match pattern"),
        ("REPLICA", "a b", "match pattern"),
    ],
)
def test_a_bad_value_is_refused_with_what_was_wanted(name, value, wanted):
    said = refusal(**{name: value})

    assert said.startswith(f"EVERBUS_{name}")
    assert wanted in said


def test_every_bad_value_is_told_at_once():
    said = refusal(PARTITIONS="0", LANE_TTL_MS="1")

    assert len(said.splitlines()) == 2


@pytest.mark.parametrize("keys", ["{", "7", "[7]", '[{"kid": "a", "key": "%s"}]'])
def test_a_bad_list_of_keys_is_refused_without_showing_it(keys):
    said = refusal(JWT_KEYS=keys.replace("%s", SECRET))

    assert 'wanted a JSON list of {"kid", "algorithm", "key"}' in said
    assert SECRET not in said


def test_a_list_of_keys_is_accepted():
    keys = '[{"kid": "a", "algorithm": "HS256", "key": "k"}]'

    settings = load_settings({"EVERBUS_JWT_KEYS": keys})

    assert settings.jwt_keys.get_secret_value() == keys


def test_a_fail_point_is_refused_outside_development():
    assert "EVERBUS_DEVELOPMENT=true" in refusal(FAIL_POINT="after_read:1")
    environ = {"EVERBUS_FAIL_POINT": "after_read:1", "EVERBUS_DEVELOPMENT": "true"}
    assert load_settings(environ).fail_point == "after_read:1"


def test_a_secret_may_come_from_a_file(tmp_path):
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")

    settings = load_settings({"EVERBUS_JWT_SECRET_FILE": str(file)})

    assert settings.jwt_secret.get_secret_value() == SECRET


def test_a_secret_given_twice_is_refused(tmp_path):
    said = refusal(TOKEN="a", TOKEN_FILE=str(tmp_path))

    assert "EVERBUS_TOKEN and EVERBUS_TOKEN_FILE are both set" in said


def test_an_unreadable_file_is_refused_by_name(tmp_path):
    said = refusal(TOKEN_FILE=str(tmp_path / "none"))

    assert f"EVERBUS_TOKEN_FILE={tmp_path / 'none'}: No such file" in said


def test_secrets_are_never_shown():
    """
    Neither by repr, nor by a refusal that quotes what was given.
    """
    environ = {
        "EVERBUS_REDIS_URL": f"redis://:{SECRET}@h",
        "EVERBUS_MONGO_URL": f"mongodb://u:{SECRET}@h",
        "EVERBUS_MAD_URL": f"redis://{{mad}}:{SECRET}@h",
        "EVERBUS_JWT_SECRET": SECRET,
        "EVERBUS_S3_SECRET_KEY": SECRET,
        "EVERBUS_TOKEN": SECRET,
    }
    assert SECRET not in repr(load_settings(environ))

    broken = {name.removeprefix("EVERBUS_"): SECRET for name in environ}
    assert SECRET not in refusal(**broken, PARTITIONS="0")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis://:pw@h", "redis://:***@h"),
        ("redis://u:p@s:w/d@h:1/0", "redis://u:***@h:1/0"),
        ("redis://h?password=pw&db=1", "redis://h?password=***&db=1"),
        ("mongodb://u:pw@a:1,b:2/?w=majority", "mongodb://u:***@a:1,b:2/?w=majority"),
        ("https://h/x?access_token=pw", "https://h/x?access_token=***"),
        ("lost redis://:pw@h, again", "lost redis://:***@h, again"),
    ],
)
def test_a_shown_url_hides_passwords(url, shown):
    assert masked_url(url) == shown

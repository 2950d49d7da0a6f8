"""
The ACL rules as text: whose keys they name, and whom they can be made for.
"""

import re
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everbus.bus import keys
from everbus.bus.errors import Invalid
from everbus.compose.acl import RESERVED, ROLES, mad_rules, role_rules
from everbus.compose.bus_url import database_of, url_for_user
from everbus.compose.mad_users import User, is_user_of

GLOB = "*?[]^\\"
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True).filter(
    lambda name: name not in RESERVED
)


def patterns(rules, sign):
    """
    The patterns in *rules* behind a mark such as `~` or `&`.
    """
    words = " ".join(rules).replace("(", " ").replace(")", " ").split()
    return [w.partition(sign)[2] for w in words if re.match(rf"(%\w+)?{sign}", w)]


@given(NAMES)
def test_no_name_of_a_mad_widens_its_rules(name):
    """
    A name has nothing that the server would take for a pattern, a space or a rule.
    """
    rules = mad_rules(name)

    assert not set(name) & set(GLOB + " ()~&%+@")
    assert patterns(rules, "~") == [
        "eb:config",
        *(f"eb:{{{one}}}:in:{name}" for one in (*range(16), "mads")),
        f"eb:{{*}}:reply:{name}:*",
    ]
    assert patterns(rules, "&") == [f"eb:wake:{name}:*", f"eb:token:{name}"]


@given(NAMES, NAMES, st.one_of(st.integers(0, 1023).map(str), st.just("mads")))
def test_no_pattern_of_a_mad_fits_a_key_of_another(name, other, lane):
    if name == other:
        return
    fits = [*patterns(mad_rules(name), "~"), *patterns(mad_rules(name), "&")]
    theirs = [
        keys.ingress(lane, other),
        keys.reply(0, other, f"{name}.0.1"),
        keys.wake(other, name),
        keys.token(other),
        f"eb:{{0}}:session:{name}",
        f"eb:{{0}}:ledger:{name}:x",
        f"eb:{{mads}}:lease:{name}:i",
        keys.MADS,
        keys.NEWS,
    ]

    # fnmatch knows the same wildcards as the server, and no braces either.
    assert [key for key in theirs for p in fits if fnmatchcase(key, p)] == []


@pytest.mark.parametrize("mark", [*GLOB, " ", ":", "{", "\n", "", "é", "(", "+", "~"])
def test_a_name_with_a_mark_of_patterns_has_no_rules(mark):
    with pytest.raises(Invalid):
        mad_rules(f"a{mark}" if mark else "")


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_reserved_names_have_no_rules_of_a_mad(name):
    with pytest.raises(Invalid, match="no name for a MAD"):
        mad_rules(name)


def test_rules_begin_with_nothing():
    for rules in (mad_rules("ada"), *map(role_rules, ROLES)):
        assert rules[:4] == ("resetkeys", "resetchannels", "-@all", "clearselectors")


def test_gateway_processes_may_not_touch_the_server_or_other_keys():
    for rules in (role_rules("manager"), role_rules("archiver")):
        assert patterns(rules, "~") == ["eb:*"]
        assert rules.index("-@dangerous") > rules.index("+@write")
        assert "+@all" not in rules
        assert not [rule for rule in rules if "config|set" in rule]


def test_a_manager_alone_may_set_users_to_disable_a_mad_above_its_quota():
    named = {
        role: {r for r in role_rules(role) if "acl|" in r or "client|" in r}
        for role in ROLES
    }

    assert named["manager"] == {
        *("+acl|getuser", "+acl|setuser", "+acl|users"),
        *("+client|kill", "+client|list"),
    }
    assert named["archiver"] == set()
    assert named["edge"] == {"+client|setname"}


def test_tokens_are_heard_by_managers_only():
    for role in ROLES:
        channels = patterns(role_rules(role), "&")
        hears = any(fnmatchcase(keys.token("ada"), channel) for channel in channels)
        assert hears is (role == "manager")


def test_the_edge_may_do_what_a_mad_may_but_show_a_token():
    theirs = [rule.replace("ada", "edge") for rule in mad_rules("ada", database=1)]
    edges = role_rules("edge", database=1)

    assert [rule for rule in theirs if rule not in edges] == [
        "(+publish resetchannels &eb:token:edge)"
    ]
    # Whether lanes are served, which its readiness tells of.
    assert set(edges) - set(theirs) == {
        "(+exists ~eb:{*}:owner)",
        "(+hget +hgetall %R~eb:revoked)",
    }


def test_a_users_channels_tell_whose_it_is():
    on = frozenset({"on"})

    assert is_user_of(User(on, frozenset({"&eb:wake:ada:*"})), "ada")
    assert not is_user_of(User(on, frozenset({"&eb:wake:bob:*"})), "ada")
    assert not is_user_of(User(on, frozenset({"&*"})), "ada")
    assert not is_user_of(User(on, frozenset({"&eb:wake:ada:*", "&x"})), "ada")
    assert not is_user_of(User(on, frozenset()), "ada")


@pytest.mark.parametrize(
    ("url", "theirs", "nobodys", "database"),
    [
        ("redis://h:1", "redis://ada:pw-_@h:1", "redis://h:1", 0),
        ("redis://u:s%40@h:1/2", "redis://ada:pw-_@h:1/2", "redis://h:1/2", 2),
        (
            "rediss://:s@h:1/0?ssl_cert_reqs=none&password=x&client_name=y",
            "rediss://ada:pw-_@h:1/0?ssl_cert_reqs=none",
            "rediss://h:1/0?ssl_cert_reqs=none",
            0,
        ),
        ("redis://[::1]:7/1", "redis://ada:pw-_@[::1]:7/1", "redis://[::1]:7/1", 1),
        (
            "unix://u:s@/run/r.sock?db=3",
            "unix://ada:pw-_@/run/r.sock?db=3",
            "unix:///run/r.sock?db=3",
            3,
        ),
    ],
)
def test_a_url_leads_to_the_same_server_as_somebody_else(
    url, theirs, nobodys, database
):
    assert url_for_user(url, "ada", "pw-_") == theirs
    assert url_for_user(url) == nobodys
    assert database_of(url) == database_of(theirs) == database


def test_only_beside_the_first_database_may_a_mad_choose_one():
    assert "+select" not in mad_rules("ada")
    assert "+select" in mad_rules("ada", database=1)

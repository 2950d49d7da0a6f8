"""
Indicators: what each says of made-up readings, at its thresholds.
"""

import re

import pytest
from prometheus_client import REGISTRY

from everbus.bus.messages import pack
from everbus.gateway.health import verdicts as health
from everbus.gateway.health.indicators import INDICATORS
from everbus.gateway.health.readings import LaneReading, Readings
from everbus.gateway.health.server_report import ServerReport, server_of, weaknesses
from everbus.gateway.health.status import (
    FORGET_MS,
    MAX_STATUSES,
    STALE_MS,
    RecentCounts,
    Status,
    outdated,
    quantile,
    skew_ms,
    statuses_in,
)
from everbus.gateway.health.verdicts import (
    GRADES,
    Indicator,
    Measurement,
    examine,
    export,
)
from everbus.gateway.store.mad_access import DisabledMad
from tests.unit.test_failures import section

NOW_MS = 1_800_000_000_000
INFO = {
    "redis_version": "7.2.4",
    "valkey_version": "8.1.8",
    "aof_enabled": "1",
    "aof_last_write_status": "ok",
    "maxmemory_policy": "noeviction",
    "used_memory": "100",
    "maxmemory": "1000",
    "evicted_keys": "0",
    "connected_slaves": "0",
}
SETTINGS = {
    "appendfsync": "always",
    "notify-keyspace-events": "Ex",
    "min-replicas-to-write": "0",
}


def a_lane(name="0", **fields):
    return LaneReading(name, **{"owner": "7:m1/a"} | fields)


def a_server(info=None, settings=None, *, forbidden=False, **more):
    known = INFO | more if info is None else info
    return ServerReport(known, SETTINGS if settings is None else settings, forbidden)


def a_status(name="m1", **fields):
    known = {"role": "manager", "at_ms": NOW_MS, "started_ms": NOW_MS - 60_000}
    return Status(name=name, **known | fields)


def readings(**fields):
    known = {
        "now_ms": NOW_MS,
        "servers": (a_server(),),
        "partitions": 2,
        "replicas": ("m1", "m2"),
        "statuses": (a_status(),),
        "lanes": (a_lane(), a_lane("1")),
        "archiver": "9:a1/x",
        "streams": 4,
        "looked_at": 4,
        "ping_ms": 3.0,
    }
    return Readings(**known | fields)


def recent(**counts):
    return {"statuses": (a_status(recent=counts),)}


def failures(**totals):
    told = {f"failures.{kind}": n for kind, n in totals.items()}
    return {"statuses": (a_status(totals=told),)}


def gauges(**values):
    return {"statuses": (a_status(gauges=values),)}


def lane(**fields):
    return {"lanes": (a_lane(), a_lane("1", **fields))}


def server(**more):
    return {"servers": (a_server(**more),)}


def settings(**changes):
    told = SETTINGS | {name.replace("_", "-"): v for name, v in changes.items()}
    return {"servers": (a_server(settings=told),)}


def followers(*lags, state="online", **changes):
    told = {
        f"slave{n}": f"ip=::1,port=7000,state={state},offset=1,lag={lag}"
        for n, lag in enumerate(lags)
    }
    chosen = SETTINGS | {name.replace("_", "-"): v for name, v in changes.items()}
    info = INFO | told | {"connected_slaves": str(len(lags))}
    return {"servers": (ServerReport(info, chosen),)}


def replica(**fields):
    known = {"address": "r:1", "is_primary": False}
    return a_server()._replace(**known | fields)


def with_replicas(*some):
    primary = a_server()._replace(address="p:1", users=frozenset({"default", "ann"}))
    return {"servers": (primary, *some)}


def prioritised(*priorities):
    settings = [SETTINGS | {"replica-priority": str(one)} for one in priorities]
    return with_replicas(*(replica(settings=one) for one in settings))


ANN_IS_MISSING = frozenset({"default"})


def test_a_healthy_bus_passes_everywhere():
    found = examine(readings(), INDICATORS)

    assert [one.name for one in found if one.verdict != "pass"] == []
    assert all(one.remedy == "" for one in found)


A_FLOOD = DisabledMad(
    mad="evil", bound="ingress_max_bytes", value=2, limit=1, at_ms=0, off=True
)
CASES = [
    ("managers", "warn", {"replicas": ("m1",)}),
    ("managers", "fail", {"replicas": ()}),
    ("lanes_without_owner", "fail", lane(owner="")),
    ("pending_age", "pass", lane(pending_s=4.9)),
    ("pending_age", "warn", lane(pending_s=5.0)),
    ("pending_age", "fail", lane(pending_s=30.0)),
    ("lag", "pass", lane(unread_s=1.9)),
    ("lag", "warn", lane(unread_s=2.0)),
    ("lag", "fail", lane(unread_s=10.0)),
    ("ingress_seen", "warn", {"streams": 9_000, "looked_at": 4_000}),
    ("reply_wait", "pass", {"ping_ms": 249.0}),
    ("reply_wait", "warn", {"ping_ms": 250.0}),
    ("reply_wait", "fail", {"ping_ms": 3_000.0}),
    ("commit_p99", "pass", recent(commit_p99_ms=49.0)),
    ("commit_p99", "warn", recent(commit_p99_ms=50.0)),
    ("commit_p99", "fail", recent(commit_p99_ms=500.0)),
    ("parked", "warn", gauges(parked=500)),
    ("parked", "fail", gauges(parked=5_000)),
    ("silent_processes", "pass", {"statuses": (a_status(at_ms=NOW_MS - STALE_MS),)}),
    ("silent_processes", "warn", {"statuses": (a_status(at_ms=NOW_MS - 21_000),)}),
    ("silent_processes", "pass", {"statuses": (a_status(at_ms=NOW_MS - 600_000),)}),
    ("replica_crashes", "warn", recent(**{"failures.replica_crashed": 1})),
    ("replica_crashes", "fail", recent(**{"failures.replica_crashed": 5})),
    ("takeovers", "pass", recent(takeovers=9)),
    ("takeovers", "warn", recent(takeovers=10)),
    ("takeovers", "fail", recent(takeovers=40)),
    ("superseded", "warn", recent(superseded=1)),
    ("superseded", "fail", recent(superseded=20)),
    ("disturbed", "pass", recent(disturbed=9)),
    ("disturbed", "warn", recent(disturbed=10)),
    ("disturbed", "fail", recent(disturbed=200)),
    ("lost_mads", "warn", recent(lost_mads=1)),
    ("lost_mads", "fail", recent(lost_mads=50)),
    ("lease_overdue", "pass", {"overdue_s": 2.0}),
    ("lease_overdue", "warn", {"overdue_s": 3.0}),
    ("lease_overdue", "fail", {"overdue_s": 15.0}),
    ("dead_letters", "warn", lane(dead=1, newest_dead_ms=NOW_MS - 5_000)),
    ("dead_letters_room", "warn dead_letters", lane(dead=5_000)),
    ("dead_letters_room", "fail dead_letters", lane(dead=9_000)),
    ("undecodable", "fail", failures(undecodable_records=1)),
    ("lost_entries", "fail", failures(lost_entries=1)),
    ("publishers", "warn", lane(publishers=10_000)),
    ("outbox", "pass", lane(backlog=24_999)),
    ("outbox", "warn", lane(backlog=25_000)),
    ("outbox", "fail", lane(backlog=45_000)),
    ("outbox_age", "warn", lane(outbox_s=30.0)),
    ("outbox_age", "fail", lane(outbox_s=300.0)),
    ("archiver", "warn", {"archiver": ""}),
    ("archiver", "fail", {"archiver": ""} | lane(backlog=1)),
    ("drain_failing", "warn", gauges(drain_failing_s=5.0)),
    ("drain_failing", "fail", gauges(drain_failing_s=60.0)),
    ("warm_tier", "pass", gauges(**{"breaker.warm": 0})),
    ("warm_tier", "warn", gauges(**{"breaker.warm": 1})),
    ("warm_tier", "fail", gauges(**{"breaker.warm": 2})),
    ("cold_tier", "fail", gauges(**{"breaker.cold": 2})),
    ("lost_writes", "warn", recent(**{"failures.hot_tier_went_back": 1})),
    ("lost_writes", "warn", recent(**{"failures.hot_tier_emptied": 1})),
    ("doubtful", "warn", recent(doubtful=1)),
    ("stale_side", "fail", recent(stale_side=1)),
    ("diverged", "fail", failures(diverged_records=1)),
    ("corrupted", "fail", failures(corrupted_state=1)),
    ("corrupted", "fail", failures(refused_records=1)),
    ("bus_nodes", "pass", with_replicas(replica())),
    ("bus_nodes", "warn", with_replicas(replica(trouble="no connection"))),
    ("bus_nodes", "fail", {"servers": (a_server()._replace(trouble="refused"),)}),
    ("bus_users", "pass", with_replicas(replica(users=frozenset()))),
    ("bus_users", "warn", with_replicas(replica(users=ANN_IS_MISSING))),
    (
        "bus_users",
        "fail",
        with_replicas(replica(users=ANN_IS_MISSING, is_primary=True)),
    ),
    ("bus_memory", "pass", server(used_memory="749")),
    ("bus_memory", "warn", server(used_memory="750")),
    ("bus_memory", "fail", server(used_memory="900")),
    ("bus_memory", "fail", server(maxmemory="0", total_system_memory="101")),
    ("evictions", "fail", server(evicted_keys="1")),
    ("eviction_policy", "fail", server(maxmemory_policy="allkeys-lru")),
    ("persistence", "fail", server(aof_enabled="0")),
    ("persistence", "fail", server(aof_last_write_status="err")),
    ("persistence", "warn", server(aof_last_bgrewrite_status="err")),
    ("fsync", "warn", settings(appendfsync="everysec")),
    ("redis_replicas", "pass", followers(1, min_replicas_to_write="1")),
    ("redis_replicas", "warn", followers(5, min_replicas_to_write="1")),
    ("redis_replicas", "fail", followers(1, 30, min_replicas_to_write="1")),
    (
        "redis_replicas",
        "fail",
        followers(0, state="wait_bgsave", min_replicas_to_write="1"),
    ),
    ("replica_priority", "pass", prioritised(100, 100)),
    ("replica_priority", "warn", prioritised(100, 10)),
    ("min_replicas", "warn", followers(1)),
    ("clock_skew", "pass", {"skew_ms": -499}),
    ("clock_skew", "warn", {"skew_ms": -500}),
    ("clock_skew", "fail", {"statuses": (a_status(skew_ms=5_000),)}),
    ("clock_skew", "pass", with_replicas(replica(skew_ms=499))),
    ("clock_skew", "warn", with_replicas(replica(skew_ms=500))),
    ("notifications", "warn", settings(notify_keyspace_events="")),
    ("notifications", "warn", settings(notify_keyspace_events="x")),
    ("notifications", "pass", settings(notify_keyspace_events="AK")),
    ("client_bounds", "warn", settings(proto_max_bulk_len="536870912")),
    ("client_bounds", "warn", settings(proto_max_bulk_len="1048576")),
    ("client_bounds", "warn", settings(maxmemory_clients="0")),
    ("client_bounds", "warn", settings(timeout="0")),
    (
        "client_bounds",
        "pass",
        settings(proto_max_bulk_len="33554432", maxmemory_clients="1", timeout="600"),
    ),
    ("disabled_mads", "warn", {"disabled": (A_FLOOD,)}),
    ("quota_rights", "warn", {"unenforced": "NOPERM"}),
    ("bus_version", "fail", server(valkey_version="8.1.3")),
    ("bus_version", "pass", server(valkey_version="9.0.0")),
]


@pytest.mark.parametrize(("name", "verdict", "changed"), CASES)
def test_an_indicator_turns_at_its_threshold_and_no_other_does(name, verdict, changed):
    """
    Its remedy comes with it. `verdict` names who turns along, if anybody has to.
    """
    verdict, _, along = verdict.partition(" ")

    found = {one.name: one for one in examine(readings(**changed), INDICATORS)}

    assert found[name].verdict == verdict
    assert (found[name].remedy == "") == (verdict == "pass")
    turned = {one.name for one in found.values() if one.verdict != "pass"}
    assert turned - {name, *along.split()} == set()


def test_the_worst_server_counts_and_is_named():
    changed = {
        "bus_memory": a_server(used_memory="950"),
        "evictions": a_server(evicted_keys="2"),
        "eviction_policy": a_server(maxmemory_policy="allkeys-lru"),
        "persistence": a_server(aof_enabled="0"),
        "redis_replicas": a_server(master_link_status="down"),
    }
    for name, other in changed.items():
        broken = other._replace(address="b:1", is_primary=False)

        found = {
            one.name: one
            for one in examine(readings(**with_replicas(replica(), broken)), INDICATORS)
        }

        assert found[name].verdict == "fail"
        assert found[name].shown.endswith(" at b:1") or name == "redis_replicas"
        assert {n for n, one in found.items() if one.verdict != "pass"} == {name}


def test_missing_users_are_told_with_the_servers_that_lack_them():
    some = with_replicas(replica(users=ANN_IS_MISSING))

    found = {one.name: one for one in examine(readings(**some), INDICATORS)}

    assert found["bus_users"].shown == "ann is not on r:1"
    assert "everbus mads add" in found["bus_users"].remedy


def test_every_indicator_that_can_turn_is_tried():
    turned = {name for name, verdict, _ in CASES if verdict != "pass"}

    assert turned == {one.name for one in INDICATORS} - {"bus_config"}
    assert len(INDICATORS) >= 15
    assert len({one.name for one in INDICATORS}) == len(INDICATORS)


@pytest.mark.parametrize(
    ("info", "verdict"),
    [
        ({"redis_version": "8.2.2"}, "pass"),
        ({"redis_version": "8.2.1"}, "fail"),
        ({"redis_version": "7.2.10"}, "fail"),
        ({"redis_version": "7.2.11"}, "pass"),
        ({"redis_version": "6.2.20"}, "pass"),
        ({"redis_version": "7.0.15"}, "warn"),
        ({"redis_version": "8.4.0"}, "pass"),
        ({"redis_version": "7.2.4", "valkey_version": "8.0.5"}, "fail"),
        ({"redis_version": "7.2.4", "valkey_version": "9.0.1-rc1"}, "pass"),
    ],
)
def test_a_version_is_judged_by_its_own_line(info, verdict):
    """
    7.0 never got a fix of its own: only its distributor can tell.
    """
    known = {name: v for name, v in INFO.items() if name != "valkey_version"}
    told = readings(servers=(a_server(info=known | info),))

    [found] = [one for one in examine(told, INDICATORS) if one.name == "bus_version"]
    assert found.verdict == verdict


def test_a_bus_that_keeps_its_configuration_to_itself_is_told_of_and_no_more():
    told = readings(servers=(a_server(settings={}, forbidden=True),))

    found = examine(told, INDICATORS)

    assert [o.name for o in found if o.verdict != "pass"] == ["bus_config"]
    assert {o.name for o in found if o.shown == "not known"} == {
        "bus_users",
        "client_bounds",
        "fsync",
        "notifications",
    }


def test_without_info_nothing_is_held_against_the_bus():
    replies = [PermissionError("no INFO"), *[PermissionError("no CONFIG")] * 7]
    server = server_of(replies)

    found = examine(readings(servers=(server,)), INDICATORS)

    assert [o.name for o in found if o.verdict == "fail"] == []
    assert [one.setting for one in weaknesses(server)] == ["INFO"]


def test_where_scripts_are_forbidden_ages_are_not_known():
    found = examine(readings(looked_at=0), INDICATORS)

    told = {o.name for o in found if o.shown == "not known: scripts are forbidden"}
    assert told == {"pending_age", "lag", "outbox_age"}


def test_the_readme_has_the_table_of_indicators():
    rows = [
        f"| `{one.name}` | {one.unit or 'count'} | {one.threshold} | {one.means} |"
        for one in INDICATORS
    ]

    assert rows == re.findall(r"^\| `.*\|$", section("Health"), re.MULTILINE)


def test_verdicts_and_values_are_exported():
    export(examine(readings(replicas=("m1",)), INDICATORS))

    def told(name, indicator):
        return REGISTRY.get_sample_value(name, {"indicator": indicator})

    assert told("everbus_health", "managers") == GRADES["warn"]
    assert told("everbus_health", "lag") == GRADES["pass"]
    assert told("everbus_health_value", "managers") == 1
    # What is not known has a verdict and no value.
    assert told("everbus_health", "redis_replicas") == GRADES["pass"]
    assert told("everbus_health_value", "redis_replicas") is None


def test_what_has_become_worse_is_logged_once(monkeypatch):
    said = []

    class Log:
        def warning(self, event, **fields):
            said.append((event, fields["indicator"], fields["verdict"]))

    monkeypatch.setattr(health, "log", Log())
    indicator = Indicator(
        "x", "s", "it", "mend it", lambda r: Measurement(r.skew_ms), warn=1, fail=5
    )
    examiner = health.Examiner("redis://x", "m1", [indicator], outbox_limit=1)

    for value in (0, 1, 1, 5, 5, 0, 1):
        examiner._log(examine(readings(skew_ms=value), [indicator]))

    assert [verdict for _, _, verdict in said] == ["warn", "fail", "warn"]


class TestStatus:
    def test_what_another_version_wrote_is_left_out(self):
        good = a_status()
        strange = [b"\xc1", b"", pack({"role": "manager"}), pack([1])]

        assert statuses_in([*strange, pack(good)]) == [good]

    def test_those_silent_for_a_day_and_beyond_the_bound_are_forgotten(self):
        old = a_status("old", at_ms=NOW_MS - FORGET_MS - 1)
        many = [
            a_status(f"m{n}", at_ms=NOW_MS - 30_000 - n)
            for n in range(MAX_STATUSES + 2)
        ]

        assert outdated([old, a_status()], NOW_MS) == ["manager:old"]
        found = outdated([a_status("new"), *many], NOW_MS)
        assert found == [
            f"manager:m{n}" for n in range(MAX_STATUSES - 1, MAX_STATUSES + 2)
        ]

    def test_those_that_live_are_never_forgotten(self):
        many = [a_status(f"m{n}") for n in range(MAX_STATUSES + 10)]

        assert outdated(many, NOW_MS) == []

    def test_recent_is_what_came_within_five_minutes(self):
        now = [0.0]
        recent = RecentCounts(clock=lambda: now[0])
        counts = []
        for half_minute in range(14):
            now[0] = half_minute * 30.0
            counts.append(recent.of({"lost": float(half_minute)}, {})["lost"])

        assert counts == [*range(11), 10, 10, 10]

    def test_a_quantile_is_taken_from_what_came_since(self):
        inf = float("inf")
        before = {0.01: 100.0, 0.1: 100.0, 1.0: 100.0, inf: 100.0}
        after = {0.01: 100.0, 0.1: 200.0, 1.0: 200.0, inf: 200.0}

        assert quantile(after, before, 0.99) == pytest.approx(0.0991)
        assert quantile(after, after, 0.99) is None
        assert quantile({}, {}, 0.99) is None
        beyond = {0.01: 0.0, inf: 1.0}
        assert quantile(beyond, {}, 0.99) == 0.01

    @pytest.mark.parametrize(
        ("asked", "answered", "server_ms", "skew"),
        [
            (10.0, 10.2, 10_100, 0),
            (10.0, 10.2, 9_000, 1_000),
            (10.0, 10.2, 12_200, -2_000),
        ],
    )
    def test_skew_leaves_out_what_the_way_accounts_for(
        self, asked, answered, server_ms, skew
    ):
        assert skew_ms(asked, answered, server_ms) == skew

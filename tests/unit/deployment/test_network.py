"""
The walls: who may reach whom in the cluster, by our NetworkPolicies.
"""

import pytest

from tests.unit.deployment.manifests import built, of_kind
from tests.unit.deployment.reachability import Network, Pod

OURS = "app.kubernetes.io/name"
PART = "app.kubernetes.io/component"
BUS, MONGODB, S3, HEALTH, HTTP = 6379, 27017, 8333, 8081, 8080

PODS = {
    "manager": Pod("everbus", {OURS: "everbus", PART: "manager"}, {"health": HEALTH}),
    "archiver": Pod("everbus", {OURS: "everbus", PART: "archiver"}, {"health": HEALTH}),
    "edge": Pod(
        "everbus", {OURS: "everbus", PART: "edge"}, {"http": HTTP, "health": HEALTH}
    ),
    "bus": Pod("everbus", {"everbus-tier": "hot"}),
    "mongodb": Pod("everbus", {"everbus-tier": "warm"}),
    "s3": Pod("everbus", {"everbus-tier": "cold"}),
    "mad": Pod("everbus-mads", {"app": "mad"}),
    # Claims what it is not: labels of pods open nothing from another namespace.
    "liar": Pod("everbus-mads", {OURS: "everbus", PART: "manager"}),
    "ingress": Pod("ingress", {}),
    "prometheus": Pod("monitoring", {}),
    "stranger": Pod("default", {OURS: "everbus", PART: "manager"}),
}
PORTS = {
    "bus": BUS,
    "mongodb": MONGODB,
    "s3": S3,
    "manager": HEALTH,
    "archiver": HEALTH,
    "edge": HTTP,
}
PROBES = {"manager": HEALTH, "archiver": HEALTH, "edge": HEALTH}
ALLOWED = {
    "manager": {"bus", "mongodb", "s3"},
    "archiver": {"bus", "mongodb", "s3"},
    "edge": {"bus", "mongodb", "s3"},
    "bus": {"bus"},
    "mongodb": {"mongodb"},
    "s3": {"s3"},
    "mad": {"bus"},
    "liar": {"bus"},
    "ingress": {"edge"},
    "prometheus": {"manager", "archiver"},
    "stranger": set(),
}


@pytest.fixture(params=("everbus", "overlays/development", "overlays/production"))
def network(request) -> Network:
    objects = [*built(request.param), *built("mads")]
    namespaces = {
        m["metadata"]["name"]: m["metadata"]["labels"]
        for m in of_kind(objects, "Namespace")
    }
    others = {
        "ingress": {"everbus-ingress": "true"},
        "monitoring": {"everbus-monitoring": "true"},
        "default": {},
        "kube-system": {},
    }
    policies = list(of_kind(objects, "NetworkPolicy"))

    return Network(policies, namespaces | others)


@pytest.mark.parametrize("source", sorted(PODS))
def test_a_pod_reaches_what_it_needs_and_nothing_else(network, source):
    reached = {
        target
        for target, port in PORTS.items()
        if network.reaches(PODS[source], PODS[target], port)
    }

    assert reached == ALLOWED[source]


def test_only_prometheus_reaches_the_health_ports(network):
    for target, port in PROBES.items():
        reaching = {
            name
            for name, pod in PODS.items()
            if network.reaches(pod, PODS[target], port)
        }
        assert reaching == {"prometheus"}


def test_a_port_that_nobody_names_is_closed_to_all(network):
    for source in PODS.values():
        for target in ("manager", "archiver", "edge", "bus", "mongodb"):
            assert not network.reaches(source, PODS[target], 22)


def test_a_mad_reaches_no_other_mad_and_no_world_outside(network):
    mad = PODS["mad"]

    assert not network.reaches(mad, PODS["liar"], 443)
    assert not network.reaches(mad, Pod("default", {}), 443)


@pytest.mark.parametrize("side", ["everbus", "everbus-mads"])
def test_each_side_of_the_wall_before_a_mad_holds_alone(network, side):
    """
    A MAD in a namespace without policies meets ours; a MAD of ours meets its own.
    """
    policies = [p for p in network.policies if p["metadata"]["namespace"] == side]
    alone = network._replace(policies=policies)
    mad = PODS["mad"]

    reached = {
        (name, port)
        for name, pod in PODS.items()
        for port in (*PORTS.values(), 22)
        if pod.namespace == "everbus" and alone.reaches(mad, pod, port)
    }

    assert reached == {("bus", BUS)}


def test_everybody_who_is_shut_in_may_still_resolve_names(network):
    names = Pod("kube-system", {"k8s-app": "kube-dns"})
    for name in ("manager", "archiver", "edge", "bus", "mad"):
        assert network.reaches(PODS[name], names, 53)


def test_without_policies_all_would_be_open(network):
    """
    The model itself: what the tests above see is the policies' doing.
    """
    open_network = network._replace(policies=[])

    assert open_network.reaches(PODS["mad"], PODS["mongodb"], MONGODB)

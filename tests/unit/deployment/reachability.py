"""
Who reaches whom, by NetworkPolicies: what a cluster's network makes of them.

As the Kubernetes documentation has it: a pod that no policy selects for a direction is
open in it; one that is selected is open for what any of these policies names; a
connection needs the way out of the one and the way into the other.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from tests.unit.deployment.manifests import Manifest

Labels = Mapping[str, str]


class Pod(NamedTuple):
    """
    A pod, as far as policies look at it.

    Attributes:
        ports: the number of each port that has a name.
    """

    namespace: str
    labels: Labels
    ports: Mapping[str, int] = {}


class Network(NamedTuple):
    """
    A cluster's network.

    Attributes:
        policies: all of them, of all namespaces.
        namespaces: the labels of each namespace.
    """

    policies: list[Manifest]
    namespaces: Mapping[str, Labels]

    def reaches(self, source: Pod, target: Pod, port: int) -> bool:
        """
        Whether *source* can connect to a TCP port of *target*.
        """
        out = self._open("Egress", source, target, target, port)

        return out and self._open("Ingress", target, source, target, port)

    def _open(self, way: str, of: Pod, other: Pod, target: Pod, port: int) -> bool:
        policies = [
            policy
            for policy in self.policies
            if policy["metadata"]["namespace"] == of.namespace
            and way in policy["spec"]["policyTypes"]
            and selects(policy["spec"]["podSelector"], of.labels)
        ]
        peers = {"Ingress": "from", "Egress": "to"}[way]

        return not policies or any(
            self._peers(rule, peers, policy, other) and _ports(rule, target, port)
            for policy in policies
            for rule in policy["spec"].get(way.lower(), ())
        )

    def _peers(self, rule: Manifest, way: str, policy: Manifest, other: Pod) -> bool:
        return way not in rule or any(
            self._is(peer, policy["metadata"]["namespace"], other) for peer in rule[way]
        )

    def _is(self, peer: Manifest, home: str, pod: Pod) -> bool:
        assert set(peer) <= {"podSelector", "namespaceSelector"}, peer
        if "namespaceSelector" in peer:
            labels = self.namespaces[pod.namespace]
            labels = {"kubernetes.io/metadata.name": pod.namespace, **labels}
            there = selects(peer["namespaceSelector"], labels)
        else:
            there = pod.namespace == home

        return there and selects(peer.get("podSelector", {}), pod.labels)


def selects(selector: Manifest, labels: Labels) -> bool:
    """
    Whether a label selector is met; an empty one always is.
    """
    exact = selector.get("matchLabels", {}).items()
    expressions = selector.get("matchExpressions", ())
    assert all(one["operator"] == "In" for one in expressions), expressions

    return all(labels.get(key) == value for key, value in exact) and all(
        labels.get(one["key"]) in one["values"] for one in expressions
    )


def _ports(rule: Manifest, target: Pod, port: int) -> bool:
    def number(named: Any) -> Any:
        return target.ports.get(named) if isinstance(named, str) else named

    return "ports" not in rule or any(
        one["protocol"] == "TCP" and number(one["port"]) == port
        for one in rule["ports"]
    )

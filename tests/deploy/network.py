"""What NetworkPolicies allow, as a function of their manifests: by the API's documentation, without a network.

A connection must be allowed at both ends. An end that no policy selects, for that direction, allows everything; one
that some select allows what any rule of any of them does. Labels of pods count, and not their addresses: an ipBlock is
for what is no pod.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

Json = Mapping[str, Any]
Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod, with the names of its ports."""

    name: str
    namespace: str
    labels: Labels = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Address:
    """Something that is no pod: a node, the API server, the internet."""

    ip: str


End = Pod | Address


@dataclass(frozen=True, slots=True)
class Network:
    """Policies, as their manifests are, and the labels of each namespace."""

    policies: Sequence[Json]
    namespaces: Mapping[str, Labels]

    def allows(self, source: End, target: End, port: int, protocol: str = "TCP") -> bool:
        """Whether a connection comes about."""
        return self._lets(source, "egress", target, target, port, protocol) and self._lets(
            target, "ingress", source, target, port, protocol
        )

    def _lets(self, end: End, direction: str, other: End, target: End, port: int, protocol: str) -> bool:
        if isinstance(end, Address):
            return True
        specs = [
            policy["spec"]
            for policy in self.policies
            if policy["metadata"]["namespace"] == end.namespace
            and selects(policy["spec"]["podSelector"], end.labels)
            and direction in directions(policy["spec"])
        ]
        peers = "from" if direction == "ingress" else "to"
        return not specs or any(
            self._is_one_of(rule.get(peers), other, spec_namespace=end.namespace)
            and is_on(rule.get("ports"), target, port, protocol)
            for spec in specs
            for rule in spec.get(direction) or ()
        )

    def _is_one_of(self, peers: Sequence[Json] | None, other: End, spec_namespace: str) -> bool:
        # None named are all.
        return not peers or any(self._is(peer, other, spec_namespace) for peer in peers)

    def _is(self, peer: Json, other: End, spec_namespace: str) -> bool:
        block = peer.get("ipBlock")
        if block is not None:
            return isinstance(other, Address) and is_within(block, other.ip)
        if isinstance(other, Address):
            return False
        of_namespace = peer.get("namespaceSelector")
        if of_namespace is None:
            return other.namespace == spec_namespace and selects(peer["podSelector"], other.labels)
        # Both in one peer: the pods in those namespaces.
        return selects(of_namespace, self.namespaces[other.namespace]) and selects(
            peer.get("podSelector") or {}, other.labels
        )


def directions(spec: Json) -> frozenset[str]:
    """What a policy is about: what it says, else Ingress, and Egress if it has rules for it."""
    said = spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]
    return frozenset(one.lower() for one in said)


def selects(selector: Json, labels: Labels) -> bool:
    """Whether a label selector fits; an empty one fits everything."""
    wanted: Labels = selector.get("matchLabels") or {}
    return wanted.items() <= labels.items() and all(
        _fits(one, labels) for one in selector.get("matchExpressions") or ()
    )


def _fits(expression: Json, labels: Labels) -> bool:
    key, values = expression["key"], expression.get("values") or ()
    match expression["operator"]:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
        case operator:
            raise ValueError(f'"{operator}" is no operator of a label selector')


def is_within(block: Json, ip: str) -> bool:
    """Whether an ipBlock has the address."""
    address = ip_address(ip)
    return address in ip_network(block["cidr"]) and not any(
        address in ip_network(cidr) for cidr in block.get("except") or ()
    )


def is_on(ports: Sequence[Json] | None, target: End, port: int, protocol: str) -> bool:
    """Whether one of a rule's ports is the one that is connected to; none named are all. A name is the target's."""
    return not ports or any(_is_port(one, target, port) and one.get("protocol", "TCP") == protocol for one in ports)


def _is_port(one: Json, target: End, port: int) -> bool:
    match one.get("port"):
        case None:
            return True
        case str() as name:
            return isinstance(target, Pod) and target.ports.get(name) == port
        case number:
            return bool(number <= port <= one.get("endPort", number))

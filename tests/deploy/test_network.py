"""The evaluator does as the API's documentation says, so that what it says of deploy/ is worth something."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.deploy.network import Address, End, Network, Pod, is_within, selects

DB = Pod("db", "shop", {"role": "db"}, {"sql": 6379})
FRONT = Pod("front", "shop", {"role": "frontend"})
ALICE = Pod("alice", "people", {"role": "client"})
BOB = Pod("bob", "people", {"role": "other"})
OUTSIDE = Address("172.17.2.9")
NAMESPACES = {"shop": {"name": "shop"}, "people": {"user": "alice"}}
ENDS: list[End] = [DB, FRONT, ALICE, BOB, OUTSIDE]


def policy(namespace: str = "shop", selector: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": namespace}, "spec": {"podSelector": selector or {}, **spec}}


def network(*policies: dict[str, Any]) -> Network:
    return Network(policies, NAMESPACES)


def reach(network: Network, port: int = 6379) -> set[str]:
    """Who reaches the database."""
    return {end.name if isinstance(end, Pod) else end.ip for end in ENDS if network.allows(end, DB, port)}


EVERYBODY = {"db", "front", "alice", "bob", "172.17.2.9"}


def test_without_a_policy_everybody_reaches_everybody() -> None:
    assert reach(network()) == EVERYBODY


def test_a_policy_without_rules_keeps_everybody_off_and_none_of_another_namespace() -> None:
    assert reach(network(policy())) == set()
    assert reach(network(policy("people"))) == EVERYBODY
    assert reach(network(policy(selector={"matchLabels": {"role": "frontend"}}))) == EVERYBODY


def test_a_policy_that_is_about_egress_alone_keeps_nobody_from_coming_in() -> None:
    outward = network(policy(policyTypes=["Egress"], egress=[]))
    assert reach(outward) == EVERYBODY - {"db", "front"}
    assert not outward.allows(DB, OUTSIDE, 443)


def test_rules_for_egress_make_a_policy_about_egress() -> None:
    assert not network(policy(egress=[{"ports": [{"port": 443}]}])).allows(DB, OUTSIDE, 80)
    assert network(policy(ingress=[{}])).allows(DB, OUTSIDE, 80)


PEERS: dict[str, tuple[list[dict[str, Any]] | None, set[str]]] = {
    "a rule without peers is for all": (None, EVERYBODY),
    "pods are of the policy's own namespace": ([{"podSelector": {}}], {"db", "front"}),
    "namespaces are all of their pods": ([{"namespaceSelector": {"matchLabels": {"user": "alice"}}}], {"alice", "bob"}),
    "both in one peer are the pods in the namespaces": (
        [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"role": "client"}}}],
        {"alice"},
    ),
    "both as two peers are either": (
        [{"namespaceSelector": {"matchLabels": {"user": "alice"}}}, {"podSelector": {"matchLabels": {"role": "db"}}}],
        {"alice", "bob", "db"},
    ),
    "a block is what is no pod": (
        [{"ipBlock": {"cidr": "172.17.0.0/16", "except": ["172.17.1.0/24"]}}],
        {"172.17.2.9"},
    ),
}


@pytest.mark.parametrize("name", PEERS)
def test_peers(name: str) -> None:
    peers, expected = PEERS[name]
    rule = {} if peers is None else {"from": peers}
    assert reach(network(policy(ingress=[rule]))) == expected


PORTS = {
    "a number": ([{"port": 6379}], {6379}),
    "a name is the target's": ([{"port": "sql"}], {6379}),
    "a name that the target has not": ([{"port": "http"}], set()),
    "a range": ([{"port": 6378, "endPort": 6380}], {6378, 6379, 6380}),
    "a protocol alone": ([{"protocol": "TCP"}], {22, 6378, 6379, 6380}),
    "another protocol": ([{"port": 6379, "protocol": "UDP"}], set()),
}


@pytest.mark.parametrize("name", PORTS)
def test_ports(name: str) -> None:
    ports, expected = PORTS[name]
    rules = network(policy(ingress=[{"ports": ports}]))
    assert {port for port in (22, 6378, 6379, 6380) if rules.allows(FRONT, DB, port)} == expected


def test_both_ends_must_allow_it() -> None:
    out = policy(selector={"matchLabels": {"role": "frontend"}}, policyTypes=["Egress"], egress=[])
    inward = policy(selector={"matchLabels": {"role": "db"}}, ingress=[{}])
    assert not network(out, inward).allows(FRONT, DB, 6379)
    assert network(inward).allows(FRONT, DB, 6379)


LABELS = st.dictionaries(st.sampled_from("abc"), st.sampled_from("xy"))


@given(LABELS, LABELS)
def test_an_expression_for_each_label_is_the_same_as_the_labels(wanted: dict[str, str], labels: dict[str, str]) -> None:
    expressions = [{"key": key, "operator": "In", "values": [value]} for key, value in wanted.items()]
    assert selects({"matchLabels": wanted}, labels) == selects({"matchExpressions": expressions}, labels)


@given(LABELS, st.sampled_from("abc"), st.sampled_from("xy"))
def test_an_operator_and_its_opposite_never_agree(labels: dict[str, str], key: str, value: str) -> None:
    for one, other in (("In", "NotIn"), ("Exists", "DoesNotExist")):
        found = {
            selects({"matchExpressions": [{"key": key, "operator": name, "values": [value]}]}, labels)
            for name in (one, other)
        }
        assert found == {True, False}


@given(st.lists(st.tuples(st.sampled_from(["client", "db", "frontend"]), st.sampled_from([22, 6379])), max_size=4))
def test_one_more_rule_never_takes_away_what_another_allows(rules: list[tuple[str, int]]) -> None:
    made = [
        policy(ingress=[{"from": [{"podSelector": {"matchLabels": {"role": role}}}], "ports": [{"port": port}]}])
        for role, port in rules
    ]
    for count in range(1, len(made)):
        for port in (22, 6379):
            assert reach(network(*made[:count]), port) <= reach(network(*made[: count + 1]), port)


def test_a_block_knows_its_family() -> None:
    assert not is_within({"cidr": "::/0"}, "172.17.2.9")
    assert is_within({"cidr": "0.0.0.0/0"}, "172.17.2.9")

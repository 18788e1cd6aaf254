from __future__ import annotations

import pytest
import yaml

from tests.core.doctor.world import DEPLOY, engine, found, is_fine, named, only, sound
from vllm_chill.core.doctor.finding import Outcome
from vllm_chill.core.doctor.network import BUDGET, NETWORK
from vllm_chill.core.objects import Json

POLICIES = tuple(
    item
    for name in ("engines", "proxy")
    for item in yaml.safe_load_all((DEPLOY / "overlays" / "network-policy" / f"{name}.yaml").read_text())
)
PROXY = {"matchLabels": {"app.kubernetes.io/name": "vllm-chill"}}
ENGINE = {"matchLabels": {"app": "vllm"}}
API: Json = {"ports": [{"port": 443}, {"port": 6443}]}


def policy(selector: Json, *, ingress: list[Json] | None = None, egress: list[Json] | None = None) -> Json:
    types = [name for name, rules in (("Ingress", ingress), ("Egress", egress)) if rules is not None]
    return named("p", spec={"podSelector": selector, "policyTypes": types, "ingress": ingress, "egress": egress})


def to(peer: Json, *ports: Json, way: str = "from") -> Json:
    return {way: [peer], **({"ports": list(ports)} if ports else {})}


def test_the_policies_of_deploy_let_through_what_is_needed() -> None:
    assert is_fine(found(NETWORK, sound(network_policies=POLICIES)))
    assert found(NETWORK, sound()) == []


@pytest.mark.parametrize(
    "rules",
    [
        pytest.param([], id="nobody"),
        pytest.param([to({"podSelector": {"matchLabels": {"app": "web"}}})], id="others"),
        pytest.param([to({"podSelector": PROXY}, {"port": 9000})], id="another port"),
        pytest.param([to({"podSelector": PROXY}, {"port": 8000, "protocol": "UDP"})], id="another protocol"),
    ],
)
def test_an_engine_that_lets_the_proxy_not_in_is_a_failure(rules: list[Json]) -> None:
    finding = only(NETWORK, sound(network_policies=(policy(ENGINE, ingress=rules),)))
    assert finding.outcome is Outcome.FAILURE
    assert "keeps the proxy from port 8000" in finding.says
    made = yaml.safe_load(finding.paste.split("\n", 1)[1].rsplit("\n", 1)[0])
    both = (policy(ENGINE, ingress=rules), made)
    assert is_fine(found(NETWORK, sound(network_policies=both)))


@pytest.mark.parametrize(
    "rules",
    [
        pytest.param([{}], id="everybody"),
        pytest.param([to({"podSelector": PROXY}, {"port": "http"})], id="the port by its name"),
        pytest.param([to({"podSelector": {}}, {"port": 7000, "endPort": 9000})], id="a range of ports"),
        pytest.param([to({"namespaceSelector": {}})], id="any namespace"),
        pytest.param([to({"ipBlock": {"cidr": "10.0.0.0/8"}})], id="addresses, which may be the proxy's"),
        pytest.param(
            [to({"podSelector": {"matchExpressions": [{"key": "app.kubernetes.io/name", "operator": "Exists"}]}})],
            id="an expression",
        ),
    ],
)
def test_an_engine_that_may_let_the_proxy_in_is_fine(rules: list[Json]) -> None:
    assert is_fine(found(NETWORK, sound(network_policies=(policy(ENGINE, ingress=rules),))))


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        pytest.param([API], "out to port 8000 of the engine", id="not to the engine"),
        pytest.param([to({"podSelector": ENGINE}, way="to")], "out to the API server", id="not to the API server"),
    ],
)
def test_a_proxy_that_may_not_get_out_is_a_failure(rules: list[Json], says: str) -> None:
    closed = policy(PROXY, egress=rules)
    finding = only(NETWORK, sound(network_policies=(closed,)))
    assert says in finding.says
    made = yaml.safe_load(finding.paste.split("\n", 1)[1].rsplit("\n", 1)[0])
    assert is_fine(found(NETWORK, sound(network_policies=(closed, made))))


def test_the_port_is_that_of_the_engine() -> None:
    open_to = policy(ENGINE, ingress=[to({"podSelector": PROXY}, {"port": 8000})])
    elsewhere = engine(ports=[{"name": "http", "containerPort": 9000}]).target
    assert only(NETWORK, sound(network_policies=(open_to,), target=elsewhere)).outcome is Outcome.FAILURE


@pytest.mark.parametrize(
    ("spec", "outcome"),
    [
        ({"minAvailable": 1}, Outcome.WARNING),
        ({"minAvailable": "50%"}, Outcome.WARNING),
        ({"maxUnavailable": 0}, Outcome.WARNING),
        ({"maxUnavailable": 1}, Outcome.OK),
        ({"minAvailable": 0}, Outcome.OK),
    ],
)
def test_a_budget_that_lets_no_pod_go_is_a_warning(spec: Json, outcome: Outcome) -> None:
    assert only(BUDGET, sound(budgets=(named("b", spec={"selector": ENGINE, **spec}),))).outcome is outcome
    assert found(BUDGET, sound(budgets=(named("b", spec={"selector": PROXY, **spec}),))) == []

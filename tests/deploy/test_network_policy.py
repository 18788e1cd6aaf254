"""What the network policies of deploy/ allow is what docs/network-policy.md says, and nothing else.

tests/cluster has a real API server take them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.kustomized import DEPLOY, Built, build_with, needs_kubectl
from tests.deploy.network import Address, End, Network, Pod, directions, selects
from vllm_chill.api.vllm_model import parse_model
from vllm_chill.api.workload import WorkloadDefaults, deployment_of

PAGE = (DEPLOY.parent / "docs/network-policy.md").read_text()
COMPONENTS = [DEPLOY / "overlays/network-policy", DEPLOY / "controller/network-policy"]
FILES = [file for folder in COMPONENTS for file in sorted(folder.glob("*.yaml")) if file.name != "kustomization.yaml"]
PORTS = ["22", "53", "UDP 53", "80", "443", "6443", "8000", "8080", "8081", "8443", "9090"]


def policies(text: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text))


def with_options(text: str) -> str:
    """A manifest with everything in it that its comments show."""
    return re.sub(r"^( *)# (- |  )", r"\1\2", text, flags=re.MULTILINE)


SHIPPED = [policy for file in FILES for policy in policies(file.read_text())]
OPENED = [policy for file in FILES for policy in policies(with_options(file.read_text()))]


# --- who there is ---


def pod_of(name: str, deployment: dict[str, Any]) -> Pod:
    template = deployment["spec"]["template"]
    [container] = template["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    return Pod(name, deployment["metadata"]["namespace"], template["metadata"]["labels"], ports)


def shipped_pod(name: str, file: str) -> Pod:
    return pod_of(name, yaml.safe_load((DEPLOY / file).read_text()))


def model_pod() -> Pod:
    model = parse_model(yaml.safe_load((DEPLOY / "example/models/deepseek-r1-fp8.yaml").read_text()))
    return pod_of("a model's engine", deployment_of(model, "ai-apps", WorkloadDefaults()))


def namespace(name: str) -> dict[str, str]:
    return {"kubernetes.io/metadata.name": name}


NAMES = ["ai-apps", "vllm-chill-system", "kube-system", "monitoring", "shop"]
NAMESPACES = {name: namespace(name) for name in NAMES}
PROXY = shipped_pod("the proxy", "deployment.yaml")
CONTROLLER = shipped_pod("the controller", "controller/deployment.yaml")
ENGINES = [shipped_pod("an engine", "example/deployment.yaml"), model_pod()]
DNS = Pod("the cluster's DNS", "kube-system", {"k8s-app": "kube-dns"})
PROMETHEUS = Pod("Prometheus", "monitoring", {"app.kubernetes.io/name": "prometheus"})
PODS = [
    PROXY, CONTROLLER, *ENGINES, DNS, PROMETHEUS,
    Pod("a neighbour", "ai-apps", {"app": "web"}),
    Pod("a neighbour of the controller", "vllm-chill-system", {"app": "web"}),
    Pod("somebody", "shop", {"app": "web"}),
    # Nobody is somebody else by having his labels in another namespace.
    Pod("a false proxy", "shop", PROXY.labels),
    Pod("a false DNS", "shop", DNS.labels),
]  # fmt: skip
ADDRESSES = [Address(ip) for ip in ("198.51.100.1", "192.0.2.7", "203.0.113.9", "169.254.20.10", "2001:db8::1")]
WORLD: list[End] = [*PODS, *ADDRESSES]


def is_restricted(end: End, direction: str) -> bool:
    return isinstance(end, Pod) and any(
        policy["metadata"]["namespace"] == end.namespace
        and selects(policy["spec"]["podSelector"], end.labels)
        and direction in directions(policy["spec"])
        for policy in SHIPPED
    )


def meant(name: str, direction: str) -> list[End]:
    """Who a cell of the tables stands for."""
    others = [pod for pod in PODS if not is_restricted(pod, direction)]
    match name:
        case "any other pod":
            return [*others]
        case "anything":
            return [*others, *ADDRESSES]
        case "an engine":
            return [*ENGINES]
        case _ if name[0].isdigit():
            return [Address(name)]
        case _:
            return [pod for pod in PODS if pod.name == name]


Connection = tuple[str, str, str]


def called(end: End) -> str:
    return end.name if isinstance(end, Pod) else end.ip


def told(heading: str) -> set[Connection]:
    """The connections that a table of the page stands for."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in row.split("|")[1:4]] for row in re.findall(r"^\|.*\|$", section, re.MULTILINE)[2:]
    ]
    assert rows
    found = set()
    for source, target, ports in rows:
        sources, targets = meant(source, "egress"), meant(target, "ingress")
        assert sources, source
        assert targets, target
        assert set(ports.split(", ")) <= set(PORTS)
        found |= {(called(s), called(t), port) for s, t, port in itertools.product(sources, targets, ports.split(", "))}
    return found


def allowed(manifests: list[dict[str, Any]]) -> set[Connection]:
    """The connections that come about, of those which a policy could keep from it."""
    network = Network(manifests, NAMESPACES)

    def connections() -> Iterator[Connection]:
        for source, target in itertools.product(WORLD, WORLD):
            if is_restricted(source, "egress") or is_restricted(target, "ingress"):
                for name in PORTS:
                    protocol, _, port = name.rpartition(" ")
                    if network.allows(source, target, int(port), protocol or "TCP"):
                        yield called(source), called(target), name

    return set(connections())


# --- what is allowed ---


def test_what_is_allowed_is_what_the_page_says() -> None:
    assert allowed(SHIPPED) == told("What may connect to what")


def test_with_all_options_it_is_what_the_page_says_besides() -> None:
    assert OPENED != SHIPPED
    assert allowed(OPENED) == told("What may connect to what") | told("What can be allowed besides")


@pytest.mark.parametrize("pod", [PROXY, CONTROLLER, *ENGINES], ids=lambda pod: pod.name)
def test_nobody_outside_the_cluster_reaches(pod: Pod) -> None:
    network = Network(SHIPPED, NAMESPACES)
    assert not any(network.allows(address, pod, port) for address in ADDRESSES for port in (8000, 8080, 8081, 8443))


def test_an_engine_is_reached_by_the_proxy_alone() -> None:
    network = Network(SHIPPED, NAMESPACES)
    for engine in ENGINES:
        assert [pod.name for pod in PODS if network.allows(pod, engine, 8000)] == ["the proxy"]


# --- how they are made ---


@pytest.mark.parametrize("folder", COMPONENTS, ids=lambda folder: folder.parent.name)
def test_every_manifest_is_in_its_component(folder: Path) -> None:
    component = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert component["kind"] == "Component"
    assert set(component["resources"]) == {f.name for f in folder.glob("*.yaml")} - {"kustomization.yaml"}


def everything(tmp_path: Path, **more: Any) -> tuple[Built, Built]:
    """The proxy and the controller, each in a kustomization of somebody's own."""
    return (
        build_with(DEPLOY, ["overlays/network-policy"], tmp_path, namespace="mine", **more),
        build_with(DEPLOY / "controller", ["network-policy", "namespaced"], tmp_path, namespace="mine", **more),
    )


@needs_kubectl
def test_kustomize_adds_them_in_any_namespace(tmp_path: Path) -> None:
    proxy, controller = everything(tmp_path)
    assert proxy.names("NetworkPolicy") == {"vllm-chill", "vllm-chill-engine", "vllm-chill-models"}
    assert controller.names("NetworkPolicy") == {"vllm-chill-controller"}
    for built in (proxy, controller):
        assert {policy["metadata"]["namespace"] for policy in built.all("NetworkPolicy")} == {"mine"}
    labels = pod_of("it", proxy.of("Deployment", "vllm-chill")).labels
    assert selects(proxy.of("NetworkPolicy", "vllm-chill")["spec"]["podSelector"], labels)


@needs_kubectl
def test_the_patch_that_the_page_shows_leaves_the_api_server_alone(tmp_path: Path) -> None:
    [shown] = [text for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "patches:" in text]
    for built, source in zip(everything(tmp_path, **yaml.safe_load(shown)), (PROXY, CONTROLLER), strict=True):
        own = [
            {**policy, "metadata": {**policy["metadata"], "namespace": source.namespace}}
            for policy in built.all("NetworkPolicy")
        ]
        network = Network(own, NAMESPACES)
        assert [end for end in WORLD if network.allows(source, end, 443)] == [Address("198.51.100.1")]
        assert network.allows(source, DNS, 53)

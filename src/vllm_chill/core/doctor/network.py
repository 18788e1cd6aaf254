"""Policies in the way: NetworkPolicies between the proxy, the engine and the API server, and budgets of pods. Pure.

The rule: a rule with a namespaceSelector or an ipBlock is taken to let through what it may let through; only what no
rule can is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vllm_chill.core.doctor.finding import Check, Finding, failure, ok, seen, warning
from vllm_chill.core.doctor.paste import kubectl
from vllm_chill.core.doctor.picture import Asked, Picture
from vllm_chill.core.doctor.pod_template import declared_ports, pod_labels, pod_spec, selector_holds
from vllm_chill.core.doctor.proxies import serving
from vllm_chill.core.doctor.words import names_of
from vllm_chill.core.engine_port import engine_port
from vllm_chill.core.objects import Json, metadata
from vllm_chill.core.phrases import listed

_API_PORTS = (443, 6443)
_PROXY_LABELS = {"app.kubernetes.io/name": "vllm-chill"}


def find_network(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether a NetworkPolicy keeps the proxy from the engine, or from the API server."""
    assert isinstance(picture.target, dict)
    policies = seen(picture.network_policies)
    if not policies:
        return
    proxies = serving(asked, picture.deployments)
    proxy_labels = proxies[0].labels if proxies else _PROXY_LABELS
    labels, spec = pod_labels(picture.target), pod_spec(picture.target)
    port = engine_port(spec, asked.port)
    names = {name for name, number in declared_ports(spec) if number == port and name}
    proxy = ", ".join(f"{key}: {value}" for key, value in sorted(proxy_labels.items()))
    engine = ", ".join(f"{key}: {value}" for key, value in sorted(labels.items()))

    inward = _of(policies, labels, "Ingress")
    if inward and not _lets(inward, "ingress", "from", proxy_labels, {port}, names):
        yield failure(
            f"NetworkPolicy {listed(names_of(inward), 3)} keeps the proxy from port {port} of the engine: no start "
            "ever ends",
            "let the proxy's pods in",
            _policy(asked, "engine", labels, "Ingress", f"from: [{{podSelector: {{matchLabels: {{{proxy}}}}}}}]", port),
        )
        return
    outward = _of(policies, proxy_labels, "Egress") if proxies else []
    if outward and not _lets(outward, "egress", "to", labels, {port}, names):
        yield failure(
            f"NetworkPolicy {listed(names_of(outward), 3)} does not let the proxy out to port {port} of the engine",
            "let it out to the engine's pods",
            _policy(
                asked, "proxy", proxy_labels, "Egress", f"to: [{{podSelector: {{matchLabels: {{{engine}}}}}}}]", port
            ),
        )
        return
    if outward and not _lets(outward, "egress", "to", None, set(_API_PORTS), set()):
        yield failure(
            f"NetworkPolicy {listed(names_of(outward), 3)} does not let the proxy out to the API server: it knows and "
            "scales nothing",
            "let it out to ports 443 and 6443; docs/network-policy.md says how to name the API server alone",
            _policy(asked, "api", proxy_labels, "Egress", "", *_API_PORTS),
        )
        return
    yield ok("no NetworkPolicy is in the proxy's way")


def find_budget(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether a budget keeps a node from being drained for as long as the model is awake."""
    assert isinstance(picture.target, dict)
    labels = pod_labels(picture.target)
    own = [one for one in seen(picture.budgets) if selector_holds((one.get("spec") or {}).get("selector"), labels)]
    for budget in own:
        spec, name = budget.get("spec") or {}, str(metadata(budget)["name"])
        least, most = spec.get("minAvailable"), spec.get("maxUnavailable")
        if (least is not None and str(least) not in ("0", "0%")) or str(most) in ("0", "0%"):
            says = f"minAvailable {least}" if least is not None else f"maxUnavailable {most}"
            yield warning(
                f"PodDisruptionBudget {name} has {says}: with one replica no node can be drained while the model is "
                "awake, which vllm-chill does not keep it from sleeping for",
                "let one pod go",
                kubectl(asked.namespace, "delete", "poddisruptionbudget", name),
            )
            return
    if own:
        yield ok("its PodDisruptionBudget lets a node be drained")


def _of(policies: tuple[Json, ...], labels: Mapping[str, str], kind: str) -> list[Json]:
    return [
        one
        for one in policies
        if kind in _kinds(one) and selector_holds((one.get("spec") or {}).get("podSelector") or {}, labels)
    ]


def _kinds(policy: Json) -> list[str]:
    spec = policy.get("spec") or {}
    return list(spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])])


def _lets(
    policies: list[Json], way: str, peers: str, labels: Mapping[str, str] | None, ports: set[int], names: set[str]
) -> bool:
    """Whether one of the rules lets through to (or from) pods with these labels; None: to what is no pod."""
    return any(
        _peer_fits(rule.get(peers), labels) and _port_fits(rule.get("ports"), ports, names)
        for policy in policies
        for rule in (policy.get("spec") or {}).get(way) or []
    )


def _peer_fits(peers: list[Json] | None, labels: Mapping[str, str] | None) -> bool:
    if not peers:
        return True
    for peer in peers:
        if "ipBlock" in peer:
            return True
        if labels is None:
            continue
        # Pods of another namespace are not these, unless the selector of namespaces has theirs: that is not known.
        if "podSelector" not in peer or selector_holds(peer["podSelector"] or {}, labels):
            return True
    return False


def _port_fits(ports: list[Json] | None, numbers: set[int], names: set[str]) -> bool:
    return not ports or any(_is_port(one, numbers, names) for one in ports)


def _is_port(one: Json, numbers: set[int], names: set[str]) -> bool:
    if one.get("protocol", "TCP") != "TCP":
        return False
    port: Any = one.get("port")
    if port is None or port in names:
        return True
    if not str(port).isdecimal():
        return False
    last = int(one.get("endPort") or port)
    return any(int(port) <= number <= last for number in numbers)


def _policy(asked: Asked, name: str, labels: Mapping[str, str], kind: str, peers: str, *ports: int) -> str:
    wanted = ", ".join(f"{key}: {value}" for key, value in sorted(labels.items()))
    said = ", ".join(f"{{port: {port}}}" for port in ports)
    begin = f"    - {peers}\n      ports: [{said}]" if peers else f"    - ports: [{said}]"
    return (
        "kubectl apply -f - <<'END'\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n"
        f"  name: vllm-chill-lets-{name}\n  namespace: {asked.namespace}\nspec:\n"
        f"  podSelector: {{matchLabels: {{{wanted}}}}}\n  policyTypes: [{kind}]\n  {kind.lower()}:\n{begin}\nEND"
    )


NETWORK = Check(
    "network-policies",
    "NetworkPolicies of the engine and of the proxy: the engine's port, and the API server",
    "the proxy never finds the engine ready, or knows nothing of the cluster",
    "a rule for it; policies add up",
    find_network,
)
BUDGET = Check(
    "disruption-budget",
    "PodDisruptionBudgets of the engine that let no pod go",
    "a node cannot be drained for as long as the model is awake",
    "none, or `maxUnavailable: 1`",
    find_budget,
)

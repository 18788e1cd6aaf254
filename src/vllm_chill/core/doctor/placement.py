"""Whether there is a place for the engine's pod: nodes that have what it asks for, and a quota that allows it. Pure.

The rule: what other pods use at the moment is not looked at, since it changes; a pod that waits for it says so itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from vllm_chill.core.doctor.finding import Check, Finding, failure, ok, seen, warning
from vllm_chill.core.doctor.paste import kubectl, of_container, of_pods, patch
from vllm_chill.core.doctor.picture import Asked, Picture
from vllm_chill.core.doctor.pod_template import (
    demand,
    devices,
    engine_of,
    image_name,
    limits,
    pod_spec,
    quantity,
    spec_of,
    tolerates,
    wants_node,
)
from vllm_chill.core.doctor.words import names_of
from vllm_chill.core.objects import Json, labels_of, metadata
from vllm_chill.core.phrases import listed

_USUAL_GPU = "nvidia.com/gpu"
_PATIENT_SECONDS = 60.0


def find_gpus(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether nodes offer the GPUs that the pod asks for."""
    spec = _spec(picture)
    wanted = devices(spec)
    if not wanted:
        container = engine_of(spec)
        if image_name(container)[0] == "vllm-openai":
            yield warning(
                "the engine asks for no GPU: the scheduler may put it on a node without, or on one whose GPU is taken",
                "ask for one",
                _limits(asked, container, {_USUAL_GPU: "1"}),
            )
        else:
            yield ok("the engine asks for no GPU")
        return
    nodes = seen(picture.nodes)
    for resource, amount in sorted(wanted.items()):
        most = max((_allocatable(node, resource) for node in nodes), default=0.0)
        if most >= amount:
            yield ok(f"there are nodes with {amount:g} {resource}")
        elif most:
            yield _unplaced(
                asked,
                f"a pod asks for {amount:g} {resource}, and no node has more than {most:g}",
                f"ask for {most:g} at the most, and let --tensor-parallel-size be the same",
                _limits(asked, engine_of(spec), {resource: f"{most:g}"}, resource),
            )
        else:
            yield _unplaced(asked, *_no_node_offers(asked, spec, resource, nodes))


def find_node(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether a node that offers enough is one that the pod may run on."""
    spec = _spec(picture)
    needs = demand(spec)
    offering = [
        node for node in seen(picture.nodes) if all(_allocatable(node, one) >= n for one, n in devices(spec).items())
    ]
    if not offering:
        return  # which is told of the GPUs, or there is no node at all
    wanted = [node for node in offering if wants_node(spec, labels_of(node))]
    if not wanted:
        selector = spec.get("nodeSelector") or {}
        said = ",".join(f"{key}={value}" for key, value in sorted(selector.items()))
        what = f"nodeSelector {said}" if selector else "the required node affinity"
        first = names_of(offering)[0]
        yield _unplaced(
            asked,
            f"no node with enough GPUs has what {what} asks for",
            "label a node so, or correct the Deployment",
            f"kubectl label node {first} {said.replace(',', ' ')}" if selector else f"kubectl describe node {first}",
        )
        return
    open_to = [node for node in wanted if not _barred(spec, node)]
    if not open_to:
        node = wanted[0]
        taints = _barred(spec, node)
        names = [f"{one.get('key')}={one.get('value') or ''}:{one.get('effect')}" for one in taints]
        tolerations = [*(spec.get("tolerations") or []), *map(_toleration, taints)]
        yield _unplaced(
            asked,
            f"every node that would do has a taint that the pod does not tolerate: {listed(names, 3)} of "
            f"{metadata(node).get('name')}",
            "tolerate it, if these nodes are meant for the engine",
            of_pods(asked.namespace, asked.deployment, {"tolerations": tolerations}),
        )
        return
    free = [node for node in open_to if not (node.get("spec") or {}).get("unschedulable")]
    if not free:
        name = names_of(open_to)[0]
        yield _unplaced(
            asked, f"every node that would do is cordoned: {listed(names_of(open_to), 3)}", "uncordon one",
            f"kubectl uncordon {name}",
        )  # fmt: skip
        return
    well = [node for node in free if _is_well(node)]
    if not well:
        name = names_of(free)[0]
        yield _unplaced(
            asked,
            f"every node that would do is not Ready: {listed(names_of(free), 3)}",
            "see what is wrong with it",
            f"kubectl describe node {name}",
        )
        return
    for resource in ("cpu", "memory"):
        amount = needs.get(resource, 0.0)
        most = max((_allocatable(node, resource, otherwise=amount) for node in well), default=0.0)
        if most < amount:
            yield _unplaced(
                asked,
                f"a pod asks for {_amount(resource, amount)}, and no node that would do has more than "
                f"{_amount(resource, most)}",
                "ask for less",
                kubectl(asked.namespace, "edit", f"deployment/{asked.deployment}"),
            )
            return
    yield ok(f"{listed(names_of(well), 3)} can run it")


def find_quota(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether a quota of the namespace forbids the pod."""
    spec = _spec(picture)
    assert isinstance(picture.target, dict)
    asleep = not spec_of(picture.target).get("replicas", 1)
    wants = {"pods": 1.0, "count/pods": 1.0}
    for name, amount in demand(spec).items():
        wants[f"requests.{name}"] = amount
        if name in ("cpu", "memory"):
            wants[name] = amount
    wants |= {f"limits.{name}": amount for name, amount in limits(spec).items() if name in ("cpu", "memory")}
    quotas = [one for one in seen(picture.quotas) if not (one.get("spec") or {}).get("scopes")]
    for quota in quotas:
        name = str(metadata(quota).get("name"))
        hard = (quota.get("spec") or {}).get("hard") or {}
        used = (quota.get("status") or {}).get("used") or {}
        for resource, most in sorted(hard.items()):
            amount = wants.get(resource, 0.0)
            taken = quantity(used.get(resource, 0)) if asleep else 0.0
            if amount and taken + amount > quantity(most):
                others = f", of which {_amount(resource, taken)} are taken" if taken else ""
                yield failure(
                    f"ResourceQuota {name} allows {_amount(resource, quantity(most))} of {resource}{others}, and a pod "
                    f"asks for {_amount(resource, amount)}: none is made",
                    "raise the quota",
                    patch(asked.namespace, f"resourcequota/{name}", _hard(resource, taken + amount)),
                )
                return
    if quotas:
        yield ok(f"a pod fits into ResourceQuota {listed(names_of(quotas), 3)}")
    else:
        yield ok("no ResourceQuota forbids a pod")


def _spec(picture: Picture) -> Json:
    assert isinstance(picture.target, dict)
    return pod_spec(picture.target)


def _allocatable(node: Json, resource: str, otherwise: float = 0.0) -> float:
    found = ((node.get("status") or {}).get("allocatable") or {}).get(resource)
    return otherwise if found is None else quantity(found)


def _no_node_offers(asked: Asked, spec: Json, resource: str, nodes: Sequence[Json]) -> tuple[str, str, str]:
    offered = sorted(
        name
        for name in {one for node in nodes for one in (node.get("status") or {}).get("allocatable") or {}}
        if "/" in name and any(_allocatable(node, name) for node in nodes)
    )
    says = f"no node offers {resource}"
    if offered:
        return (
            f"{says}; nodes offer {listed(offered, 3)}",
            f"ask for {offered[0]}, or install the device plugin of {resource}",
            _limits(asked, engine_of(spec), {resource: None, offered[0]: "1"}, resource),
        )
    return (
        f"{says}, nor any other GPU",
        "install the device plugin of your GPUs (for NVIDIA's, the GPU operator), and see that it runs on the nodes",
        "kubectl get nodes -o custom-columns=NODE:.metadata.name,ALLOCATABLE:.status.allocatable",
    )


def _barred(spec: Json, node: Json) -> list[Json]:
    # Those that a node has for as long as it is not well say what its conditions say, and go with them.
    taints = [one for one in (node.get("spec") or {}).get("taints") or [] if not _is_condition(one)]
    return [taint for taint in taints if not tolerates(spec, taint)]


def _is_condition(taint: Json) -> bool:
    return str(taint.get("key")).startswith("node.kubernetes.io/")


def _is_well(node: Json) -> bool:
    conditions = {one.get("type"): one.get("status") for one in (node.get("status") or {}).get("conditions") or []}
    return str(conditions.get("Ready", "True")) == "True"


def _toleration(taint: Json) -> Json:
    return {"key": taint.get("key"), "operator": "Exists", "effect": taint.get("effect")}


def _unplaced(asked: Asked, says: str, remedy: str, paste: str) -> Finding:
    if asked.unschedulable_seconds > _PATIENT_SECONDS:  # somebody adds nodes, as that setting is for
        return warning(f"{says}, unless an autoscaler adds one", remedy, paste)
    return failure(says, remedy, paste)


def _amount(resource: str, amount: float) -> str:
    return f"{amount / (1 << 30):.3g}Gi" if "memory" in resource else f"{amount:g}"


def _hard(resource: str, amount: float) -> Json:
    return {"spec": {"hard": {resource: str(math.ceil(amount)) if "memory" in resource else f"{amount:g}"}}}


def _limits(asked: Asked, container: Json, new: Json, unasked: str = "") -> str:
    resources = {"limits": new, **({"requests": {unasked: None}} if unasked else {})}
    return of_container(asked.namespace, asked.deployment, str(container.get("name")), {"resources": resources})


GPUS = Check(
    "gpus",
    "the GPUs that the pod asks for, against what nodes offer (needs `list nodes`)",
    "the pod stays Pending, and the start fails",
    "the resource's right name, a number that a node has, or the device plugin",
    find_gpus,
)
NODE = Check(
    "node",
    "`nodeSelector`, affinity, tolerations, processors and memory, against the nodes with such GPUs",
    "the pod stays Pending although there are GPUs",
    "a label for a node, a toleration for the pod",
    find_node,
)
QUOTA = Check(
    "quota",
    "the namespace's ResourceQuotas, less what is taken of them",
    "the pod is never made",
    "a higher quota",
    find_quota,
)

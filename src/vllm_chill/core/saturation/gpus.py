"""The GPUs of a cluster: what nodes have, what pods ask for, and what is left. Pure.

The rule: a GPU is taken by every pod that asks for it and has a node, whoever manages that pod, until it has ended.
They are counted by the resources that are called VENDOR/gpu; slices of GPUs (MIG) and claims (DRA) are not counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_chill.core.objects import Json, labels_of, metadata
from vllm_chill.core.selectors import Selector

_RESOURCE = "/gpu"
# AMD's node labeller says product-name; the emulated nodes of llm-d's tests say product for every vendor.
_PRODUCTS = ("/gpu.product", "/gpu.product-name")
_WORDS = re.compile(r"[-_\s]+")
_MAKERS = frozenset({"nvidia", "amd", "intel", "habana", "tesla", "instinct", "geforce", "quadro", "radeon"})
_FORM = re.compile(r"sxm\d*|pcie|oam|nvl|hbm\w*|\d+g(i?b)?|shared|mig|vf|hf", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Gpus:
    """So many GPUs of one resource, such as nvidia.com/gpu; `accelerator` is what they are, "" if nobody says."""

    resource: str
    count: int
    accelerator: str = ""


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """A node with GPUs. `counts`: pods can be placed on it, and it is one of those that are chosen."""

    name: str
    gpus: tuple[Gpus, ...]
    counts: bool

    def accelerator(self, resources: Iterable[str]) -> str:
        """What the GPUs of one of these resources are on it; of any, where none is asked for."""
        wanted = set(resources)
        named = (each.accelerator for each in self.gpus if not wanted or each.resource in wanted)
        return next((name for name in named if name), "")


def node_seen(node: Json, chosen: Selector) -> NodeSeen | None:
    """What is kept of a node; None for one that has no GPUs."""
    labels, status = labels_of(node), node.get("status") or {}
    counts = dict(_counts(status.get("allocatable")))
    products = {key.partition("/")[0] + _RESOURCE: key for key in labels if key.endswith(_PRODUCTS)}
    gpus = tuple(
        Gpus(
            resource,
            counts.get(resource, 0),
            accelerator_name(labels[products[resource]]) if resource in products else "",
        )
        for resource in dict.fromkeys((*counts, *products))
    )
    if not gpus:
        return None
    ready = all(each.get("status") == "True" for each in status.get("conditions") or () if each.get("type") == "Ready")
    cordoned = bool((node.get("spec") or {}).get("unschedulable"))
    return NodeSeen(metadata(node)["name"], gpus, ready and not cordoned and chosen.selects(labels))


def accelerator_name(product: str) -> str:
    """The short name of an accelerator, as costs and labels have it: NVIDIA-H100-80GB-HBM3 is an H100, and
    Intel-Gaudi-2-96GB a Gaudi-2. It is the product without its maker, up to its form or memory.
    """
    words = [word for word in _WORDS.split(product.strip()) if word]
    while len(words) > 1 and words[0].lower() in _MAKERS:
        words = words[1:]
    end = next((i for i, word in enumerate(words) if i and _FORM.fullmatch(word)), len(words))
    name = "-".join(words[:end])
    return name.upper() if name.islower() else name


def gpus_of(spec: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    """The GPUs that a pod of this spec takes, by resource: those of its containers together, or what one that runs
    before them takes, if that is more.
    """
    taken: dict[str, int] = {}
    for container in spec.get("containers") or ():
        for resource, count in _asked(container):
            taken[resource] = taken.get(resource, 0) + count
    for container in spec.get("initContainers") or ():
        for resource, count in _asked(container):
            taken[resource] = max(taken.get(resource, 0), count)
    return tuple(sorted((resource, count) for resource, count in taken.items() if count))


def free(nodes: Iterable[NodeSeen], pods: Iterable[tuple[str, Iterable[tuple[str, int]]]]) -> dict[str, int]:
    """How many GPUs of each accelerator are free on the nodes that count; `pods` are the node of each pod that has not
    ended, and what it takes. What is taken beyond what a node has leaves 0 there, and takes nothing from others.
    """
    taken: dict[tuple[str, str], int] = {}
    for node, asked in pods:
        for resource, count in asked:
            taken[node, resource] = taken.get((node, resource), 0) + count
    left: dict[str, int] = {}
    for each in nodes:
        for gpus in each.gpus if each.counts else ():
            rest = max(0, gpus.count - taken.get((each.name, gpus.resource), 0))
            left[gpus.accelerator] = left.get(gpus.accelerator, 0) + rest
    return left


def _asked(container: Mapping[str, Any]) -> Iterable[tuple[str, int]]:
    resources = container.get("resources") or {}
    # Of what cannot be shared, a limit is a request too.
    return _counts({**(resources.get("limits") or {}), **(resources.get("requests") or {})})


def _counts(resources: Mapping[str, Any] | None) -> Iterable[tuple[str, int]]:
    for resource, amount in (resources or {}).items():
        if resource.endswith(_RESOURCE) and str(amount).isdecimal():
            yield resource, int(amount)

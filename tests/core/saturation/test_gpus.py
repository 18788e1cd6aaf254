"""The GPUs of nodes and pods, and what is left."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.saturation.gpus import Gpus, NodeSeen, accelerator_name, free, gpus_of, node_seen
from vllm_chill.core.selectors import Selector, selector

Json = dict[str, Any]
NVIDIA, AMD = "nvidia.com/gpu", "amd.com/gpu"


@pytest.mark.parametrize(
    ("product", "name"),
    [
        ("NVIDIA-H100-80GB-HBM3", "H100"),
        ("NVIDIA-H100-PCIe", "H100"),
        ("NVIDIA-H100-NVL", "H100"),
        ("NVIDIA-H200", "H200"),
        ("NVIDIA-A100-PCIE-80GB", "A100"),
        ("NVIDIA-A100-SXM4-40GB", "A100"),
        ("A100-SXM4-80GB", "A100"),
        ("NVIDIA-A100-SXM4-80GB-SHARED", "A100"),
        ("NVIDIA-A100-SXM4-80GB-MIG-1g.10gb", "A100"),
        ("NVIDIA-L40S", "L40S"),
        ("NVIDIA-L4-SHARED", "L4"),
        ("NVIDIA-GH200-480GB", "GH200"),
        ("NVIDIA-GeForce-RTX-4090", "RTX-4090"),
        ("NVIDIA-RTX-A6000", "RTX-A6000"),
        ("Tesla-T4", "T4"),
        ("Tesla-V100-SXM2-16GB", "V100"),
        ("AMD-MI300X-192G", "MI300X"),
        ("AMD_Instinct_MI300X_OAM", "MI300X"),
        ("Intel-Gaudi-2-96GB", "Gaudi-2"),
        ("nvidia-h100-80gb", "H100"),
        ("H100", "H100"),
        ("NVIDIA", "NVIDIA"),
        ("", ""),
    ],
)
def test_an_accelerator_is_called(product: str, name: str) -> None:
    assert accelerator_name(product) == name
    assert accelerator_name(name) == name


def node(
    name: str = "n", *, gpus: dict[str, str] | None = None, labels: dict[str, str] | None = None, **spec: object
) -> Json:
    conditions = [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": "True"}]
    allocatable = {"cpu": "16", "memory": "1Gi", **({NVIDIA: "8"} if gpus is None else gpus)}
    labels = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"} if labels is None else labels
    status = {"allocatable": allocatable, "conditions": conditions}
    return {"metadata": {"name": name, "labels": labels}, "spec": spec, "status": status}


def test_a_node_is_kept_with_its_gpus_and_what_they_are() -> None:
    assert node_seen(node(), Selector()) == NodeSeen("n", (Gpus(NVIDIA, 8, "H100"),), counts=True)


def test_of_two_makers_each_has_its_own_product() -> None:
    labels = {"nvidia.com/gpu.product": "NVIDIA-L4", "amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM"}
    seen = node_seen(node(gpus={NVIDIA: "1", AMD: "2"}, labels=labels), Selector())
    assert seen == NodeSeen("n", (Gpus(NVIDIA, 1, "L4"), Gpus(AMD, 2, "MI300X")), counts=True)
    assert (seen.accelerator([AMD]), seen.accelerator([]), seen.accelerator(["intel.com/gpu"])) == ("MI300X", "L4", "")


@pytest.mark.parametrize(
    ("item", "gpus"),
    [
        pytest.param(node(gpus={}, labels={}), None, id="a node without GPUs is not kept"),
        pytest.param(node(labels={}), (Gpus(NVIDIA, 8),), id="one whose GPUs nobody names"),
        pytest.param(node(gpus={}), (Gpus(NVIDIA, 0, "H100"),), id="one whose device plugin is away"),
        pytest.param(node(gpus={NVIDIA: "many"}, labels={}), None, id="what is no number is none"),
        pytest.param(node(gpus={"nvidia.com/mig-1g.10gb": "7"}, labels={}), None, id="slices are not counted"),
        pytest.param({"metadata": {"name": "n"}}, None, id="a node that says nothing"),
    ],
)
def test_a_nodes_gpus_are(item: Json, gpus: tuple[Gpus, ...] | None) -> None:
    seen = node_seen(item, Selector())
    assert (None if seen is None else seen.gpus) == gpus


def test_a_node_counts_if_pods_can_be_placed_on_it_and_it_is_chosen() -> None:
    pool = selector("pool in (gpu),!spot")
    chosen = node(labels={"pool": "gpu"})
    for item, counts in (
        (chosen, True),
        (node(labels={"pool": "gpu", "spot": ""}), False),
        (node(labels={}), False),
        (node(labels={"pool": "gpu"}, unschedulable=True), False),
    ):
        seen = node_seen(item, pool)
        assert seen is not None
        assert seen.counts is counts
    chosen["status"]["conditions"][1]["status"] = "Unknown"
    away = node_seen(chosen, pool)
    assert away is not None
    assert away.counts is False


def asks(**gpus: int) -> Json:
    return {"resources": {"limits": {f"{maker}.com/gpu": str(count) for maker, count in gpus.items()}}}


@pytest.mark.parametrize(
    ("spec", "gpus"),
    [
        pytest.param({}, (), id="no containers"),
        pytest.param({"containers": [{}, asks()]}, (), id="none"),
        pytest.param(
            {"containers": [asks(nvidia=4), asks(nvidia=1, amd=2)]}, ((AMD, 2), (NVIDIA, 5)), id="what all of them do"
        ),
        pytest.param(
            {"containers": [asks(nvidia=1)], "initContainers": [asks(nvidia=2), asks(nvidia=2)]},
            ((NVIDIA, 2),),
            id="what one before them takes, if that is more",
        ),
        pytest.param(
            {"containers": [asks(nvidia=4)], "initContainers": [asks(nvidia=2)]},
            ((NVIDIA, 4),),
            id="and not if it is less",
        ),
        pytest.param(
            {"containers": [{"resources": {"requests": {"acme.io/gpu": 3, "cpu": 1}}}]},
            (("acme.io/gpu", 3),),
            id="anybody's, by its requests",
        ),
        pytest.param({"containers": [asks(nvidia=0)]}, (), id="zero is none"),
    ],
)
def test_a_pod_takes(spec: Json, gpus: tuple[tuple[str, int], ...]) -> None:
    assert gpus_of(spec) == gpus


def test_what_every_pod_takes_is_not_free() -> None:
    nodes = [
        NodeSeen("a", (Gpus(NVIDIA, 8, "H100"),), counts=True),
        NodeSeen("b", (Gpus(NVIDIA, 8, "H100"), Gpus(AMD, 4, "MI300X")), counts=True),
        NodeSeen("c", (Gpus(NVIDIA, 8, "H100"),), counts=False),
        NodeSeen("d", (Gpus(NVIDIA, 2),), counts=True),
    ]
    pods = [
        ("a", [(NVIDIA, 3)]),
        ("a", [(NVIDIA, 2)]),
        ("b", [(NVIDIA, 1), (AMD, 9)]),
        ("c", [(NVIDIA, 8)]),
        ("elsewhere", [(NVIDIA, 8)]),
    ]
    assert free(nodes, pods) == {"H100": 3 + 7, "MI300X": 0, "": 2}
    assert free([], pods) == {}


counts = st.integers(0, 16)


@given(
    st.lists(st.tuples(st.sampled_from("ABC"), counts), max_size=6),
    st.lists(st.tuples(st.integers(0, 5), counts), max_size=20),
)
def test_there_are_never_more_free_than_there_are_nor_fewer_than_none(
    nodes: list[tuple[str, int]], pods: list[tuple[int, int]]
) -> None:
    seen = [NodeSeen(str(i), (Gpus(NVIDIA, count, name),), counts=True) for i, (name, count) in enumerate(nodes)]
    all_free = free(seen, [])
    left = free(seen, [(str(i), [(NVIDIA, count)]) for i, count in pods])
    assert left.keys() == all_free.keys()
    assert all(0 <= left[name] <= all_free[name] for name in left)
    fitting = [(i, min(1, nodes[i][1])) for i in {i for i, _ in pods} if i < len(nodes)]
    exact = free(seen, [(str(i), [(NVIDIA, count)]) for i, count in fitting])
    assert sum(all_free.values()) - sum(exact.values()) == sum(count for _, count in fitting)

"""A real API server knows variants: it takes llm-d's, and ours, refuses what is not good, and shows how one does."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.models import install_crd, table_of
from vllm_chill.adapters.kubernetes.client import ApiError
from vllm_chill.api.crd import VARIANTS
from vllm_chill.api.variant import API_VERSION, KIND, PLURAL, parse_variant
from vllm_chill.core.objects import Json

_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
# What llm-d's definition lets a manifest say, and what that of its earlier versions does.
UPSTREAM: Json = {
    "scaleTargetRef": {"kind": "Deployment", "name": "qwen-32b-premium-h100"},
    "modelID": "Qwen/Qwen3-32B",
    "variantCost": "80.0",
}
EARLIER: Json = {
    "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "qwen"},
    "modelID": "default/default",
    "modelProfile": {
        "accelerators": [
            {
                "acc": "A100",
                "accCount": 1,
                "maxBatchSize": 4,
                "atTokens": 256,
                "perfParms": {
                    "decodeParms": {"alpha": "20.58", "beta": "0.41"},
                    "prefillParms": {"gamma": "5.2", "delta": "0.1"},
                },
            }
        ],
        "batching": "continuous",
    },
    "sloClassRef": {"name": "service-classes-config", "key": "premium.yaml"},
}
FULL: Json = {
    "scaleTargetRef": {"apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet", "name": "big"},
    "modelID": "org/big",
    "minReplicas": 0,
    "maxReplicas": 8,
    "scaleToZero": {"enabled": True, "retentionPeriod": "15m"},
    "actuation": "direct",
}
BAD: Json = {
    "scaleTargetRef": {"kind": "Deployment"},
    "modelID": "",
    "variantCost": "cheap",
    "modelProfile": {"accelerators": [{"accCount": 0}]},
    "minReplicas": -1,
    "maxReplicas": 0,
    "scaleToZero": {"enabled": "yes", "retentionPeriod": "soon"},
    "actuation": "both",
}
_LABELS = {"inference.optimization/acceleratorName": "H100", "wva.llmd.ai/controller-instance": "blue"}


@pytest.fixture
async def path(cluster: Cluster) -> str:
    """Where the variants of the namespace are, once the cluster knows them."""
    await install_crd(cluster.api, VARIANTS)
    return f"/apis/{API_VERSION}/namespaces/{cluster.namespace}/{PLURAL}"


def variant(name: str, spec: Json) -> Json:
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "labels": _LABELS},
        "spec": spec,
    }


async def test_the_definition_has_nothing_that_the_server_finds_fault_with(cluster: Cluster, path: str) -> None:
    found = await cluster.api.call("GET", f"{_CRDS}/{VARIANTS.name}")
    conditions = {one["type"]: one["status"] for one in found["status"]["conditions"]}
    assert conditions["Established"] == conditions["NamesAccepted"] == "True"
    assert conditions.get("NonStructuralSchema", "False") == "False"


@pytest.mark.parametrize("spec", [UPSTREAM, EARLIER, FULL], ids=["upstream", "earlier", "full"])
async def test_every_field_is_taken_and_kept_and_nothing_is_filled_in(cluster: Cluster, path: str, spec: Json) -> None:
    kept = await cluster.api.call("POST", path, body=variant("small", spec))
    assert kept["spec"] == spec
    assert "status" not in kept
    assert parse_variant(kept).spec == parse_variant(variant("small", spec)).spec


async def test_a_variant_can_be_applied_as_kubectl_and_helm_do(cluster: Cluster, path: str) -> None:
    query = {"fieldManager": "tests", "force": "true"}
    for cost in ("80.0", "40.0"):
        given = variant("small", {**UPSTREAM, "variantCost": cost})
        kept = await cluster.api.call("PATCH", f"{path}/small", query=query, body=given, patch="apply")
        assert kept["spec"]["variantCost"] == cost


async def test_bad_fields_are_told_one_by_one(cluster: Cluster, path: str) -> None:
    with pytest.raises(ApiError) as refused:
        await cluster.api.call("POST", path, body=variant("bad", BAD))
    assert refused.value.status == 422
    assert [field for field in BAD if f"spec.{field}" not in refused.value.message] == []
    assert 'spec.actuation: Unsupported value: "both": supported values: "metrics", "direct"' in refused.value.message


async def test_who_writes_the_spec_may_not_say_how_it_does_and_the_other_way_round(cluster: Cluster, path: str) -> None:
    made = await cluster.api.call("POST", path, body={**variant("small", UPSTREAM), "status": {"currentReplicas": 3}})
    assert "status" not in made
    await cluster.patch(f"{path}/small/status", {"status": {"currentReplicas": 2}, "spec": {"minReplicas": 5}})
    kept = await cluster.api.call("GET", f"{path}/small")
    assert kept["status"] == {"currentReplicas": 2}
    assert kept["spec"] == UPSTREAM
    assert kept["metadata"]["generation"] == 1


async def test_kubectl_shows_what_is_scaled_and_how_it_does(cluster: Cluster, path: str) -> None:
    await cluster.api.call("POST", path, body=variant("small", UPSTREAM))
    since = {"lastTransitionTime": "2026-03-02T12:00:00Z", "reason": "MetricsFound", "message": "", "status": "True"}
    status: dict[str, Any] = {
        "desiredOptimizedAlloc": {"lastRunTime": "2026-03-02T12:00:00Z", "accelerator": "H100", "numReplicas": 3},
        "actuation": {"applied": True},
        "currentReplicas": 2,
        "saturation": 0.91,
        "observedGeneration": 1,
        "decision": {
            "time": "2026-03-02T12:00:00Z",
            "reason": "Saturated",
            "trail": [
                {"stage": "analyze", "text": "so much is lacking"},
                {"stage": "optimize", "text": "b", "replicas": 3},
            ],
        },
        "conditions": [{"type": "MetricsAvailable", **since}],
    }
    await cluster.patch(f"{path}/small/status", {"status": status})
    kept = await cluster.api.call("GET", f"{path}/small")
    assert kept["status"] == status
    table = await table_of(cluster.kubeconfig, f"{path}/small")
    [row] = table["rows"]
    columns = dict(zip((column["name"] for column in table["columnDefinitions"]), row["cells"], strict=True))
    del columns["Age"]
    assert columns == {
        "Name": "small",
        "Target": "qwen-32b-premium-h100",
        "Model": "Qwen/Qwen3-32B",
        "Accelerator": "H100",
        "Current": 2,
        "Optimized": 3,
        "MetricsReady": "True",
    }

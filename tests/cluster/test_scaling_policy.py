"""A real API server knows scaling policies: it takes what is good, refuses what is not, and shows how one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.cluster import Cluster
from tests.cluster.models import install_crd, table_of
from vllm_chill.adapters.kubernetes.client import ApiError
from vllm_chill.api.crd import POLICIES
from vllm_chill.api.scaling_policy import API_VERSION, KIND, PLURAL, parse_policy
from vllm_chill.core.objects import Json

_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
SAMPLE = Path(__file__).parents[2] / "deploy" / "example" / "scaling" / "policy.yaml"
FULL: Json = {
    "scaleTargetRef": {"kind": "StatefulSet", "name": "vllm", "uid": "1", "resourceVersion": "2", "fieldPath": "spec"},
    "maxReplicas": 8,
    "scalingRules": [
        {"metric": "latency", "threshold": 1500.5, "aggregation": "e2e", "percentile": 99.9, "window": "2m"},
        {"metric": "kv_cache_usage", "threshold": 90, "target": 70, "aggregation": "max"},
        {"metric": "tokens_per_second", "threshold": 1000, "window": 30},
        {"metric": "promql", "threshold": 5, "query": "sum(vllm:num_requests_waiting)", "aggregation": "sum"},
    ],
    "behavior": {
        "scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Min"},
        "scaleDown": {"policies": [{"type": "Percent", "value": 10, "periodSeconds": 60}]},
    },
    "tolerance": 0.05,
    "pollingInterval": 30,
    "idleTimeout": "10m",
    "fallback": {"replicas": 2, "failureThreshold": 5},
    "schedule": [
        {"start": "0 8 * * mon-fri", "end": "0 18 * * mon-fri", "timezone": "Europe/Berlin", "minReplicas": 2}
    ],
    "paused": False,
}
BAD: Json = {
    "scaleTargetRef": {"kind": "Deployment"},
    "minReplicas": -1,
    "maxReplicas": 0,
    "scalingRules": [{"metric": "queue", "threshold": 0}],
    "behavior": {"scaleDown": {"policies": []}},
    "tolerance": 2,
    "pollingInterval": "0s",
    "idleTimeout": "soon",
    "fallback": {"replicas": 0},
    "schedule": [{"start": "daily", "end": "0 8 * * *", "minReplicas": 1}],
    "paused": "yes",
}


@pytest.fixture
async def path(cluster: Cluster) -> str:
    """Where the policies of the namespace are, once the cluster knows them."""
    await install_crd(cluster.api, POLICIES)
    return f"/apis/{API_VERSION}/namespaces/{cluster.namespace}/{PLURAL}"


def policy(spec: Json) -> Json:
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "full"}, "spec": spec}


async def test_the_definition_has_nothing_that_the_server_finds_fault_with(cluster: Cluster, path: str) -> None:
    found = await cluster.api.call("GET", f"{_CRDS}/{POLICIES.name}")
    conditions = {one["type"]: one["status"] for one in found["status"]["conditions"]}
    assert conditions["Established"] == conditions["NamesAccepted"] == "True"
    assert conditions.get("NonStructuralSchema", "False") == "False"


async def test_the_sample_and_every_field_are_taken_and_kept(cluster: Cluster, path: str) -> None:
    for given in (yaml.safe_load(SAMPLE.read_text()), policy(FULL)):
        kept = await cluster.api.call("POST", path, body=given)
        assert kept["spec"] == given["spec"]
        assert parse_policy(kept).spec == parse_policy(given).spec


async def test_ten_bad_fields_are_told_one_by_one(cluster: Cluster, path: str) -> None:
    with pytest.raises(ApiError) as refused:
        await cluster.api.call("POST", path, body=policy(BAD))
    assert [field for field in BAD if f"spec.{field}" not in refused.value.message] == []


async def test_kubectl_shows_its_bounds_and_how_it_does(cluster: Cluster, path: str) -> None:
    await cluster.api.call("POST", path, body=yaml.safe_load(SAMPLE.read_text()))
    conditions = [{"type": "Active", "status": "True", "reason": "a"}, {"type": "Conflict", "status": "False"}]
    status: dict[str, Any] = {"currentReplicas": 2, "desiredReplicas": 3, "conditions": conditions}
    status |= {"metrics": [{"metric": "queue_length", "current": 12.5, "target": 10}], "observedGeneration": 1}
    status |= {"trail": [{"stage": "recommend", "replicas": 3, "reason": "so 3 replicas"}]}
    await cluster.patch(f"{path}/example-policy/status", {"status": status})
    kept = await cluster.api.call("GET", f"{path}/example-policy")
    assert kept["status"] == status
    assert parse_policy(kept).status.desired_replicas == 3
    table = await table_of(cluster.kubeconfig, f"{path}/example-policy")
    [row] = table["rows"]
    columns = dict(zip((column["name"] for column in table["columnDefinitions"]), row["cells"], strict=True))
    del columns["Age"]
    assert columns == {
        "Name": "example-policy",
        "Target": "meta-llama/Llama-2-70b-hf",
        "Min": 1,
        "Max": 10,
        "Current": 2,
        "Desired": 3,
        "Active": "True",
    }

"""A real API server takes every manifest, and keeps every field of it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.cluster.cluster import Cluster, path_of
from tests.deploy.kustomized import MANIFESTS
from vllm_chill.adapters.kubernetes.client import ApiError

# Nothing is of these kinds until their definitions are there.
_UNKNOWN = ("VLLMModel", "vLLMScalingPolicy", "VariantAutoscaling", "ServiceMonitor", "PrometheusRule", "ScaledObject")


def manifests() -> list[Any]:
    return [
        pytest.param(item, id=f"{file.parent.name}-{item['kind']}")
        for file in MANIFESTS
        for item in yaml.safe_load_all(file.read_text())
        if isinstance(item, dict) and "kind" in item  # what else there is, is for kustomize and Helm
        if item["kind"] not in ("Kustomization", "Component", *_UNKNOWN)
    ]


def dropped(sent: Any, kept: Any, path: str = "") -> list[str]:
    """What of `sent` is not in `kept`: a server lets go of the fields that it does not know."""
    if isinstance(sent, dict) and isinstance(kept, dict):
        return [why for key, value in sent.items() for why in dropped(value, kept.get(key), f"{path}.{key}")]
    if isinstance(sent, list) and isinstance(kept, list) and len(sent) == len(kept):
        return [why for i, pair in enumerate(zip(sent, kept, strict=True)) for why in dropped(*pair, f"{path}[{i}]")]
    return [] if sent == kept else [f"{path}: {sent!r} became {kept!r}"]


# What versions were called, with the same fields, before the minor version of Kubernetes that has them.
_BEFORE = {"autoscaling/v2": (23, "autoscaling/v2beta2"), "policy/v1": (21, "policy/v1beta1")}


async def known_as(version: str, cluster: Cluster) -> str:
    """What this server calls a version."""
    since, before = _BEFORE.get(version, (0, version))
    minor = int((await cluster.api.call("GET", "/version"))["minor"].rstrip("+"))
    return version if minor >= since else before


@pytest.mark.parametrize("item", manifests())
async def test_the_api_server_takes(item: dict[str, Any], cluster: Cluster) -> None:
    if "namespace" in item["metadata"]:
        item = {**item, "metadata": {**item["metadata"], "namespace": cluster.namespace}}
    item = {**item, "apiVersion": await known_as(item["apiVersion"], cluster)}
    try:
        path = path_of(item, cluster.namespace)
        kept = await cluster.api.call("POST", path, query={"dryRun": "All"}, body=item)
    except ApiError as error:
        # Another test may have made what is cluster-wide.
        assert error.reason == "AlreadyExists"  # noqa: PT017
        assert item["kind"] in {"Namespace", "CustomResourceDefinition"}
        if item["kind"] == "Namespace":
            return
        path = f"{path}/{item['metadata']['name']}"
        there = (await cluster.api.call("GET", path))["metadata"]["resourceVersion"]
        item = {**item, "metadata": {**item["metadata"], "resourceVersion": there}}
        kept = await cluster.api.call("PUT", path, query={"dryRun": "All"}, body=item)
    assert dropped(item, kept) == []

"""Objects as a cluster has them, for tests of what is seen of them."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
NAMESPACE = "ai-apps"


def owned(kind: str, name: str, uid: str, api_version: str = "apps/v1") -> list[Json]:
    return [{"apiVersion": api_version, "kind": kind, "name": name, "uid": uid, "controller": True}]


def pod(
    name: str, owners: list[Json] | None = None, *, node: str = "", gpus: int = 1, ready: bool = True,
    namespace: str = NAMESPACE, address: str = "10.0.0.1", labels: dict[str, str] | None = None, **meta: object,
) -> Json:  # fmt: skip
    ports = [{"name": "http", "containerPort": 8000}]
    limits = {"nvidia.com/gpu": str(gpus)} if gpus else {}
    condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": "2026-01-01T00:00:10Z"}
    return {
        "metadata": {
            "name": name, "namespace": namespace, "uid": f"uid-of-{name}", "labels": labels or {},
            "ownerReferences": owners or [], **meta,
        },
        "spec": {
            **({"nodeName": node} if node else {}),
            "containers": [{"name": "vllm", "ports": ports, "resources": {"limits": limits}}],
        },
        "status": {"phase": "Running", "podIP": address, "conditions": [condition]},
    }  # fmt: skip


def workload(
    name: str = "vllm", *, replicas: int | None = 2, gpus: int = 1, namespace: str = NAMESPACE, **meta: object
) -> Json:
    limits = {"nvidia.com/gpu": str(gpus)} if gpus else {}
    spec: Json = {"template": {"spec": {"containers": [{"name": "vllm", "resources": {"limits": limits}}]}}}
    if replicas is not None:
        spec["replicas"] = replicas
    return {"metadata": {"name": name, "namespace": namespace, **meta}, "spec": spec, "status": {}}


def node(name: str, *, gpus: int = 8, product: str = "NVIDIA-H100-80GB-HBM3", **spec: object) -> Json:
    return {
        "metadata": {"name": name, "labels": {"nvidia.com/gpu.product": product} if product else {}},
        "spec": spec,
        "status": {
            "allocatable": {"nvidia.com/gpu": str(gpus)},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }

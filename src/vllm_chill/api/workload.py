"""A model's workload: the Deployment and the Service that are made for it, as the JSON that the API server takes. Pure.

The rule: the same model and the same defaults give the same objects, byte for byte, and nothing that is empty. How
many replicas there are is not said here, as that belongs to the target's controller.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_chill.api.engine_args import own_args
from vllm_chill.api.model_spec import VLLMModelSpec
from vllm_chill.api.spec_types import seconds
from vllm_chill.api.vllm_model import API_VERSION, GROUP, KIND, VLLMModel
from vllm_chill.core.catalogue import SERVICE_PORT
from vllm_chill.core.objects import Json, digest

SPEC_HASH = f"{GROUP}/spec-hash"
ENGINE_PORT = 8000
# The release whose flags engine_args was checked with. A version and not `latest`: another engine is a decision, and
# a node that has pulled it does not look for a newer one while callers wait.
DEFAULT_IMAGE = "vllm/vllm-openai:v0.32.0"
CONTAINER = "vllm"

_LONGEST_NAME = 63
_CACHE_PATH = "/cache"
_PROBE_PERIOD_SECONDS = 2
_LEAST_STARTUP_SECONDS = 3600.0
_TOKEN_SECRET = {"name": "hf-token", "key": "token", "optional": True}


@dataclass(frozen=True, slots=True)
class WorkloadDefaults:
    """What the proxy's settings say for models that do not: GPUs of a replica, GiB of its weights in the machine's
    memory, and for how many seconds a start may take.
    """

    gpu_count: int = 1
    cpu_offload_gb: float = 0
    start_seconds: float = 1800


def workload_name(model_name: str) -> str:
    """The name of a model's Deployment and Service: `vllm-` and the model's, as a DNS label that a Service may have.

    A name that has to be changed or cut for that gets a part of its hash, so that two models never share one.
    """
    name = f"vllm-{model_name}"
    label = re.sub(r"[^a-z0-9-]", "-", name)
    if label == name and len(name) <= _LONGEST_NAME and not name.endswith("-"):
        return name
    suffix = hashlib.sha256(model_name.encode()).hexdigest()[:8]
    return f"{label[: _LONGEST_NAME - 9].rstrip('-')}-{suffix}"


def deployment_of(model: VLLMModel, namespace: str, defaults: WorkloadDefaults) -> Json:
    """The model's Deployment, without `replicas`."""
    spec = model.spec
    template = {
        "metadata": _given({"labels": {**spec.labels, **_labels(model)}, "annotations": dict(spec.annotations)}),
        "spec": _pod(model.name, spec, defaults),
    }
    body: Json = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(model, namespace),
        "spec": {
            "selector": {"matchLabels": _selector(model)},
            "strategy": _strategy(spec),
            "progressDeadlineSeconds": _startup_seconds(spec, defaults),
            "template": template,
        },
    }
    body["metadata"]["annotations"] = {SPEC_HASH: spec_hash(body)}
    return body


def service_of(model: VLLMModel, namespace: str) -> Json:
    """The model's Service: one name for all of its pods, for whoever asks them past the proxy."""
    port = {"name": "http", "port": SERVICE_PORT, "targetPort": "http", "protocol": "TCP"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(model, namespace),
        "spec": {"type": "ClusterIP", "selector": _selector(model), "ports": [port]},
    }


def spec_hash(deployment: Mapping[str, Any]) -> str:
    """A digest of a Deployment's pod template: another one means that its pods are to be replaced."""
    return digest(deployment["spec"]["template"])


# --- names and labels ---


def _metadata(model: VLLMModel, namespace: str) -> Json:
    owner = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": model.name,
        "uid": model.metadata.uid,
        "controller": True,
        # Nobody has to wait with the end of a model until its pods have ended.
        "blockOwnerDeletion": False,
    }
    return {
        "name": workload_name(model.name),
        "namespace": namespace,
        "labels": {**model.spec.labels, **_labels(model)},
        # A cluster-scoped owner may own what is in a namespace. From a file there is no object to own anything.
        **({"ownerReferences": [owner]} if model.metadata.uid else {}),
    }


def _selector(model: VLLMModel) -> dict[str, str]:
    name = model.name if len(model.name) <= _LONGEST_NAME else workload_name(model.name)
    return {"app.kubernetes.io/name": "vllm", "app.kubernetes.io/instance": name}


def _labels(model: VLLMModel) -> dict[str, str]:
    more = {"app.kubernetes.io/managed-by": "vllm-chill", "app.kubernetes.io/component": "engine"}
    return {**_selector(model), **more}


def _strategy(spec: VLLMModelSpec) -> Json:
    # A new pod would wait for the GPU that the old one holds, so it never comes before.
    if spec.max_replicas == 1:
        return {"type": "Recreate"}
    return {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}


# --- the pod ---


def _pod(name: str, spec: VLLMModelSpec, defaults: WorkloadDefaults) -> Json:
    return {
        "containers": [_container(name, spec, defaults)],
        "volumes": [
            {"name": "cache", **_cache_volume(spec)},
            # PyTorch's workers share tensors here; the container runtime's 64 MiB is too little for that.
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": spec.shm_size or "16Gi"}},
        ],
        # vLLM reads VLLM_* variables as its own settings; Kubernetes must not add any.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": spec.termination_grace_period_seconds,
        **({} if spec.service_account_name else {"automountServiceAccountToken": False}),
        **_given(
            {
                "serviceAccountName": spec.service_account_name,
                "nodeSelector": dict(spec.node_selector),
                "tolerations": [dict(one) for one in spec.tolerations],
                "affinity": spec.affinity,
                "runtimeClassName": spec.runtime_class_name,
                "priorityClassName": spec.priority_class_name,
                "imagePullSecrets": [{"name": one.name} for one in spec.image_pull_secrets],
            }
        ),
    }


def _container(name: str, spec: VLLMModelSpec, defaults: WorkloadDefaults) -> Json:
    own = own_args(spec, gpu_count=defaults.gpu_count, cpu_offload_gb=defaults.cpu_offload_gb, name=name)
    mount = {"name": "cache", "mountPath": _CACHE_PATH}
    if spec.cache is not None and spec.cache.pvc is not None and spec.cache.pvc.sub_path is not None:
        mount["subPath"] = spec.cache.pvc.sub_path
    return {
        "name": CONTAINER,
        "image": spec.image or DEFAULT_IMAGE,
        # Kubernetes would read $$ and $(NAME) in them; extraArgs may want that.
        "args": [*(one.replace("$", "$$") for one in (*own, "--port", str(ENGINE_PORT))), *spec.extra_args],
        "env": _environment(spec),
        "ports": [{"name": "http", "containerPort": ENGINE_PORT, "protocol": "TCP"}],
        **_probes(spec, defaults),
        **_given({"resources": _resources(spec, defaults)}),
        "volumeMounts": [mount, {"name": "shm", "mountPath": "/dev/shm"}],  # noqa: S108 - the pod's own
    }


def _environment(spec: VLLMModelSpec) -> list[Json]:
    token, key = spec.hugging_face_token, spec.api_key
    ours: list[Json] = [
        {"name": "HF_HOME", "value": f"{_CACHE_PATH}/huggingface"},
        {"name": "VLLM_CACHE_ROOT", "value": f"{_CACHE_PATH}/vllm"},
        _secret(
            "HF_TOKEN", _TOKEN_SECRET if token is None else {"name": token.name, "key": token.key, "optional": True}
        ),
    ]
    if key is not None:
        ours.append(_secret("VLLM_API_KEY", {"name": key.name, "key": key.key}))
    if spec.lora_on_demand:
        ours.append({"name": "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "value": "True"})
    # As the API server keeps them: an empty value is none.
    given = [_given(one.model_dump(by_alias=True)) for one in spec.env]
    theirs = {one["name"] for one in given}
    return [*(one for one in ours if one["name"] not in theirs), *given]


def _secret(name: str, ref: Json) -> Json:
    return {"name": name, "valueFrom": {"secretKeyRef": ref}}


def _cache_volume(spec: VLLMModelSpec) -> Json:
    cache = spec.cache
    if cache is not None and cache.pvc is not None:
        return {"persistentVolumeClaim": {"claimName": cache.pvc.claim_name}}
    if cache is not None and cache.host_path is not None:
        return {"hostPath": {"path": cache.host_path.path, "type": "DirectoryOrCreate"}}
    limit = cache.empty_dir.size_limit if cache is not None and cache.empty_dir is not None else None
    return {"emptyDir": _given({"sizeLimit": limit})}


def _resources(spec: VLLMModelSpec, defaults: WorkloadDefaults) -> Json:
    # Texts, as the API server keeps them.
    requests = {name: str(quantity) for name, quantity in spec.resources.requests.items()}
    limits = {name: str(quantity) for name, quantity in spec.resources.limits.items()}
    gpus = spec.gpus(defaults.gpu_count)
    if gpus and spec.gpu_resource not in requests:
        limits.setdefault(spec.gpu_resource, str(gpus))
    return _given({"requests": requests, "limits": limits})


def _startup_seconds(spec: VLLMModelSpec, defaults: WorkloadDefaults) -> int:
    if spec.startup_timeout is not None:
        return max(_PROBE_PERIOD_SECONDS, math.ceil(seconds(spec.startup_timeout)))
    return math.ceil(max(_LEAST_STARTUP_SECONDS, defaults.start_seconds))


def _probes(spec: VLLMModelSpec, defaults: WorkloadDefaults) -> Json:
    asks = {"httpGet": {"path": "/health", "port": "http"}, "timeoutSeconds": 5}
    often = {**asks, "periodSeconds": _PROBE_PERIOD_SECONDS}
    tries = math.ceil(_startup_seconds(spec, defaults) / _PROBE_PERIOD_SECONDS)
    over = spec.probes
    return {
        "startupProbe": _laid_over({**often, "failureThreshold": tries}, over.startup),
        "readinessProbe": _laid_over({**often, "failureThreshold": 3}, over.readiness),
        "livenessProbe": _laid_over(
            {**asks, "timeoutSeconds": 10, "periodSeconds": 10, "failureThreshold": 6}, over.liveness
        ),
    }


def _laid_over(probe: Json, given: Mapping[str, Any] | None) -> Json:
    given = given or {}
    asks_otherwise = any(kind in given for kind in ("exec", "tcpSocket", "grpc"))
    kept = {name: value for name, value in probe.items() if not (asks_otherwise and name == "httpGet")}
    return {**kept, **given}


def _given(fields: Mapping[str, Any]) -> Json:
    """Those fields that say anything."""
    return {name: value for name, value in fields.items() if value not in (None, "", {}, [], ())}

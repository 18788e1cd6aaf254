"""A sound installation as a picture, made of deploy/, and ways to spoil it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from vllm_chill.core.doctor.checks import found_by
from vllm_chill.core.doctor.finding import Check, Finding, Outcome
from vllm_chill.core.doctor.picture import Asked, Picture, Rights, Server
from vllm_chill.core.doctor.rights import needs_of_target
from vllm_chill.core.objects import Json

DEPLOY = Path(__file__).parents[3] / "deploy"
ASKED = Asked()
BY_SERVICE = replace(ASKED, direct=False)
NEEDS = needs_of_target("ai-apps", "vllm")


def manifest(name: str) -> Json:
    """The one object in a file of deploy/."""
    [item] = yaml.safe_load_all((DEPLOY / name).read_text())
    return dict(item)


def node(name: str = "node-0", **more: Any) -> Json:
    """A node with eight GPUs."""
    allocatable = {"cpu": "16", "memory": "128Gi", "nvidia.com/gpu": "8"}
    return {"metadata": {"name": name, "labels": {"pool": "gpu"}}, "status": {"allocatable": allocatable}, **more}


DISK = {
    "metadata": {"name": "disk", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
    "volumeBindingMode": "WaitForFirstConsumer",
}


def named(name: str, **fields: Any) -> Json:
    """An object of the namespace."""
    return {"metadata": {"name": name, "namespace": "ai-apps"}, **fields}


def sound(**changes: Any) -> Picture:
    """What deploy/ and deploy/example come to, with changes."""
    return replace(
        Picture(
            server=Server("https://cluster:6443", "v1.33.1", 0.2),
            target=manifest("example/deployment.yaml"),
            rights=Rights("whoever asks", frozenset(), NEEDS),
            deployments=(manifest("example/deployment.yaml"), manifest("deployment.yaml")),
            services=(manifest("example/service.yaml"), manifest("service.yaml")),
            ingresses=(manifest("ingress.yaml"),),
            nodes=(node(),),
            storage_classes=(DISK,),
            claims=(manifest("example/cache.yaml"),),
        ),
        **changes,
    )


def merged(item: Any, change: Any) -> Any:
    """A merge patch, in which a list of containers is one for the first of them."""
    if isinstance(item, list) and isinstance(change, dict):
        return [merged(item[0], change), *item[1:]]
    if not isinstance(change, dict) or not isinstance(item, dict):
        return change
    kept = {key: value for key, value in item.items() if change.get(key, "") is not None}
    return {**kept, **{key: merged(kept.get(key), value) for key, value in change.items() if value is not None}}


def target(**spec: Any) -> Json:
    """The target with another spec."""
    return dict(merged(copy.deepcopy(manifest("example/deployment.yaml")), {"spec": spec}))


def pods(**spec: Any) -> Picture:
    """A sound picture but for the spec of the target's pods; `containers` is the engine's."""
    return sound(target=target(template={"spec": spec}))


def engine(**container: Any) -> Picture:
    """A sound picture but for the engine's container."""
    return pods(containers=container)


def proxy(name: str = "vllm-chill", *args: str, **spec: Any) -> Json:
    """The proxy with arguments besides and another spec."""
    item = manifest("deployment.yaml")
    item["metadata"]["name"] = name
    item["spec"]["template"]["spec"]["containers"][0]["args"] += args
    return dict(merged(item, {"spec": spec}))


def ingress(path: str = "", service: str = "", **annotations: str) -> Json:
    """The Ingress with annotations of nginx, and with another first path or Service."""
    item = manifest("ingress.yaml")
    first = item["spec"]["rules"][0]["http"]["paths"][0]
    first["path"] = path or first["path"]
    first["backend"]["service"]["name"] = service or first["backend"]["service"]["name"]
    told = {f"nginx.ingress.kubernetes.io/{key.replace('_', '-')}": value for key, value in annotations.items()}
    item["metadata"]["annotations"] |= told
    return item


def found(check: Check, picture: Any, asked: Asked = ASKED) -> list[Finding]:
    """What one check comes to."""
    return list(found_by([check], asked, picture))


def only(check: Check, picture: Any, asked: Asked = ASKED) -> Finding:
    """The only finding of one check."""
    [finding] = found(check, picture, asked)
    return finding


def is_fine(findings: list[Finding]) -> bool:
    return all(finding.outcome is Outcome.OK for finding in findings)

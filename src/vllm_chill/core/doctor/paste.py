"""Commands for a shell that change what a check has found. Pure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

from vllm_chill.core.objects import Json


def kubectl(namespace: str, *words: str) -> str:
    """A command on a namespace."""
    return shlex.join(["kubectl", "-n", namespace, *words])


def patch(namespace: str, what: str, body: Json) -> str:
    """A change of an object, `what` being `deployment/NAME`: lists of containers and ports are merged by their keys."""
    return kubectl(namespace, "patch", what, "-p", _json(body))


def patch_at(namespace: str, what: str, changes: Sequence[tuple[str, Any]]) -> str:
    """Values to be written at paths of an object (`/spec/replicas`)."""
    body = [{"op": "add", "path": path, "value": value} for path, value in changes]
    return kubectl(namespace, "patch", what, "--type", "json", "-p", _json(body))


def of_container(namespace: str, deployment: str, container: str, change: Json) -> str:
    """A change of one container of a Deployment's pods."""
    return of_pods(namespace, deployment, {"containers": [{"name": container, **change}]})


def of_pods(namespace: str, deployment: str, spec: Json) -> str:
    """A change of the spec of a Deployment's pods."""
    return patch(namespace, f"deployment/{deployment}", {"spec": {"template": {"spec": spec}}})


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))

"""The port that a pod's engine listens on, and its container, as the pod itself tells; Services need not be read for
that. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

METRICS_PORT = 8000
"""vLLM's own, for a pod that declares no port."""
_ANNOTATION = "prometheus.io/port"
_MAIN = "kubectl.kubernetes.io/default-container"


def engine_port(spec: Mapping[str, Any], otherwise: int, names: Sequence[str] = ("http",)) -> int:
    """The first container port that is called by the first of `names` that one is called by, as in deploy/example;
    else one of the number `otherwise`, which is the Service's; else the first that is declared; and if none is, that
    number.
    """
    ports = [
        port
        for container in spec.get("containers") or []
        for port in container.get("ports") or []
        if port.get("protocol", "TCP") == "TCP"
    ]
    called = [port["containerPort"] for name in names for port in ports if port.get("name") == name]
    numbers = [port["containerPort"] for port in ports]
    return int(next(iter(called or [n for n in numbers if n == otherwise] or numbers), otherwise))


def metrics_port(pod: Mapping[str, Any]) -> int:
    """The port that a pod's metrics are had at: what its annotation prometheus.io/port says, or else its engine's."""
    annotation = str(((pod.get("metadata") or {}).get("annotations") or {}).get(_ANNOTATION, ""))
    if annotation.isdecimal() and 0 < int(annotation) < 1 << 16:
        return int(annotation)
    return engine_port(pod.get("spec") or {}, METRICS_PORT, ("http", "metrics"))


def engine_container(pod: Mapping[str, Any], otherwise: int) -> str:
    """The name of the container that serves: the one that declares the port of `engine_port`; else the one that kubectl
    takes where none is said; else the first. Empty if there is none.
    """
    spec = pod.get("spec") or {}
    containers = spec.get("containers") or []
    port = engine_port(spec, otherwise)
    for container in containers:
        if any(declared.get("containerPort") == port for declared in container.get("ports") or []):
            return str(container["name"])
    names = [str(container["name"]) for container in containers]
    said = str(((pod.get("metadata") or {}).get("annotations") or {}).get(_MAIN, ""))
    return said if said in names else next(iter(names), "")

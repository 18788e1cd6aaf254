"""Pods as the cluster tells of them, and as the processes that the control plane's own node runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def engine_of(pod: str) -> int:
    """The process of a pod that this machine's node runs."""
    mark = f"POD_NAME={pod}".encode()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in environ.read_bytes().split(b"\0"):
                return int(environ.parent.name)
        except OSError:
            continue  # it has ended meanwhile, or is another user's
    raise AssertionError(f"pod {pod} has no process here")


def is_ready(pod: dict[str, Any]) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))

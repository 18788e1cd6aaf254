"""What helm makes of deploy/helm/vllm-chill."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.kustomized import DEPLOY, Built

CHART = DEPLOY / "helm/vllm-chill"

_BESIDE = Path(sys.executable).parent / "helm"
HELM = str(_BESIDE) if _BESIDE.exists() else shutil.which("helm")

needs_helm = pytest.mark.skipif(HELM is None, reason="needs helm, which .ci/helm puts beside Python")


def run(*arguments: str, values: Mapping[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    """helm, with the chart's values from its standard input."""
    assert HELM is not None
    given = [] if values is None else ["--values", "-"]
    return subprocess.run(
        [HELM, *arguments, *given], input=json.dumps(values or {}), capture_output=True, text=True, check=False
    )


def template(
    values: Mapping[str, Any], *flags: str, release: str = "vllm-chill", namespace: str = "ai-apps"
) -> subprocess.CompletedProcess[str]:
    return run("template", release, str(CHART), "--namespace", namespace, *flags, values=values)


def render(
    values: Mapping[str, Any] | None = None, *flags: str, release: str = "vllm-chill", namespace: str = "ai-apps"
) -> Built:
    """The objects that the chart comes to with these values; what is not of a release, such as the CRDs, by flags."""
    done = template(values or {}, *flags, release=release, namespace=namespace)
    assert done.returncode == 0, done.stderr
    built = Built(done.stdout.encode())
    built.items = [item for item in built.items if item is not None]
    return built


def refusal(values: Mapping[str, Any]) -> str:
    """What helm says of values that it does not take."""
    done = template(values)
    assert done.returncode != 0, done.stdout
    return done.stderr


def notes(values: Mapping[str, Any] | None = None) -> str:
    """What helm says after an installation."""
    done = run("install", "vllm-chill", str(CHART), "--dry-run=client", "--namespace", "ai-apps", values=values)
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("NOTES:\n")[2]


def values_of(text: str | None = None) -> dict[str, Any]:
    """The chart's own values."""
    found: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text() if text is None else text)
    return found


# Kustomize's `labels` are on what is in that kustomization, and not on what its components add.
_OF_EVERYTHING = ("app.kubernetes.io/name", "app.kubernetes.io/part-of", "app.kubernetes.io/managed-by")
_HELMS = ("helm.sh/chart", "app.kubernetes.io/version", "app.kubernetes.io/instance")


def plain(item: dict[str, Any]) -> dict[str, Any]:
    """An object without what Helm, or kustomize, says of everything that it makes."""
    item = copy.deepcopy(item)
    if item["kind"] == "ConfigMap":
        # Documents in which everything is a comment say nothing.
        data = {key: yaml.safe_load(text) for key, text in item.pop("data", {}).items()}
        item["data"] = {key: value for key, value in data.items() if value is not None}
    labels = item["metadata"].pop("labels", {})
    kept = {key: value for key, value in labels.items() if key not in (*_OF_EVERYTHING, *_HELMS)}
    if kept:
        item["metadata"]["labels"] = kept
    return _without_labels(item)  # type: ignore[no-any-return]


def _without_labels(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_labels(inner) for key, inner in value.items() if key not in _HELMS}
    return [_without_labels(inner) for inner in value] if isinstance(value, list) else value


def by_name(items: list[dict[str, Any]]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Objects by kind, namespace and name, without the tools' own labels."""
    found = {
        (item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]): plain(item) for item in items
    }
    assert len(found) == len(items)
    return found

"""What kustomize makes of deploy/."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
MANIFESTS = [file for file in sorted(DEPLOY.rglob("*.yaml")) if DEPLOY / "helm" not in file.parents]
"""All that kustomize, or kubectl, takes as it is; a chart's files become manifests only."""

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, which has kustomize in it")


class Built:
    """The objects that a kustomization comes to. No two of them have one kind and name, or `of` fails."""

    def __init__(self, text: bytes) -> None:
        self.items: list[dict[str, Any]] = list(yaml.safe_load_all(text))

    def names(self, kind: str) -> set[str]:
        return {item["metadata"]["name"] for item in self.items if item["kind"] == kind}

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [item for item in self.items if item["kind"] == kind]

    def of(self, kind: str, name: str) -> dict[str, Any]:
        [found] = [item for item in self.all(kind) if item["metadata"]["name"] == name]
        return found


def build(folder: Path) -> Built:
    return Built(subprocess.run(["kubectl", "kustomize", folder], capture_output=True, check=True).stdout)


def build_with(folder: Path, components: Sequence[str], workplace: Path, **more: Any) -> Built:
    """What a kustomization of somebody's own comes to that has `folder` with these components of it."""
    shutil.copytree(DEPLOY, workplace / "deploy", dirs_exist_ok=True)
    base = f"../deploy/{folder.relative_to(DEPLOY)}"
    kustomization = {"resources": [base], "components": [f"{base}/{name}" for name in components], **more}
    (workplace / "mine").mkdir(exist_ok=True)
    (workplace / "mine/kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return build(workplace / "mine")

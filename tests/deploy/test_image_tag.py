"""All manifests and pages name one image: that of the release which they are part of."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
[IMAGE] = yaml.safe_load((ROOT / "deploy/kustomization.yaml").read_text())["images"]
FILES = [
    ROOT / "README.md",
    ROOT / "Dockerfile",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "deploy").rglob("*.yaml")),
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_it_is_the_same_everywhere(file: Path) -> None:
    text = file.read_text()
    named = re.findall(r"\bvllm-chill:(\d[\w.-]*)", text)
    named += re.findall(r"name: vllm-chill\n +newTag: (\S+)|name: vllm-chill,[^}]* newTag: ([^}\s]+)", text)
    assert {tag if isinstance(tag, str) else "".join(tag) for tag in named} <= {IMAGE["newTag"]}


def test_it_is_a_release() -> None:
    assert IMAGE["name"] == "vllm-chill"
    assert re.fullmatch(r"\d+\.\d+\.\d+", IMAGE["newTag"])

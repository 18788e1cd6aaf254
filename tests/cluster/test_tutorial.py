"""The tutorial on a cluster, typed as it stands: kubectl applies deploy/ to a real API server, whose node runs the
proxy with the rights of its ServiceAccount, and a stub in the place of vLLM.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.docs.blocks import Reader
from tests.docs.copies import copy_of_repository
from vllm_chill.adapters.kubernetes.client import ApiError, connect

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorials" / "a-cluster.md"
KUBECTL = shutil.which("kubectl")
NAMESPACE = "ai-apps"

pytestmark = pytest.mark.skipif(
    KUBECTL is None or shutil.which("curl") is None, reason="the page is typed by kubectl and curl, and one is missing"
)


@pytest.fixture
async def gone_after(kubeconfig: Path) -> AsyncIterator[None]:
    """Have the namespace be gone in the end, whatever became of the page."""
    yield
    async with connect(str(kubeconfig)) as api:
        path = f"/api/v1/namespaces/{NAMESPACE}"
        try:
            await api.call("DELETE", path)
        except ApiError as error:
            assert error.status in (404, 409), error  # noqa: PT017 - it is on its way out


@pytest.mark.slow
def test_the_tutorial_on_a_cluster(kubeconfig: Path, control_plane: Path, gone_after: None, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "kubectl").symlink_to(ROOT / "tests" / "cluster" / "kubectl.py")
    program = tmp_path / "bin" / "vllm-chill"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT / "src"} exec {sys.executable} -m vllm_chill "$@"\n')
    program.chmod(0o755)
    assert KUBECTL is not None
    there = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("VLLM", "PYTHON"))},
        "PATH": os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "HOME": str(tmp_path),
        "KUBECTL": KUBECTL,
        "KUBECONFIG": str(kubeconfig),
    }
    with Reader(copy_of_repository(tmp_path / "clone"), there, 180.0) as reader:
        assert reader.read(PAGE.read_text()) > 10

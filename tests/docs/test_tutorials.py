"""Every command of the tutorials is typed as it stands, in its order, and prints what the page shows.

The tutorial on a cluster is typed in tests/cluster/test_tutorial.py, where there is one.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.blocks import SHELLS, Reader, blocks_of
from tests.docs.copies import copy_of_repository

ROOT = Path(__file__).parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
HOME_PAGE = ROOT / "docs" / "tutorials" / "one-gpu-at-home.md"
SYSTEMCTL = ROOT / "tests" / "docs" / "systemctl.py"
INSTALL_SECONDS = 600.0
MOST_NOT_RUN = 2


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_what_is_not_run_is_little_and_says_why(page: Path) -> None:
    blocks = blocks_of(page.read_text())
    reasons = [block.not_run for block in blocks if block.not_run is not None]
    assert len(reasons) <= MOST_NOT_RUN
    assert len(blocks) - len(reasons) >= 8
    assert all(len(reason.split()) >= 4 for reason in reasons)


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_command_is_in_no_block_that_is_not_looked_at(page: Path) -> None:
    assert set(re.findall(r"^ *```(\w*)\n", page.read_text(), re.MULTILINE)) - {""} <= {*SHELLS, "yaml"}


def a_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """An empty home, with a systemctl in its PATH."""
    for folder in ("home", "bin", "run"):
        (tmp_path / folder).mkdir()
    (tmp_path / "bin" / "systemctl").symlink_to(SYSTEMCTL)
    (tmp_path / "bin" / "python3").symlink_to(sys.executable)
    yield tmp_path
    if list((tmp_path / "run").glob("*.pid")):
        subprocess.run([SYSTEMCTL, "--user", "stop", "vllm-chill"], env=environment(tmp_path), check=False)


def environment(home: Path) -> dict[str, str]:
    """What somebody has who has just logged in; what pip is told by this machine stays."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_")) or name == "LANG"}
    if (configured := Path.home() / ".config/pip/pip.conf").exists():
        kept.setdefault("PIP_CONFIG_FILE", str(configured))
    path = os.pathsep.join([str(home / "bin"), *os.environ["PATH"].split(os.pathsep)])
    return kept | {"HOME": str(home / "home"), "USER": "me", "PATH": path, "XDG_RUNTIME_DIR": str(home / "run")}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="the page asks by curl, which is not installed")
def test_the_tutorial_for_one_gpu_at_home(home: Path, tmp_path: Path) -> None:
    page = HOME_PAGE.read_text().replace("8080", str(port := a_free_port()))
    # The default port may be taken on this machine; a variable says the same to all that is typed.
    there = environment(home) | {"PORT": str(port), "VLLM_CHILL_URL": f"http://127.0.0.1:{port}"}
    with Reader(copy_of_repository(tmp_path / "clone"), there, INSTALL_SECONDS) as reader:
        assert reader.read(page) > 10
        unit = home / "home/.config/systemd/user/vllm-chill.service"
        if (analyze := shutil.which("systemd-analyze")) is not None:
            told = subprocess.run([analyze, "--user", "verify", unit], env=there, capture_output=True, text=True)
            # What it says of the machine's other units is nothing that this page could help.
            ours = [line for line in told.stderr.splitlines() if "vllm-chill.service" in line]
            assert (told.returncode, ours) == (0, [])

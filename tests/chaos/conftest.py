"""The chaos suite: proxies under steady load while something goes wrong. Only `tests/chaos/run` runs it.

Each scenario leaves a row of what it measured; with --write-table the rows go into docs/reliability.md.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.chaos.stage import Stage
from tests.chaos.table import Row, in_words, write
from tests.cluster.cluster import Cluster
from tests.cluster.conftest import cluster as cluster
from tests.cluster.conftest import control_plane as control_plane
from tests.cluster.conftest import kubeconfig as kubeconfig

_HERE = Path(__file__).parent
_WHY = "needs a control plane of its own: tests/chaos/run starts one"
_ROWS: list[Row] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-table", action="store_true", help="write what was measured into docs/reliability.md")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.chaos)
            item.add_marker(pytest.mark.slow)
            if not os.environ.get("CONTROL_PLANE_DIR"):
                item.add_marker(pytest.mark.skip(reason=_WHY))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if _ROWS:
        terminalreporter.section("what was measured")
        terminalreporter.write_line(in_words(_ROWS))
        if config.getoption("--write-table"):
            terminalreporter.write_line(f"written into {write(_ROWS)}")


@pytest.fixture
def rows() -> list[Row]:
    """What the scenarios of this run have measured."""
    return _ROWS


@pytest.fixture
async def stage(cluster: Cluster, control_plane: Path, tmp_path: Path) -> AsyncIterator[Stage]:
    """A namespace in which proxies can be put in front of targets."""
    async with Stage(cluster, control_plane, tmp_path) as stage:
        yield stage

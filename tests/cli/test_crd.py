from __future__ import annotations

import yaml
from click.testing import CliRunner

from vllm_chill.api.crd import crds
from vllm_chill.cli import cli


def test_what_is_printed_can_be_applied() -> None:
    result = CliRunner().invoke(cli, ["crd"])
    assert result.exit_code == 0
    assert list(yaml.safe_load_all(result.stdout)) == [*crds()]

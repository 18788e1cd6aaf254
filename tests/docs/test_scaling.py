"""The worked example of the page on scaling is what the command prints."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner

from vllm_chill.cli import cli

PAGE = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()


def block(marker: str) -> str:
    """The fenced block that follows `<!-- marker -->`."""
    [found] = re.findall(rf"<!-- {marker} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


def test_the_worked_example_is_what_the_command_prints(tmp_path: Path) -> None:
    for name in ("policy", "samples"):
        (tmp_path / f"{name}.yaml").write_text(block(name))
    command, _, printed = block("decisions").partition("\n")
    assert command == "$ vllm-chill decide --policy policy.yaml --samples samples.yaml"
    words = [str(tmp_path / word) if word.endswith(".yaml") else word for word in command.split()[2:]]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.stderr
    assert not result.stderr
    assert result.stdout == printed

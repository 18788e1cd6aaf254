from __future__ import annotations

import re

import pytest
import yaml
from click.testing import CliRunner

from vllm_chill.api.keys_file import read_keys
from vllm_chill.cli import cli
from vllm_chill.core.admission import Priority
from vllm_chill.core.rate import RateLimit
from vllm_chill.errors import SettingError


def test_the_key_that_is_shown_is_the_one_in_the_entry() -> None:
    result = CliRunner().invoke(
        cli, ["keys", "new", "a", "--model", "m-*", "--priority", "low", "--requests-per-minute", "9", "--admin"]
    )
    assert result.exit_code == 0
    [secret] = re.findall(r"^  (chill-[\w-]{43})$", result.stderr, re.MULTILINE)
    assert secret not in result.stdout
    found = read_keys(yaml.safe_dump({"keys": yaml.safe_load(result.stdout)})).find(secret.encode())
    assert found is not None
    assert (found.name, found.models, found.priority) == ("a", ("m-*",), Priority.LOW)
    assert (found.rate, found.admin) == (RateLimit(9, 9), True)


def test_two_are_never_the_same() -> None:
    one, other = (CliRunner().invoke(cli, ["keys", "new", "a"]).stdout for _ in range(2))
    assert one != other


def test_a_name_that_the_file_does_not_take_is_refused() -> None:
    result = CliRunner().invoke(cli, ["keys", "new", "a b"])
    assert isinstance(result.exception, SettingError)
    assert result.exception.message.startswith('"a b" is no name for a key; give 1 to 63 letters')


@pytest.mark.parametrize("flag", [["--priority", "urgent"], ["--requests-per-minute", "0"]])
def test_what_the_file_does_not_take_is_refused(flag: list[str]) -> None:
    assert CliRunner().invoke(cli, ["keys", "new", "a", *flag]).exit_code == 2

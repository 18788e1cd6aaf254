"""The reference pages say what the code says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import Struct, to_builtins
from msgspec.json import decode
from msgspec.structs import fields

from vllm_chill.api.choice import AvailableModels, RunningModels, Switched
from vllm_chill.api.gpu import GpuStatsAnswer
from vllm_chill.api.models import ModelState, model_card
from vllm_chill.api.scaling_answers import Adjusted, PolicyAnswer, ReplicaMetrics, ScalingMetrics
from vllm_chill.api.status import ProxyStatus
from vllm_chill.core.models import Model
from vllm_chill.core.routing import METHODS, TABLE, parse_wake_paths
from vllm_chill.errors import AnswerableError

ROOT = Path(__file__).parent.parent.parent
HTTP_API = (ROOT / "docs" / "http-api.md").read_text()


def test_the_pages_made_from_the_code_are_up_to_date() -> None:
    result = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def with_code(kind: type[AnswerableError]) -> Iterator[type[AnswerableError]]:
    for below in kind.__subclasses__():
        if "code" in vars(below) and not below.__name__.startswith("_"):
            yield below
        yield from with_code(below)


@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.__name__) for kind in with_code(AnswerableError)])
def test_every_error_is_in_the_table_with_its_status(kind: type[AnswerableError]) -> None:
    assert re.search(rf"^\| {kind.status} \| `{kind.code}` \|", HTTP_API, re.MULTILINE)


def test_the_table_has_no_error_that_is_not_there() -> None:
    codes = {kind.code for kind in with_code(AnswerableError)} | {AnswerableError.code}
    assert set(re.findall(r"^\| \d+ \| `(\w+)` \|", HTTP_API, re.MULTILINE)) == codes


@pytest.mark.parametrize("path", [route.value for route in METHODS if TABLE[route].awake is not None])
def test_every_route_of_the_proxy_is_in_the_table(path: str) -> None:
    assert re.search(rf"^\| .*`{path}` \|", HTTP_API, re.MULTILINE)


@pytest.mark.parametrize("path", [route.value for route in METHODS if TABLE[route].awake is None])
def test_every_route_that_is_the_proxys_while_the_target_sleeps_is_in_the_page(path: str) -> None:
    assert f"`{path.replace('*', '{id}')}` |" in HTTP_API


def test_the_lists_of_paths_that_wake_can_be_used() -> None:
    lists = re.findall(
        r"^\| [^|]+ \| `((?:default|/)[^`]*)` \|$", (ROOT / "docs" / "routes.md").read_text(), re.MULTILINE
    )
    assert len(lists) == 3
    for paths in lists:
        assert parse_wake_paths(paths)


EXAMPLES = re.findall(r"```json\n(\{\n.*?\n\})\n```", HTTP_API, re.DOTALL)


ANSWERS = [
    *(AvailableModels, RunningModels, Switched, GpuStatsAnswer),
    *(ScalingMetrics, ReplicaMetrics, PolicyAnswer, Adjusted),
]


@pytest.mark.parametrize("shape", ANSWERS, ids=lambda s: s.__name__)
def test_each_answer_in_the_page_has_the_fields_that_there_are(shape: type[Struct]) -> None:
    names = {field.encode_name for field in fields(shape)}
    [example] = [text for text in EXAMPLES if json.loads(text).keys() == names]
    answer = decode(example, type=shape)
    assert to_builtins(answer) == json.loads(example)


def test_the_model_in_the_page_has_the_fields_that_there_are() -> None:
    example = re.search(r"```json\n(\{\n  \"id\".*?\n\})\n```", HTTP_API, re.DOTALL)
    assert example is not None
    assert json.loads(example[1]).keys() == model_card(Model("a"), ModelState("asleep"), 0).keys()


def test_the_status_in_the_page_has_the_fields_that_there_are() -> None:
    example = re.search(r"```json\n(\{.*?\n\})\n```", HTTP_API, re.DOTALL)
    assert example is not None
    status = decode(example[1], type=ProxyStatus)
    assert to_builtins(status) == json.loads(example[1])
    [target] = status.targets
    assert target.start is not None
    assert target.last_start is not None
    assert sum(target.last_start.stages.values()) == pytest.approx(target.last_start.total_seconds)

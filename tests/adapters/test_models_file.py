from __future__ import annotations

from pathlib import Path

import pytest

from vllm_chill.adapters.models_file import read_models
from vllm_chill.core.catalogue import ModelEntry
from vllm_chill.core.target import TargetRef
from vllm_chill.errors import SettingError


def written(folder: Path, text: str) -> Path:
    path = folder / "models.yaml"
    path.write_text(text)
    return path


TWO = """
models:
  qwen:
    modelName: Qwen/Qwen3-0.6B
    servedModelName: qwen3
    maxModelLen: 4096
    aliases: [small]
    group: rtx
    idleTimeout: 2m
    env: [{name: CUDA_VISIBLE_DEVICES, value: "1"}]
  other:
    modelName: facebook/opt-125m
    servedModelName: opt
    gpuCount: 0
    command: [engine, --port, "{port}"]
"""


def test_a_model_is_served_by_vllm_with_what_its_spec_says(tmp_path: Path) -> None:
    [qwen, _] = read_models(written(tmp_path, TWO), gpu_count=1, cpu_offload_gb=0)
    assert qwen.command[:7] == ("vllm", "serve", "Qwen/Qwen3-0.6B", "--host", "127.0.0.1", "--port", "{port}")
    assert "--max-model-len" in qwen.command
    assert qwen.environment == {"CUDA_VISIBLE_DEVICES": "1"}
    assert qwen.entry.names == ("qwen3", "small")
    assert (qwen.entry.group, qwen.entry.idle_seconds, qwen.entry.gpus) == ("rtx", 120, 1)
    assert qwen.entry.ref == TargetRef("process", "qwen")


def test_a_command_of_its_own_takes_vllms_place(tmp_path: Path) -> None:
    [_, other] = read_models(written(tmp_path, TWO), gpu_count=1, cpu_offload_gb=0)
    assert other.command == ("engine", "--port", "{port}")
    assert other.entry.gpus == 0


def test_the_objects_of_a_cluster_are_taken_as_they_are(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
apiVersion: vllm.sir-alfred.io/v1alpha1
kind: VLLMModel
metadata: {name: one}
spec: {modelName: org/one, servedModelName: one}
---
apiVersion: vllm.sir-alfred.io/v1alpha1
kind: VLLMModel
metadata: {name: two}
spec: {modelName: org/two, servedModelName: two}
""",
    )
    assert [model.entry.name for model in read_models(path, gpu_count=1, cpu_offload_gb=0)] == ["one", "two"]


def test_models_keep_the_order_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "models: {b: {modelName: m, servedModelName: x}, a: {modelName: m, servedModelName: y}}")
    entries: list[ModelEntry] = [model.entry for model in read_models(path, gpu_count=1, cpu_offload_gb=0)]
    assert [entry.name for entry in sorted(entries, key=lambda entry: entry.created)] == ["b", "a"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "there is no model in it"),
        ("models: {}", "there is no model in it"),
        ("models: [a]", 'give "models:" with a mapping'),
        ("[1, 2]", 'give "models:" with a mapping'),
        ("models: {a: [", "this is not YAML"),
        ("models: {a: {command: engine}}", "spec.command: give a list of words"),
        ("models: {a: {modelName: m, servedModelName: a, command: [engine]}}", "write {port} there"),
        (
            "models: {a: {modelName: m, servedModelName: x}, b: {modelName: m, servedModelName: x}}",
            '"x" is the name of both a and b',
        ),
        (
            "models: {a: {modelName: m, servedModelName: x, "
            "env: [{name: K, valueFrom: {secretKeyRef: {name: s, key: k}}}]}}",
            "K has its value from a cluster",
        ),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SettingError) as refused:
        read_models(written(tmp_path, text), gpu_count=1, cpu_offload_gb=0)
    assert words in refused.value.message


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, "models: {a: {maxModelLen: -1, command: x}, b: {modelName: 5}}")
    with pytest.raises(SettingError) as refused:
        read_models(path, gpu_count=1, cpu_offload_gb=0)
    lines = refused.value.message.splitlines()
    assert len(lines) >= 4
    assert all(line.startswith("--models ") for line in lines)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="No such file"):
        read_models(tmp_path / "none.yaml", gpu_count=1, cpu_offload_gb=0)


def test_what_may_be_a_mistake_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    path = written(tmp_path, "models: {a: {modelName: m, servedModelName: a, maxModelLenn: 5}}")
    read_models(path, gpu_count=1, cpu_offload_gb=0, warn=told.append)
    assert any("maxModelLen" in line for line in told)

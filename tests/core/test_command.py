from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.command import served_models, vllm_gpus

MODULE = ["python3", "-m", "vllm.entrypoints.openai.api_server"]


@pytest.mark.parametrize(
    ("argv", "names", "closed"),
    [
        (["vllm", "serve", "org/a"], ["org/a"], True),
        (["/opt/venv/bin/vllm", "serve", "org/a", "--port", "{port}"], ["org/a"], True),
        (["uv", "run", "vllm", "serve", "org/a"], ["org/a"], True),
        (["vllm", "serve", "--model", "org/a"], ["org/a"], True),
        (["vllm", "serve", "--model=org/a", "--port=8000"], ["org/a"], True),
        (["vllm", "serve", "org/a", "--served-model-name", "x", "y", "--port", "1"], ["x", "y"], True),
        (["vllm", "serve", "org/a", "--served-model-name=x"], ["x"], True),
        (["vllm", "serve", "org/a", "--served_model_name", "x"], ["x"], True),
        (["vllm", "serve", "org/a", "--served-model-name", "x", "--served-model-name", "y"], ["y"], True),
        (["vllm", "serve", "org/a", "--served-model-name", "--port", "1"], ["org/a"], True),
        ([*MODULE, "--model", "org/a"], ["org/a"], True),
        ([*MODULE, "--model", "org/a", "--served-model-name", "x"], ["x"], True),
        (["python", "/x/vllm/entrypoints/openai/api_server.py", "--model=org/a"], ["org/a"], True),
        (["vllm", "serve", "a", "--enable-lora", "--lora-modules", "l=/p", "m=/q"], ["a", "l", "m"], False),
        (["vllm", "serve", "a", "--lora-modules", '{"name": "l", "path": "/p"}'], ["a", "l"], False),
        (["vllm", "serve", "a", "--lora-modules", '[{"name": "l"}, 1]', "{broken"], ["a", "l"], False),
        (["vllm", "serve", "a", "--enable-lora"], ["a"], False),
        (["vllm", "serve", "a", "--config", "c.yaml", "--served-model-name", "x"], ["x"], False),
        (["llama-server", "-m", "/models/tiny.gguf"], ["tiny.gguf"], False),
        (["/usr/bin/llama-server", "--model", "/models/tiny.gguf", "--alias", "tiny,small"], ["tiny", "small"], False),
        (["llama-server", "-hf", "org/tiny-GGUF:Q4_K_M"], ["org/tiny-GGUF:Q4_K_M"], False),
        (["python", "-m", "sglang.launch_server", "--model-path", "org/a"], ["org/a"], False),
        (["./serve", "--served-model-name", "tiny"], ["tiny"], False),
        (["sh", "-c", "exec vllm serve org/a --served-model-name 'x y' z"], ["x y", "z"], True),
        (["/bin/bash", "-lc", "cd /tmp && HF_HUB_OFFLINE=1 vllm serve org/a; echo $?"], ["org/a"], True),
        (["bash", "-euo", "pipefail", "-c", "ulimit -n 9\nvllm serve org/a \\\n  --port 1\n"], ["org/a"], True),
        (["tini", "--", "sh", "-c", "bash -c 'vllm serve org/a'"], ["org/a"], True),
        (["sh", "-c", "./prepare --model other && vllm serve org/a"], ["org/a"], True),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_a_command_says_what_it_serves(argv: list[str], names: list[str], closed: bool) -> None:
    models = served_models(argv)
    assert models is not None
    assert [model.id for model in models.models] == names
    assert models.closed is closed


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["./serve", "8000"],
        ["vllm", "serve"],
        ["vllm", "serve", "--port", "8000"],
        ["vllm", "serve", "a", "--config", "c.yaml"],
        ["vllm", "serve", "--config", "c.yaml", "--model", "a"],
        ["vllm", "serve", "$(MODEL)"],
        ["vllm", "bench", "--model"],
        ["sh", "-c", "vllm serve $MODEL --port 1"],
        ["sh", "-c", 'vllm serve "$@"', "--", "org/a"],
        ["sh", "-c", "vllm serve $(cat name)"],
        ["sh", "-c", "vllm serve 'org/a"],
        ["sh", "run.sh"],
        ["sh", "-c"],
        ["llama-server", "--port", "1"],
    ],
    ids=" ".join,
)
def test_a_command_that_does_not_say_is_not_guessed_at(argv: list[str]) -> None:
    assert served_models(argv) is None


_WORD = st.sampled_from(
    ["vllm", "serve", "sh", "-c", "--model", "--model=a", "--served-model-name", "--lora-modules", "{", "$x", "-m"]
) | st.text(max_size=8)


@given(st.lists(_WORD, max_size=8))
def test_any_arguments_are_survived(argv: list[str]) -> None:
    models = served_models(argv)
    assert models is None or (models.models and all("$" not in model.id for model in models.models))


@pytest.mark.parametrize(
    ("argv", "gpus"),
    [
        (["vllm", "serve", "org/a"], 1),
        (["vllm", "serve", "org/a", "--tensor-parallel-size", "4"], 4),
        (["vllm", "serve", "org/a", "--tensor_parallel_size=4"], 4),
        (["vllm", "serve", "org/a", "-tp", "2", "-pp", "2"], 4),
        (["vllm", "serve", "org/a", "-tp=2", "--data-parallel-size", "3"], 6),
        (["sh", "-c", "exec vllm serve org/a -tp 8"], 8),
        ([*MODULE, "--model", "org/a", "--tensor-parallel-size", "2"], 2),
        (["vllm", "serve", "org/a", "--config", "c.yaml"], None),
        (["vllm", "serve", "org/a", "--config", "c.yaml", "-tp", "2"], 2),
        (["sh", "-c", "vllm serve org/a -tp $GPUS"], None),
        (["vllm", "serve", "org/a", "-tp", "0"], None),
        (["llama-server", "-m", "tiny.gguf"], None),
        ([], None),
    ],
)
def test_how_many_gpus_a_vllm_takes(argv: list[str], gpus: int | None) -> None:
    assert vllm_gpus(tuple(argv)) == gpus

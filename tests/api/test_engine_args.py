from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.api.engine_args import engine_args
from vllm_chill.api.model_spec import VLLMModelSpec
from vllm_chill.api.vllm_model import parse_model


def spec_of(**spec: Any) -> VLLMModelSpec:
    return parse_model({"metadata": {"name": "small"}, "spec": {"modelName": "org/small", **spec}}).spec


def args_of(**spec: Any) -> list[str]:
    """The arguments after the model, its names and how it is divided."""
    args = list(engine_args(spec_of(**spec), gpu_count=1, cpu_offload_gb=0))
    assert args[:2] == ["--model", "org/small"]
    return args[args.index("--tensor-parallel-size") + 2 :]


SAID = ["--cpu-offload-gb", "0"]


def test_a_model_that_says_nothing_leaves_everything_to_vllm() -> None:
    assert engine_args(spec_of(), gpu_count=2, cpu_offload_gb=1.5) == (
        *("--model", "org/small", "--served-model-name", "org/small"),
        *("--tensor-parallel-size", "2", "--cpu-offload-gb", "1.5"),
    )


def test_a_model_that_says_much_is_given_in_the_order_of_the_seeds() -> None:
    spec = spec_of(
        servedModelName="coder",
        aliases=["gpt-4", "code"],
        maxModelLen=112640,
        gpuMemoryUtilization=0.91,
        enableChunkedPrefill=True,
        maxNumBatchedTokens=8192,
        maxNumSeqs=16,
        dtype="float16",
        disableCustomAllReduce=True,
        enablePrefixCaching=True,
        cpuOffloadGB=4,
        enableAutoToolChoice=True,
        toolCallParser="qwen3_coder",
        reasoningParser="qwen3",
        extraArgs=["--enforce-eager"],
    )
    assert " ".join(engine_args(spec, gpu_count=2, cpu_offload_gb=0)) == (
        "--model org/small --served-model-name coder gpt-4 code --tensor-parallel-size 2 --max-model-len 112640 "
        "--gpu-memory-utilization 0.91 --enable-chunked-prefill --max-num-batched-tokens 8192 --max-num-seqs 16 "
        "--dtype float16 --disable-custom-all-reduce --enable-prefix-caching --cpu-offload-gb 4 "
        "--enable-auto-tool-choice --tool-call-parser qwen3_coder --reasoning-parser qwen3 --enforce-eager"
    )


@pytest.mark.parametrize("field", ["toolCallParser", "reasoningParser", "dtype", "quantization", "chatTemplate"])
def test_an_empty_text_is_left_out(field: str) -> None:
    assert args_of(**{field: ""}) == SAID


@pytest.mark.parametrize(
    ("spec", "args"),
    [
        ({"enablePrefixCaching": False}, ["--no-enable-prefix-caching"]),
        ({"enableChunkedPrefill": False}, ["--no-enable-chunked-prefill"]),
        ({"disableCustomAllReduce": False}, []),
        ({"enableAutoToolChoice": False}, []),
    ],
    ids=str,
)
def test_false_is_said_where_vllm_would_take_true(spec: dict[str, Any], args: list[str]) -> None:
    assert [arg for arg in args_of(**spec) if arg not in SAID] == args


class TestToolCalls:
    def test_a_parser_is_used(self) -> None:
        assert args_of(toolCallParser="hermes") == [*SAID, "--enable-auto-tool-choice", "--tool-call-parser", "hermes"]

    def test_unless_it_is_switched_off(self) -> None:
        given = args_of(toolCallParser="hermes", enableAutoToolChoice=False)
        assert given == [*SAID, "--tool-call-parser", "hermes"]

    def test_without_a_parser_vllm_would_not_start(self) -> None:
        assert args_of(enableAutoToolChoice=True) == SAID

    def test_the_parser_may_be_a_plugins(self) -> None:
        more = ["--tool_call_parser=mine", "--tool-parser-plugin=/mine.py"]
        assert args_of(enableAutoToolChoice=True, extraArgs=more) == [*SAID, "--enable-auto-tool-choice", *more]


class TestLora:
    ADAPTERS = ({"name": "sql", "path": "/adapters/sql"}, {"name": "a=b", "path": "org/b"})

    def test_adapters_are_loaded_with_the_engine(self) -> None:
        args = args_of(loraAdapters=list(self.ADAPTERS))
        assert args[:4] == [*SAID, "--enable-lora", "--lora-modules"]
        assert [json.loads(arg) for arg in args[4:]] == list(self.ADAPTERS)

    def test_or_when_they_are_asked_for(self) -> None:
        assert args_of(loraAdapters=list(self.ADAPTERS), loraOnDemand=True) == [*SAID, "--enable-lora"]

    def test_there_may_be_room_for_others(self) -> None:
        assert args_of(enableLora=True) == [*SAID, "--enable-lora"]
        assert args_of(enableLora=False) == SAID


class TestGpus:
    @pytest.mark.parametrize(
        ("spec", "size"),
        [
            ({}, "8"),
            ({"gpuCount": 4}, "4"),
            ({"gpuCount": 0}, "1"),
            ({"gpuCount": 4, "tensorParallelSize": 2}, "2"),
            ({"gpuCount": 4, "extraArgs": ["--pipeline-parallel-size", "2"]}, "2"),
        ],
        ids=["as the settings say", "as it says", "on the CPU", "divided otherwise", "divided both ways"],
    )
    def test_the_model_is_divided_over_all_of_its_gpus(self, spec: dict[str, Any], size: str) -> None:
        args = engine_args(spec_of(**spec), gpu_count=8, cpu_offload_gb=0)
        assert args[args.index("--tensor-parallel-size") + 1] == size


@given(st.integers(1, 2**31 - 1), st.floats(min_value=1e-6, max_value=1), st.floats(min_value=0, max_value=1e5))
def test_numbers_are_plain(tokens: int, utilization: float, offload: float) -> None:
    args = args_of(maxModelLen=tokens, gpuMemoryUtilization=utilization, cpuOffloadGB=offload)
    values = dict(zip(args[::2], args[1::2], strict=True))
    assert int(values["--max-model-len"]) == tokens
    assert float(values["--gpu-memory-utilization"]) == pytest.approx(utilization, rel=1e-5)
    assert float(values["--cpu-offload-gb"]) == pytest.approx(offload, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "names"),
    [("mine", ["coder", "gpt-4", "mine"]), ("gpt-4", ["coder", "gpt-4"]), ("sql", ["coder", "gpt-4"])],
    ids=["another name", "an alias", "an adapter"],
)
def test_the_objects_own_name_is_good_too(name: str, names: list[str]) -> None:
    spec = spec_of(servedModelName="coder", aliases=["gpt-4"], loraAdapters=[{"name": "sql", "path": "/sql"}])
    args = engine_args(spec, gpu_count=1, cpu_offload_gb=0, name=name)
    at = args.index("--served-model-name")
    assert list(args[at + 1 : args.index("--tensor-parallel-size")]) == names

"""A model's spec as vLLM's arguments, by the names that vLLM 0.32 has for them.

The rule: what is not given is left out, so that vLLM's own default holds, and extraArgs come last, where argparse lets
them win. No secret is ever an argument.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from vllm_chill.api.model_spec import VLLMModelSpec


def engine_args(
    spec: VLLMModelSpec, *, gpu_count: int, cpu_offload_gb: float, name: str | None = None
) -> tuple[str, ...]:
    """The arguments of vLLM but for where it listens. `gpu_count` and `cpu_offload_gb` (GiB) are those of the settings,
    for a model that does not say. `name` is the object's own, which requests may say too.
    """
    return (*own_args(spec, gpu_count=gpu_count, cpu_offload_gb=cpu_offload_gb, name=name), *spec.extra_args)


def own_args(spec: VLLMModelSpec, *, gpu_count: int, cpu_offload_gb: float, name: str | None = None) -> tuple[str, ...]:
    """The same without extraArgs."""
    offload = cpu_offload_gb if spec.cpu_offload_gb is None else spec.cpu_offload_gb
    return (
        *("--model", spec.model_name, "--served-model-name", *_names(spec, name)),
        *("--tensor-parallel-size", str(_tensor_parallel_size(spec, gpu_count))),
        *_flag("--max-model-len", spec.max_model_len),
        *_flag("--gpu-memory-utilization", spec.gpu_memory_utilization),
        *_either("--enable-chunked-prefill", spec.enable_chunked_prefill),
        *_flag("--max-num-batched-tokens", spec.max_num_batched_tokens),
        *_flag("--max-num-seqs", spec.max_num_seqs),
        *_flag("--dtype", spec.dtype),
        *_flag("--quantization", spec.quantization),
        *_if("--disable-custom-all-reduce", spec.disable_custom_all_reduce),
        *_either("--enable-prefix-caching", spec.enable_prefix_caching),
        *_flag("--cpu-offload-gb", offload),
        *_flag("--tokenizer-mode", spec.tokenizer_mode),
        *_flag("--chat-template", spec.chat_template),
        *_tool_calls(spec),
        *_flag("--reasoning-parser", spec.reasoning_parser),
        *_lora(spec),
    )


def _names(spec: VLLMModelSpec, name: str | None) -> Iterator[str]:
    """All names but those of adapters; vLLM says the first of them in its answers."""
    yield from (spec.served, *spec.aliases)
    if name is not None and name not in (spec.served, *spec.aliases, *(one.name for one in spec.lora_adapters)):
        yield name


def _tensor_parallel_size(spec: VLLMModelSpec, gpu_count: int) -> int:
    if spec.tensor_parallel_size is not None:
        return spec.tensor_parallel_size
    return max(1, spec.gpus(gpu_count) // spec.pipeline_parallel_size)


def _flag(name: str, value: str | float | None) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    return name, (f"{value:g}" if isinstance(value, float) else str(value))


def _if(name: str, value: bool | None) -> tuple[str, ...]:
    # vLLM's default is false, so that false needs no flag.
    return (name,) if value else ()


def _either(name: str, value: bool | None) -> tuple[str, ...]:
    # vLLM's default is true, so that false has to be said.
    if value is None:
        return ()
    return (name,) if value else (name.replace("--", "--no-", 1),)


def _tool_calls(spec: VLLMModelSpec) -> Iterator[str]:
    # vLLM uses the parser for nothing but this choice, and does not start with the choice alone.
    if spec.has_tool_parser and spec.enable_auto_tool_choice is not False:
        yield "--enable-auto-tool-choice"
    yield from _flag("--tool-call-parser", spec.tool_call_parser)


def _lora(spec: VLLMModelSpec) -> Iterator[str]:
    if spec.enable_lora or spec.lora_adapters or spec.lora_on_demand:
        yield "--enable-lora"
    if spec.lora_adapters and not spec.lora_on_demand:
        yield "--lora-modules"
        # JSON rather than NAME=PATH, as either may have "=" in it.
        yield from (json.dumps({"name": one.name, "path": one.path}) for one in spec.lora_adapters)

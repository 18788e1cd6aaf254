"""The spec of a VLLMModel: every field, declared once, with what it does, vLLM's flag, its default and the reason.

The rule: what is left out is left to vLLM or to the proxy's own settings. What cannot work is refused here; what
this does not know and vLLM might is only warned about. The CRD and the reference page are made from these fields.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar

from pydantic import Field

from vllm_chill.api.resource import Checked, Conflict
from vllm_chill.api.spec_parts import (
    NAME,
    OBJECT,
    SIZE,
    Cache,
    EnvVar,
    LoraAdapter,
    Probes,
    Resources,
    SecretKey,
    SecretName,
    declared,
)
from vllm_chill.api.spec_types import (
    Argument,
    Count,
    CountOrZero,
    Duration,
    Group,
    LabelValue,
    Name,
    Number,
    ObjectName,
    Path,
    ResourceName,
    Shape,
    Size,
    Switch,
    Text,
    Word,
)

_TOKENS = "a number of tokens, at least 1"
_NUMBER = "a whole number, at least 1"
_SWITCH = "true or false"
_DURATION = "a duration above zero, such as 90s, 5m or 1h30m"
_WORD = 'a word of letters, digits, and . _ + -, or ""'
_SECRET = "the name of a Secret and the key in it: {name: NAME, key: KEY}"  # noqa: S105 - not a secret
_MANY = 100


OWN_LABELS = tuple(f"app.kubernetes.io/{name}" for name in ("name", "instance", "managed-by", "component"))
_PIPELINE = re.compile(r"(?:--pipeline[-_]parallel[-_]size|-pp)(?:=(\d+))?")


def _field(default: Any, group: str, accepts: str, description: str, *, flag: str = "", **more: Any) -> Any:
    schema = {"group": group, "flag": flag, **more.pop("schema", {})}
    return declared(default, accepts, description, schema=schema, **more)


def _keyed(key: str) -> dict[str, Any]:
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


class VLLMModelSpec(Checked):
    """What a model is, how vLLM runs it, and when it is awake."""

    STAND_INS: ClassVar = {"modelName": "unknown"}

    # --- the model ---

    model_name: Path = _field(
        ..., "Model", "a Hugging Face repository such as Qwen/Qwen3-0.6B, or a path",
        "The model that vLLM loads: a repository on Hugging Face, or a path in the engine's container.",
        flag="--model",
    )  # fmt: skip
    served_model_name: Name | None = _field(
        None, "Model", NAME,
        "The name that requests say in `model`. Not set: modelName, as with vLLM.",
        flag="--served-model-name",
    )  # fmt: skip
    aliases: tuple[Name, ...] = _field(
        (), "Model", "a list of names, each once",
        "More names that requests may say for it. vLLM is told them too, so requests are passed on as they are.",
        flag="--served-model-name", max_length=_MANY, schema={"x-kubernetes-list-type": "set"},
    )  # fmt: skip
    lora_adapters: tuple[LoraAdapter, ...] = _field(
        (), "Model", "a list of {name: NAME, path: PATH}, each name once",
        "LoRA adapters, each with a name that requests may say in `model`.",
        flag="--lora-modules", max_length=1000, schema=_keyed("name"),
    )  # fmt: skip
    lora_on_demand: Switch = _field(
        False, "Model", _SWITCH,
        "Load an adapter when it is first asked for, rather than all of them with the engine. It lets whoever reaches "
        "the engine load adapters, so it is off unless wanted.",
        flag="VLLM_ALLOW_RUNTIME_LORA_UPDATING",
    )  # fmt: skip
    enable_lora: Switch | None = _field(
        None, "Model", _SWITCH,
        "Make room for LoRA adapters. Not set: true with loraAdapters or loraOnDemand.",
        flag="--enable-lora",
    )  # fmt: skip

    # --- the engine ---

    max_model_len: Count | None = _field(
        None, "Engine", _TOKENS,
        "The longest context. Not set: the model's own. A shorter one takes less GPU memory.",
        flag="--max-model-len",
    )  # fmt: skip
    gpu_memory_utilization: Annotated[Number, Field(gt=0, le=1)] | None = _field(
        None, "Engine", "a fraction above 0, up to 1, such as 0.9",
        "The part of each GPU's memory that vLLM takes. Not set: vLLM's own, 0.92 in vLLM 0.32.",
        flag="--gpu-memory-utilization",
    )  # fmt: skip
    max_num_batched_tokens: Count | None = _field(
        None, "Engine", _TOKENS,
        "The most tokens in one step of the engine. Not set: vLLM's own, by the GPU.",
        flag="--max-num-batched-tokens",
    )  # fmt: skip
    max_num_seqs: Count | None = _field(
        None, "Engine", "a number of requests, at least 1",
        "The most requests in one step of the engine. Not set: vLLM's own, by the GPU.",
        flag="--max-num-seqs",
    )  # fmt: skip
    enable_chunked_prefill: Switch | None = _field(
        None, "Engine", _SWITCH,
        "Read long prompts in parts, between the answers of others. Not set: vLLM's own, true where the model can.",
        flag="--enable-chunked-prefill",
    )  # fmt: skip
    enable_prefix_caching: Switch | None = _field(
        None, "Engine", _SWITCH,
        "Keep what was computed for a prompt's beginning. Not set: vLLM's own, true where the model can.",
        flag="--enable-prefix-caching",
    )  # fmt: skip
    dtype: Word | None = _field(
        None, "Engine", _WORD,
        "Type of the weights and activations. Not set: vLLM's own, auto: what the model was saved with.",
        flag="--dtype",
    )  # fmt: skip
    quantization: Word | None = _field(
        None, "Engine", _WORD,
        "How the weights are quantized. Not set: what the model's own configuration says.",
        flag="--quantization",
    )  # fmt: skip
    tokenizer_mode: Word | None = _field(
        None, "Engine", _WORD,
        "Which tokenizer is taken. Not set: vLLM's own, auto.",
        flag="--tokenizer-mode",
    )  # fmt: skip
    chat_template: Text | None = _field(
        None, "Engine", "a path, or a template, that does not begin with -",
        "A chat template: its path in the engine's container, or the template itself in one line. Not set: that of "
        "the model's tokenizer.",
        flag="--chat-template",
    )  # fmt: skip
    enable_auto_tool_choice: Switch | None = _field(
        None, "Engine", _SWITCH,
        "Let the model choose to call tools. Not set: true with a toolCallParser, which vLLM uses for nothing else.",
        flag="--enable-auto-tool-choice",
    )  # fmt: skip
    tool_call_parser: Word | None = _field(
        None, "Engine", _WORD,
        "How tool calls are read from what the model writes, such as hermes or qwen3_coder. Not set: not at all.",
        flag="--tool-call-parser",
    )  # fmt: skip
    tool_call_rewrite: Switch = _field(
        False, "Engine", _SWITCH,
        "Let vllm-chill turn <tool_call> tags into tool calls, for a model that vLLM has no parser for. A parser of "
        "vLLM's own knows more, so it is off unless wanted.",
    )  # fmt: skip
    reasoning_parser: Word | None = _field(
        None, "Engine", _WORD,
        "How reasoning is told from the answer, such as deepseek_r1 or qwen3. Not set: not at all.",
        flag="--reasoning-parser",
    )  # fmt: skip
    disable_custom_all_reduce: Switch | None = _field(
        None, "Engine", _SWITCH,
        "Leave the exchange between GPUs to NCCL; some boards need that. Not set: vLLM's own, false.",
        flag="--disable-custom-all-reduce",
    )  # fmt: skip
    cpu_offload_gb: Annotated[Number, Field(ge=0, le=100_000)] | None = _field(
        None, "Engine", "a size in GiB, 0 or more",
        "How much of the weights is kept in the machine's memory, for each GPU. Not set: the proxy's --cpu-offload-gb.",
        flag="--cpu-offload-gb", alias="cpuOffloadGB",
    )  # fmt: skip
    extra_args: tuple[Argument, ...] = _field(
        (), "Engine",
        "a list with each word as an item of its own, and none of --model, --served-model-name, --port, --uds, "
        "--api-key and --hf-token",
        "More arguments for vLLM, after all others, so that they win over them. In a cluster $(NAME) becomes the "
        "value of a variable of env.",
        max_length=1000,
    )  # fmt: skip

    # --- GPUs ---

    gpu_count: Annotated[CountOrZero, Field(le=1024)] | None = _field(
        None, "GPUs", "a number of GPUs, 0 or more",
        "GPUs of each replica; 0 for an engine without one. Not set: as many as tensorParallelSize needs, else the "
        "proxy's --gpu-count.",
    )  # fmt: skip
    tensor_parallel_size: Annotated[Count, Field(le=1024)] | None = _field(
        None, "GPUs", _NUMBER,
        "Over how many GPUs each layer is divided. Not set: over all of gpuCount.",
        flag="--tensor-parallel-size",
    )  # fmt: skip
    gpu_resource: ResourceName = _field(
        "nvidia.com/gpu", "GPUs", "the name of a resource, such as nvidia.com/gpu",
        "What the cluster calls a GPU: the resource that gpuCount is a limit of. NVIDIA's device plugin has the "
        "default; amd.com/gpu and nvidia.com/mig-3g.40gb are others.",
    )  # fmt: skip
    group: Group | None = _field(
        None, "GPUs", "a word of letters, digits, and - . _",
        "Models of one group take turns: at most one of them is awake. Not set: it shares with nobody.",
    )  # fmt: skip

    # --- when it is awake ---

    idle_timeout: Duration | None = _field(
        None, "Scaling", _DURATION,
        "Put it to sleep when it has been unused for this long. Not set: the proxy's --idle-timeout.",
    )  # fmt: skip
    wake_timeout: Duration | None = _field(
        None, "Scaling", _DURATION,
        "How long a request is held while it wakes. Not set: the proxy's --wake-timeout.",
    )  # fmt: skip
    startup_timeout: Duration | None = _field(
        None, "Scaling", _DURATION,
        "How long the kubelet lets the engine load before it starts it anew. Not set: an hour, or the proxy's "
        "--start-timeout if that is longer, so that it is the proxy that gives up.",
    )  # fmt: skip
    min_replicas: Annotated[CountOrZero, Field(le=1000)] = _field(
        0, "Scaling", "a number of replicas, 0 or more",
        "The fewest replicas. At 1 or more it never sleeps, and idleTimeout is without effect.",
    )  # fmt: skip
    max_replicas: Annotated[Count, Field(le=1000)] = _field(
        1, "Scaling", "a number of replicas, at least 1",
        "The most replicas. One, unless said otherwise: each takes gpuCount GPUs. Above 1 it is scaled by its queue, "
        "or as a vLLMScalingPolicy says.",
    )  # fmt: skip

    # --- the pod ---

    image: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^\S+$")] | None = _field(
        None, "Pod", "the name of an image",
        "Image of the engine. Not set: the vLLM release whose flags these fields were checked with.",
    )  # fmt: skip
    env: tuple[EnvVar, ...] = _field(
        (), "Pod", "a list of {name: NAME, value: TEXT}, each name once",
        "More variables of the engine, which win over those that vllm-chill sets.",
        max_length=1000, schema=_keyed("name"),
    )  # fmt: skip
    resources: Resources = _field(
        Resources.model_construct(), "Pod", "Kubernetes' resources: {requests: {…}, limits: {…}}",
        "Requests and limits of the engine's container. GPUs come from gpuCount, unless they are named here. Not "
        "set: no others, as what a model needs is not known here.",
    )  # fmt: skip
    cache: Cache | None = _field(
        None, "Pod", "one of {pvc: {claimName: NAME}}, {hostPath: {path: /a/folder}} and {emptyDir: {}}",
        "Where what was downloaded and compiled is kept. Not set: emptyDir, so that each start downloads the model.",
    )  # fmt: skip
    shm_size: Size | None = _field(
        None, "Pod", SIZE,
        "Size of /dev/shm, which counts as memory of the pod. Not set: 16Gi at most; a container's usual 64 MiB "
        "are too little for PyTorch's workers.",
    )  # fmt: skip
    hugging_face_token: SecretKey | None = _field(
        None, "Pod", _SECRET,
        "The token for models behind a licence, as HF_TOKEN. Not set: {name: hf-token, key: token}, if there is such "
        "a Secret.",
    )  # fmt: skip
    api_key: SecretKey | None = _field(
        None, "Pod", _SECRET,
        "The key that callers must give to vLLM, as VLLM_API_KEY; the pod does not start without this Secret. Not "
        "set: vLLM asks for none.",
    )  # fmt: skip
    node_selector: Annotated[dict[str, LabelValue], Field(max_length=_MANY)] = _field(
        {}, "Pod", "labels of nodes: {NAME: VALUE}",
        "Only nodes with these labels. The values, in the order of the labels' names and joined by +, are the pool "
        "that --gpu-budget counts its GPUs in.",
    )  # fmt: skip
    tolerations: Annotated[tuple[Shape, ...], Field(max_length=_MANY)] = _field(
        (), "Pod", "a list of Kubernetes' tolerations", "Taints of nodes that do not matter to it.",
    )  # fmt: skip
    affinity: Shape | None = _field(
        None, "Pod", "Kubernetes' affinity", "Which nodes it prefers, and which pods it keeps away from.",
    )  # fmt: skip
    runtime_class_name: ObjectName | None = _field(
        None, "Pod", OBJECT,
        "Container runtime of the pod, such as nvidia where that is not the node's default.",
    )  # fmt: skip
    priority_class_name: ObjectName | None = _field(
        None, "Pod", OBJECT, "Whom it goes before when a node is full.",
    )  # fmt: skip
    image_pull_secrets: Annotated[tuple[SecretName, ...], Field(max_length=_MANY)] = _field(
        (), "Pod", "a list of {name: NAME}", "Secrets to pull the image with.",
    )  # fmt: skip
    service_account_name: ObjectName | None = _field(
        None, "Pod", OBJECT,
        "Account of the pod. Not set: the namespace's own, without a token, as vLLM does not ask the API server.",
    )  # fmt: skip
    probes: Probes = _field(
        Probes.model_construct(), "Pod", "{startup: {…}, readiness: {…}, liveness: {…}}",
        "Fields of Kubernetes' probes that are laid over those that are made.",
    )  # fmt: skip
    termination_grace_period_seconds: Annotated[CountOrZero, Field(le=86_400)] = _field(
        60, "Pod", "a number of seconds, 0 or more",
        "How long the engine may take to end before it is killed. A minute is enough for vLLM to end its workers; "
        "it is only told to end when nobody uses it.",
    )  # fmt: skip
    labels: Annotated[dict[str, LabelValue], Field(max_length=_MANY)] = _field(
        {}, "Pod", "labels: {NAME: VALUE}",
        "More labels of the Deployment, its pods and the Service. Labels of the VLLMModel itself restart nothing; "
        "these are of the pods.",
    )  # fmt: skip
    annotations: Annotated[dict[str, Annotated[str, Field(max_length=100_000)]], Field(max_length=_MANY)] = _field(
        {}, "Pod", 'annotations: {NAME: "VALUE"}', "More annotations of the pods.",
    )  # fmt: skip

    def conflicts(self) -> tuple[Conflict, ...]:
        """Everything that no field can know by itself."""
        return (*_counts(self), *_names(self), *_environment(self), *_labels(self), *_cache(self))

    @property
    def served(self) -> str:
        """The name that requests say."""
        return self.served_model_name or self.model_name

    @property
    def has_tool_parser(self) -> bool:
        """Whether vLLM reads tool calls itself."""
        flags = {argument.partition("=")[0].replace("_", "-") for argument in self.extra_args}
        return bool(self.tool_call_parser) or "--tool-call-parser" in flags

    @property
    def pipeline_parallel_size(self) -> int:
        """How many parts the model's layers are divided into, which only extraArgs can say; 1 unless they do."""
        size = 1
        for argument, following in zip(self.extra_args, (*self.extra_args[1:], ""), strict=False):
            found = _PIPELINE.fullmatch(argument)
            if found is not None:
                text = found[1] or following
                size = max(1, int(text)) if re.fullmatch(r"[0-9]{1,4}", text) else size
        return size

    def gpus(self, gpu_count: int) -> int:
        """The GPUs of one replica; `gpu_count` is what the proxy's settings say."""
        if self.gpu_count is not None:
            return self.gpu_count
        if self.tensor_parallel_size is not None:
            return self.tensor_parallel_size * self.pipeline_parallel_size
        return gpu_count


# --- what does not fit together ---


def _counts(spec: VLLMModelSpec) -> Iterator[Conflict]:
    if spec.min_replicas > spec.max_replicas:
        yield Conflict(
            "minReplicas",
            f"{spec.min_replicas} is more than the {spec.max_replicas} of maxReplicas; give at most that",
            ("minReplicas", "maxReplicas"),
        )
    needed = (spec.tensor_parallel_size or 1) * spec.pipeline_parallel_size
    if spec.gpu_count and needed > spec.gpu_count:
        yield Conflict(
            "gpuCount",
            f"{spec.gpu_count} is too few for an engine in {needed} parts, each of which needs a GPU of its own; "
            f"give at least {needed}",
            ("gpuCount", "tensorParallelSize", "extraArgs"),
        )
    tokens = spec.max_num_batched_tokens
    if tokens is not None and spec.max_num_seqs is not None and tokens < spec.max_num_seqs:
        yield Conflict(
            "maxNumBatchedTokens",
            f"{tokens} is fewer than the {spec.max_num_seqs} of maxNumSeqs, and each has a token in a step; "
            "give at least as many",
            ("maxNumBatchedTokens", "maxNumSeqs"),
        )
    if tokens and spec.max_model_len and tokens < spec.max_model_len and spec.enable_chunked_prefill is False:
        yield Conflict(
            "maxNumBatchedTokens",
            f"{tokens} is fewer than the {spec.max_model_len} of maxModelLen, which vLLM refuses without chunked "
            "prefill; give at least as many, or leave enableChunkedPrefill out",
            ("maxNumBatchedTokens", "maxModelLen", "enableChunkedPrefill"),
        )


def _names(spec: VLLMModelSpec) -> Iterator[Conflict]:
    for alias in _repeated(spec.aliases):
        yield Conflict("aliases", f'"{alias}" is there more than once; give it once', ("aliases",))
    if spec.served in spec.aliases:
        yield Conflict(
            "aliases",
            f'"{spec.served}" is what the model is served as anyway; leave it out',
            ("aliases", "servedModelName", "modelName"),
        )
    adapters = [adapter.name for adapter in spec.lora_adapters]
    for name in _repeated(adapters):
        yield Conflict("loraAdapters", f'"{name}" is there more than once; give it once', ("loraAdapters",))
    for name in sorted({spec.served, *spec.aliases} & set(adapters)):
        yield Conflict(
            "loraAdapters",
            f'"{name}" is a name of the model itself; give the adapter another',
            ("loraAdapters", "aliases", "servedModelName", "modelName"),
        )
    if spec.enable_lora is False and (spec.lora_adapters or spec.lora_on_demand):
        yield Conflict(
            "enableLora",
            "false leaves no room for the adapters that are asked for; leave it out",
            ("enableLora", "loraAdapters", "loraOnDemand"),
        )


def _environment(spec: VLLMModelSpec) -> Iterator[Conflict]:
    for name in _repeated(variable.name for variable in spec.env):
        yield Conflict("env", f'"{name}" is there more than once; give it once', ("env",))
    for index, variable in enumerate(spec.env):
        if variable.value is not None and variable.value_from is not None:
            yield Conflict(
                f"env[{index}]", f'"{variable.name}" has both value and valueFrom; give one of them', ("env",)
            )


def _labels(spec: VLLMModelSpec) -> Iterator[Conflict]:
    for name in sorted(spec.labels.keys() & set(OWN_LABELS)):
        yield Conflict("labels", f'"{name}" is how vllm-chill knows what it made; leave it out', ("labels",))


def _cache(spec: VLLMModelSpec) -> Iterator[Conflict]:
    if spec.cache is None:
        return
    given = [kind for kind in (spec.cache.pvc, spec.cache.host_path, spec.cache.empty_dir) if kind is not None]
    if len(given) != 1:
        count = "none is given" if not given else "more than one is given"
        yield Conflict("cache", f"{count}; give one of pvc, hostPath and emptyDir", ("cache",))


def _repeated(names: Iterable[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)

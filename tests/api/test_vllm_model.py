from __future__ import annotations

from typing import Any, ClassVar

import pytest

from vllm_chill.api.vllm_model import VLLMModel, entry_of, parse_model, warnings
from vllm_chill.core.catalogue import Adapter, ModelEntry
from vllm_chill.core.target import TargetRef
from vllm_chill.errors import InvalidModel

REF = TargetRef("ai-apps", "vllm-small")


def obj(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "vllm.sir-alfred.io/v1alpha1",
        "kind": "VLLMModel",
        "metadata": {"name": "small"},
        "spec": {"modelName": "org/small", **spec},
    }


def of(**spec: Any) -> VLLMModel:
    return parse_model(obj(**spec))


def problems(given: Any) -> tuple[str, ...]:
    with pytest.raises(InvalidModel) as refused:
        parse_model(given)
    return refused.value.problems


class TestProblems:
    @pytest.mark.parametrize(
        ("spec", "problem"),
        [
            ({"maxModelLen": 0}, "spec.maxModelLen: 0 is not accepted; give a number of tokens, at least 1"),
            ({"maxModelLen": "4096"}, 'spec.maxModelLen: "4096" is not accepted; give a number of tokens, at least 1'),
            (
                {"gpuMemoryUtilization": 1.5},
                "spec.gpuMemoryUtilization: 1.5 is not accepted; give a fraction above 0, up to 1, such as 0.9",
            ),
            (
                {"idleTimeout": "soon"},
                'spec.idleTimeout: "soon" is not accepted; give a duration above zero, such as 90s, 5m or 1h30m',
            ),
            (
                {"idleTimeout": "0h0m"},
                'spec.idleTimeout: "0h0m" is not accepted; give a duration above zero, such as 90s, 5m or 1h30m',
            ),
            ({"minReplicas": 2}, "spec.minReplicas: 2 is more than the 1 of maxReplicas; give at most that"),
            (
                {"gpuCount": 2, "tensorParallelSize": 4},
                "spec.gpuCount: 2 is too few for an engine in 4 parts, each of which needs a GPU of its own; "
                "give at least 4",
            ),
            (
                {"gpuCount": 3, "tensorParallelSize": 2, "extraArgs": ["-pp", "2"]},
                "spec.gpuCount: 3 is too few for an engine in 4 parts, each of which needs a GPU of its own; "
                "give at least 4",
            ),
            ({"aliases": ["a", "a"]}, 'spec.aliases: "a" is there more than once; give it once'),
            (
                {"aliases": ["org/small"]},
                'spec.aliases: "org/small" is what the model is served as anyway; leave it out',
            ),
            (
                {"loraAdapters": [{"name": "a", "path": "/a"}, {"name": "a", "path": "/b"}]},
                'spec.loraAdapters: "a" is there more than once; give it once',
            ),
            (
                {"aliases": ["a"], "loraAdapters": [{"name": "a", "path": "/a"}]},
                'spec.loraAdapters: "a" is a name of the model itself; give the adapter another',
            ),
            (
                {"enableLora": False, "loraOnDemand": True},
                "spec.enableLora: false leaves no room for the adapters that are asked for; leave it out",
            ),
            (
                {"cache": {"pvc": {"claimName": "a"}, "emptyDir": {}}},
                "spec.cache: more than one is given; give one of pvc, hostPath and emptyDir",
            ),
            ({"cache": {}}, "spec.cache: none is given; give one of pvc, hostPath and emptyDir"),
            (
                {"env": [{"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]},
                'spec.env[0]: "A" has both value and valueFrom; give one of them',
            ),
            ({"env": [{"name": "A"}, {"name": "A"}]}, 'spec.env: "A" is there more than once; give it once'),
            (
                {"env": [{"name": "A", "value": 1}]},
                "spec.env[0].value: 1 is not accepted; give a text, in quotes if it is a number",
            ),
            (
                {"labels": {"app.kubernetes.io/name": "mine"}},
                'spec.labels: "app.kubernetes.io/name" is how vllm-chill knows what it made; leave it out',
            ),
            (
                {"maxNumBatchedTokens": 8, "maxNumSeqs": 16},
                "spec.maxNumBatchedTokens: 8 is fewer than the 16 of maxNumSeqs, and each has a token in a step; "
                "give at least as many",
            ),
            (
                {"maxNumBatchedTokens": 512, "maxModelLen": 1024, "enableChunkedPrefill": False},
                "spec.maxNumBatchedTokens: 512 is fewer than the 1024 of maxModelLen, which vLLM refuses without "
                "chunked prefill; give at least as many, or leave enableChunkedPrefill out",
            ),
            (
                {"resources": {"limits": {"memory": "a lot"}}},
                'spec.resources.limits.memory: "a lot" is not accepted; give quantities by resource',
            ),
        ],
        ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
    )
    def test_what_cannot_work_is_refused_in_a_sentence(self, spec: dict[str, Any], problem: str) -> None:
        assert problems(obj(**spec)) == (problem,)

    @pytest.mark.parametrize(
        "argument",
        ["--model", "--model=x", "--served_model_name", "--port=1", "--uds", "--api-key=x", "--hf-token", "--a b"],
    )
    def test_an_argument_that_breaks_what_the_proxy_counts_on_is_refused(self, argument: str) -> None:
        [problem] = problems(obj(extraArgs=["--enforce-eager", argument]))
        assert problem.startswith(f'spec.extraArgs[1]: "{argument}" is not accepted; give ')

    @pytest.mark.parametrize("argument", ["--model-impl", "--port-x", "--x={a: b c}", "a b", "-tp", "--hf-token-file"])
    def test_any_other_argument_is_taken(self, argument: str) -> None:
        assert of(extraArgs=[argument]).spec.extra_args == (argument,)

    def test_ten_bad_fields_are_told_each(self) -> None:
        bad = obj(
            maxModelLen=0,
            maxNumSeqs="16",
            gpuMemoryUtilization=0,
            dtype="not a type",
            enableLora="yes",
            idleTimeout="0s",
            gpuCount=-1,
            tensorParallelSize=0,
            extraArgs=["--port"],
            cache={"hostPath": {"path": "relative"}},
            image="",
            aliases=["a", "a"],
            minReplicas=2,
        )
        del bad["spec"]["modelName"]
        found = problems({**bad, "kind": "Model"})
        assert [problem.partition(":")[0] for problem in found] == [
            "kind",
            "spec.modelName",
            "spec.enableLora",
            "spec.maxModelLen",
            "spec.gpuMemoryUtilization",
            "spec.maxNumSeqs",
            "spec.dtype",
            "spec.extraArgs[0]",
            "spec.gpuCount",
            "spec.tensorParallelSize",
            "spec.idleTimeout",
            "spec.image",
            "spec.cache.hostPath.path",
            "spec.minReplicas",
            "spec.aliases",
        ]

    def test_a_bad_field_is_not_blamed_on_another(self) -> None:
        [problem] = problems(obj(minReplicas=3, maxReplicas=0))
        assert problem.startswith("spec.maxReplicas: 0")

    @pytest.mark.parametrize(
        ("given", "problem"),
        [
            ({"metadata": {"name": "a"}}, "spec: it is missing; give at least {modelName: NAME}"),
            ({"metadata": {"name": "a"}, "spec": 3}, "spec: 3 is not accepted; give at least {modelName: NAME}"),
            ({"spec": {"modelName": "a"}}, "metadata: it is missing; give at least {name: NAME}"),
            (
                {"metadata": {"name": "A"}, "spec": {"modelName": "a"}},
                'metadata.name: "A" is not accepted; give a name of lower-case letters, digits, - and .',
            ),
        ],
        ids=["no spec", "no mapping", "no metadata", "a name that is none"],
    )
    def test_an_object_that_is_none_is_refused(self, given: Any, problem: str) -> None:
        assert problems(given) == (problem,)

    def test_the_error_names_the_model(self) -> None:
        with pytest.raises(InvalidModel) as refused:
            parse_model(obj(maxModelLen=0))
        assert refused.value.name == "small"
        assert refused.value.message.startswith('the model "small" cannot be used: spec.maxModelLen: 0')


class TestLenience:
    def test_a_field_that_is_null_is_left_out(self) -> None:
        assert of(maxModelLen=None, aliases=None, maxReplicas=None) == of()

    def test_a_field_that_is_not_known_is_let_go(self) -> None:
        assert of(maxModelLength=3) == of()

    def test_a_memory_utilization_may_be_an_integer(self) -> None:
        assert of(gpuMemoryUtilization=1).spec.gpu_memory_utilization == 1

    def test_a_status_that_cannot_be_read_is_no_obstacle(self) -> None:
        assert parse_model({**obj(), "status": {"replicas": "many"}}) == of()
        assert parse_model({**obj(), "status": {"phase": "Ready"}}).status.phase == "Ready"


class TestExistingObjects:
    """Objects that were written for a CRD with fewer fields, all of them required, and the parsers as an enum."""

    CODER: ClassVar[dict[str, Any]] = {
        "modelName": "Qwen/Qwen3-Coder-30B-A3B-Instruct-FP8",
        "servedModelName": "qwen3-coder-30b-fp8",
        "toolCallParser": "qwen3_coder",
        "reasoningParser": "",
        "maxModelLen": 112640,
        "gpuMemoryUtilization": 0.91,
        "enableChunkedPrefill": True,
        "maxNumBatchedTokens": 8192,
        "maxNumSeqs": 16,
        "dtype": "float16",
        "disableCustomAllReduce": False,
        "enablePrefixCaching": True,
        "enableAutoToolChoice": True,
    }
    R1: ClassVar[dict[str, Any]] = {
        **CODER,
        "modelName": "neuralmagic/DeepSeek-R1-Distill-Qwen-32B-FP8-dynamic",
        "servedModelName": "deepseek-r1-fp8",
        "toolCallParser": "hermes",
        "reasoningParser": "deepseek_r1",
        "maxModelLen": 32768,
        "dtype": "auto",
    }

    @pytest.mark.parametrize("spec", [CODER, R1, {**CODER, "toolCallParser": "", "gpuMemoryUtilization": 1}])
    def test_they_are_good_as_they_are(self, spec: dict[str, Any]) -> None:
        model = parse_model({"metadata": {"name": spec["servedModelName"]}, "spec": spec})
        assert entry_of(model, REF, gpu_count=2).names == (spec["servedModelName"],)
        assert not any("no such field" in warning or "is nothing that" in warning for warning in warnings(model))


class TestWarnings:
    def test_there_are_none_without_a_reason(self) -> None:
        model = of(cache={"pvc": {"claimName": "cache"}}, toolCallParser="hermes", dtype="", quantization="fp8")
        assert warnings(model) == ()

    def test_values_that_vllm_may_know_are_taken_and_told(self) -> None:
        model = of(cache={"emptyDir": {}}, toolCallParser="qwen3_code", reasoningParser="zzz", dtype="float17")
        assert warnings(model) == (
            'spec.toolCallParser: "qwen3_code" is nothing that vLLM 0.32 has; did you mean "qwen3_coder"?',
            'spec.reasoningParser: "zzz" is nothing that vLLM 0.32 has',
            'spec.dtype: "float17" is nothing that vLLM 0.32 has; did you mean "float16"?',
        )

    def test_fields_that_are_not_known_are_told_with_the_nearest(self) -> None:
        given = obj(maxModelLength=1, cache={"pvc": {"claimName": "a", "claim": "b"}}, env=[{"name": "A", "val": "x"}])
        assert warnings(parse_model(given), given) == (
            'spec.maxModelLength: there is no such field, and it is ignored; did you mean "maxModelLen"?',
            'spec.cache.pvc.claim: there is no such field, and it is ignored; did you mean "claimName"?',
            'spec.env[0].val: there is no such field, and it is ignored; did you mean "value"?',
        )

    @pytest.mark.parametrize(
        ("spec", "field"),
        [
            ({"enableAutoToolChoice": True}, "spec.enableAutoToolChoice"),
            ({"toolCallRewrite": True, "toolCallParser": "hermes"}, "spec.toolCallRewrite"),
            ({"minReplicas": 1, "idleTimeout": "5m"}, "spec.idleTimeout"),
            ({"minReplicas": 1, "group": "a"}, "spec.minReplicas"),
            ({"cache": None}, "spec.cache"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_is_without_effect_is_told(self, spec: dict[str, Any], field: str) -> None:
        [warning] = warnings(of(**{"cache": {"emptyDir": {}}, **spec}))
        assert warning.startswith(f"{field}: ")


class TestEntry:
    def test_a_model_that_says_little_leaves_the_rest_to_the_settings(self) -> None:
        assert entry_of(of(), REF, gpu_count=2) == ModelEntry("small", REF, "org/small", "org/small", gpus=2)

    def test_all_that_requests_and_scaling_need_is_in_it(self) -> None:
        given = obj(
            servedModelName="s",
            aliases=["gpt-4"],
            loraAdapters=[{"name": "sql", "path": "/adapters/sql"}],
            loraOnDemand=True,
            group="big",
            gpuCount=4,
            nodeSelector={"zone": "a", "gpu": "h200"},
            idleTimeout="1h30m",
            wakeTimeout="90s",
            minReplicas=1,
            maxReplicas=2,
            toolCallRewrite=True,
        )
        given["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
        assert entry_of(parse_model(given), REF, gpu_count=1) == ModelEntry(
            name="small",
            ref=REF,
            served="s",
            model="org/small",
            aliases=("gpt-4",),
            adapters=(Adapter("sql", "/adapters/sql"),),
            loads_adapters=True,
            group="big",
            gpus=4,
            pool="h200+a",
            idle_seconds=5400,
            wake_seconds=90,
            min_replicas=1,
            max_replicas=2,
            rewrites_tool_calls=True,
            created="2026-01-01T00:00:00Z",
        )

    @pytest.mark.parametrize(
        ("spec", "gpus"),
        [
            ({"tensorParallelSize": 2}, 2),
            ({"tensorParallelSize": 2, "extraArgs": ["--pipeline_parallel_size=3"]}, 6),
            ({"gpuCount": 0}, 0),
            ({}, 8),
        ],
        ids=["as it is divided", "both ways", "none", "as the settings say"],
    )
    def test_its_gpus_are_what_it_needs(self, spec: dict[str, Any], gpus: int) -> None:
        assert entry_of(of(**spec), REF, gpu_count=8).gpus == gpus

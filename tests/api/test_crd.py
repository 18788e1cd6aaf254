from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft4Validator
from pydantic.fields import FieldInfo

from vllm_chill.api.crd import DEFINITIONS, MODELS, POLICIES, VARIANTS, Definition, crd
from vllm_chill.api.model_spec import VLLMModelSpec
from vllm_chill.api.resource import Resource
from vllm_chill.api.scaling_policy import parse_policy
from vllm_chill.api.scaling_spec import ScalingPolicySpec
from vllm_chill.api.spec_parts import Part, fields_of, part_of
from vllm_chill.api.variant import parse_variant
from vllm_chill.api.variant_spec import VariantAutoscalingSpec
from vllm_chill.api.vllm_model import parse_model
from vllm_chill.errors import InvalidObject

Json = dict[str, Any]


def schema_of(of: Definition) -> Json:
    found: Json = crd(of)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def as_python_reads(schema: Any) -> Any:
    # To Go the end of a text is where it ends; Python's $ is before a last line break too.
    if isinstance(schema, dict):
        return {
            key: value.replace("$", r"\Z") if key == "pattern" and isinstance(value, str) else as_python_reads(value)
            for key, value in schema.items()
        }
    return [as_python_reads(item) for item in schema] if isinstance(schema, list) else schema


class Kind:
    """One kind as the API server and we see it; `least` is what a spec must have."""

    def __init__(self, of: Definition, spec: type[Part], least: Json, parse: Callable[[Json], Resource]) -> None:
        self.schema = schema_of(of)
        self.fields = fields_of(spec)
        self._server = Draft4Validator(as_python_reads(self.schema))
        self._least, self._parse = least, parse

    def server_refuses(self, spec: Json) -> list[str]:
        return [error.message for error in self._server.iter_errors(self._obj(spec))]

    def model_refuses(self, spec: Json) -> tuple[str, ...]:
        try:
            self._parse(self._obj(spec))
        except InvalidObject as refused:
            return refused.problems
        return ()

    def check(self, spec: Json) -> None:
        """The server takes what the model takes, and refuses what a field of the model refuses by itself."""
        refused = self.model_refuses(spec)
        told = self.server_refuses(spec)
        if not refused:
            assert not told
        elif any(_OF_A_FIELD.search(problem) for problem in refused):
            assert told, refused

    def _obj(self, spec: Json) -> Json:
        return {"metadata": {"name": "small"}, "spec": {**self._least, **spec}}


# What a schedule says of its cron expressions is said of the schedule.
_OF_A_FIELD = re.compile(r"^(?!spec\.schedule\[[0-9]\]: ).*(is not accepted; give|it is missing; give)", re.DOTALL)
MODEL = Kind(MODELS, VLLMModelSpec, {"modelName": "org/small"}, parse_model)
POLICY = Kind(POLICIES, ScalingPolicySpec, {"scaleTargetRef": {"name": "small"}, "maxReplicas": 10}, parse_policy)
VARIANT = Kind(
    VARIANTS,
    VariantAutoscalingSpec,
    {"scaleTargetRef": {"kind": "Deployment", "name": "small"}, "modelID": "org/small"},
    parse_variant,
)
EVERY_KIND = (MODEL, POLICY, VARIANT)
EVERY_FIELD = [
    pytest.param(kind, name, id=f"{word}.{name}")
    for word, kind in zip(("model", "policy", "variant"), EVERY_KIND, strict=True)
    for name in kind.fields
]


def below(schema: Json) -> Iterator[Json]:
    yield schema
    for field in schema.get("properties", {}).values():
        yield from below(field)
    for name in ("items", "additionalProperties"):
        if name in schema:
            yield from below(schema[name])


def columns(made: Json) -> list[tuple[str, str]]:
    [version] = made["spec"]["versions"]
    return [(column["name"], column["jsonPath"]) for column in version["additionalPrinterColumns"]]


class TestObject:
    def test_a_model_is_what_the_seeds_name(self) -> None:
        made = crd(MODELS)
        assert made["metadata"]["name"] == "models.vllm.sir-alfred.io"
        assert made["spec"]["group"] == "vllm.sir-alfred.io"
        assert made["spec"]["scope"] == "Cluster"
        assert made["spec"]["names"] == {
            "kind": "VLLMModel",
            "listKind": "VLLMModelList",
            "plural": "models",
            "singular": "model",
            "shortNames": ["vm", "vllm"],
        }
        assert columns(made) == [
            ("Model", ".spec.modelName"),
            ("Served As", ".spec.servedModelName"),
            ("Status", ".status.phase"),
            ("Age", ".metadata.creationTimestamp"),
        ]

    def test_a_policy_is_what_the_seeds_name(self) -> None:
        made = crd(POLICIES)
        assert made["metadata"]["name"] == "vllmscalingpolicies.autoscaler.production-stack"
        assert made["spec"]["group"] == "autoscaler.production-stack"
        assert made["spec"]["scope"] == "Namespaced"
        assert made["spec"]["names"] == {
            "kind": "vLLMScalingPolicy",
            "listKind": "vLLMScalingPolicyList",
            "plural": "vllmscalingpolicies",
            "singular": "vllmscalingpolicy",
            "shortNames": ["vsp"],
        }
        assert [name for name, _ in columns(made)] == ["Target", "Min", "Max", "Current", "Desired", "Active", "Age"]

    def test_a_variant_is_what_llm_d_names(self) -> None:
        made = crd(VARIANTS)
        assert made["metadata"]["name"] == "variantautoscalings.llmd.ai"
        assert made["spec"]["group"] == "llmd.ai"
        assert made["spec"]["scope"] == "Namespaced"
        assert made["spec"]["names"] == {
            "kind": "VariantAutoscaling",
            "listKind": "VariantAutoscalingList",
            "plural": "variantautoscalings",
            "singular": "variantautoscaling",
            "shortNames": ["va"],
        }
        assert columns(made) == [
            ("Target", ".spec.scaleTargetRef.name"),
            ("Model", ".spec.modelID"),
            ("Accelerator", ".status.desiredOptimizedAlloc.accelerator"),
            ("Current", ".status.currentReplicas"),
            ("Optimized", ".status.desiredOptimizedAlloc.numReplicas"),
            ("MetricsReady", '.status.conditions[?(@.type=="MetricsAvailable")].status'),
            ("Age", ".metadata.creationTimestamp"),
        ]

    @pytest.mark.parametrize("of", DEFINITIONS, ids=lambda of: of.name)
    def test_its_status_is_a_subresource(self, of: Definition) -> None:
        [version] = crd(of)["spec"]["versions"]
        assert (version["name"], version["served"], version["storage"]) == ("v1alpha1", True, True)
        assert version["subresources"] == {"status": {}}

    @pytest.mark.parametrize("of", DEFINITIONS, ids=lambda of: of.name)
    def test_it_is_json(self, of: Definition) -> None:
        assert json.loads(json.dumps(crd(of))) == crd(of)


EVERY_SCHEMA = [schema for kind in EVERY_KIND for schema in below(kind.schema)]


class TestStructure:
    """Kubernetes' rules for structural schemas, as far as ours could break them."""

    ALLOWED = (
        {
            "type",
            "description",
            "properties",
            "items",
            "additionalProperties",
            "required",
            "not",
            "anyOf",
            "allOf",
            "enum",
            "format",
        }
        | {"minimum", "maximum", "exclusiveMinimum", "minLength", "maxLength", "pattern"}
        | {"minItems", "maxItems", "minProperties", "maxProperties"}
        | {"x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-map-type"}
        | {"x-kubernetes-preserve-unknown-fields", "x-kubernetes-int-or-string"}
    )

    @pytest.mark.parametrize("schema", EVERY_SCHEMA, ids=lambda schema: schema.get("description", "")[:40])
    def test_every_value_has_one_type_and_nothing_that_is_not_allowed(self, schema: Json) -> None:
        assert set(schema) <= self.ALLOWED
        if schema.get("x-kubernetes-int-or-string"):
            assert "type" not in schema
            assert schema["anyOf"] == [{"type": "integer"}, {"type": "string"}]
            assert all(set(one) == {"pattern"} for one in schema.get("allOf", ()))
            return
        assert schema["type"] in ("object", "array", "string", "integer", "number", "boolean")
        assert "anyOf" not in schema
        assert ("items" in schema) == (schema["type"] == "array")
        assert isinstance(schema.get("exclusiveMinimum", True), bool)
        assert not {"properties", "additionalProperties"} <= set(schema)
        assert "allOf" not in schema
        if "not" in schema:
            assert set(schema["not"]) == {"pattern"}

    @pytest.mark.parametrize(
        "schema",
        [schema for schema in EVERY_SCHEMA if schema.get("x-kubernetes-list-type") == "map"],
        ids=lambda schema: schema["description"][:40],
    )
    def test_the_keys_of_a_list_are_required_in_its_items(self, schema: Json) -> None:
        assert set(schema["x-kubernetes-list-map-keys"]) <= set(schema["items"]["required"])

    def test_every_field_is_described(self) -> None:
        for kind in EVERY_KIND:
            assert all(field.get("description") for field in kind.schema["properties"]["spec"]["properties"].values())

    def test_a_description_has_the_flag_and_what_is_accepted(self) -> None:
        assert MODEL.schema["properties"]["spec"]["properties"]["maxModelLen"]["description"] == (
            "The longest context. Not set: the model's own. A shorter one takes less GPU memory. "
            "In vLLM: --max-model-len. Accepts a number of tokens, at least 1."
        )

    def test_nothing_is_filled_in_by_the_server(self) -> None:
        assert not any("default" in schema for schema in EVERY_SCHEMA)


# --- the server and the model agree ---

_TEXTS = [
    *(
        "",
        "a",
        "A",
        "-a",
        "a b",
        "org/a",
        "/a/b",
        "a=b",
        "a\n",
        "ä",
        "a.b",
        "$(A)",
        "{{ x }}",
        "nvidia.com/gpu",
        "auto",
    ),
    *("queue_length", "promql", "ttft", "Pods", "Max", "apps/v1", "0 8 * * *", "0 8 * *", "UTC"),
    *("5m", "0s", "1h30m", "1.5s", "soon", "16Gi", "0Gi", "1.5", "--port", "--port=1", "--a", "--a b"),
    *("a" * 64, "a" * 254, "a" * 1025, "b" * 100_001),
]
_VALUES: list[Any] = [*_TEXTS, True, False, -1, 0, 1, 64, 1025, 2**31, 2**63, 0.5, 1.0, 1.5, -0.5, [], {}]
_KEYS = st.sampled_from(["a", "A", "a b", "name", "path", "key", "claimName", "limits", "kubernetes.io/os", ""])
_JUNK = st.recursive(
    st.sampled_from(_VALUES), lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_KEYS, inner, max_size=2)
)


def near(part: type[Part]) -> st.SearchStrategy[Json]:
    """Objects with the fields of a part, whose values are often what they should be."""
    return st.fixed_dictionaries({}, optional={name: near_field(field) for name, field in fields_of(part).items()})


def near_field(field: FieldInfo) -> st.SearchStrategy[Any]:
    inner = part_of(field.annotation)
    if inner is not None:
        return st.one_of(near(inner), st.lists(near(inner), max_size=3), _JUNK)
    shown = str(field.annotation)
    if "tuple[" in shown:
        return st.lists(st.sampled_from(_TEXTS), max_size=3) | _JUNK
    if "dict[" in shown:
        return st.dictionaries(_KEYS, st.sampled_from(_VALUES), max_size=2)
    return st.sampled_from(_VALUES)


def some_fields(kind: Kind, most: int) -> st.SearchStrategy[Json]:
    def of(names: list[str]) -> st.SearchStrategy[Json]:
        return st.fixed_dictionaries({name: near_field(kind.fields[name]) for name in names})

    return st.lists(st.sampled_from(sorted(kind.fields)), min_size=1, max_size=most, unique=True).flatmap(of)


@settings(max_examples=500, deadline=None)
@given(some_fields(MODEL, 4))
def test_the_server_takes_what_a_model_takes_and_refuses_each_bad_field(spec: Json) -> None:
    MODEL.check(spec)


# --- good policies, and those with one thing wrong ---

_COUNTS = st.integers(1, 10)
_INTERVALS = st.sampled_from([1, 15, 3600, "5s", "1h30m", "2.5m"])
_STEPS = st.fixed_dictionaries(
    {"type": st.sampled_from(["Pods", "Percent"]), "value": _COUNTS, "periodSeconds": st.integers(1, 1800)}
)
_DIRECTIONS = st.fixed_dictionaries(
    {},
    optional={
        "stabilizationWindowSeconds": st.integers(0, 3600),
        "selectPolicy": st.sampled_from(["Max", "Min", "Disabled"]),
        "policies": st.lists(_STEPS, min_size=1, max_size=2),
    },
)
_RULES = st.fixed_dictionaries(
    {"metric": st.just("latency"), "threshold": st.floats(10, 1e6) | st.integers(10, 10**6)},
    optional={
        "target": st.floats(0.1, 10) | st.integers(1, 10),
        "aggregation": st.sampled_from(["ttft", "e2e", "itl"]),
        "percentile": st.floats(0, 100) | st.integers(0, 100),
        "window": _INTERVALS,
    },
) | st.fixed_dictionaries(
    {"metric": st.just("promql"), "threshold": st.just(10), "query": st.sampled_from(["up", "sum(x) / 2"])},
    optional={"aggregation": st.sampled_from(["average", "sum"])},
)
_SCHEDULES = st.fixed_dictionaries(
    {"start": st.just("0 8 * * mon-fri"), "end": st.just("30 18 * * *"), "minReplicas": _COUNTS},
    optional={"timezone": st.sampled_from(["UTC", "Europe/Berlin"])},
)
_POLICIES = st.fixed_dictionaries(
    {},
    optional={
        "scaleTargetRef": st.fixed_dictionaries(
            {"name": st.sampled_from(["vllm", "org/model-7B"])},
            optional={"kind": st.sampled_from(["Deployment", "StatefulSet"]), "apiVersion": st.just("apps/v1")},
        ),
        "minReplicas": st.integers(0, 10),
        "scalingRules": st.lists(_RULES, max_size=2, unique_by=json.dumps),
        "behavior": st.fixed_dictionaries({}, optional={"scaleUp": _DIRECTIONS, "scaleDown": _DIRECTIONS}),
        "tolerance": st.floats(0, 1) | st.integers(0, 1),
        "pollingInterval": _INTERVALS,
        "idleTimeout": _INTERVALS,
        "fallback": st.fixed_dictionaries({"replicas": st.just(10)}, optional={"failureThreshold": _COUNTS}),
        "schedule": st.lists(_SCHEDULES, max_size=2),
        "paused": st.booleans(),
    },
)


_VARIANTS = st.fixed_dictionaries(
    {},
    optional={
        "scaleTargetRef": st.fixed_dictionaries(
            {
                "kind": st.sampled_from(["Deployment", "StatefulSet"]),
                "name": st.sampled_from(["vllm", "llama-70b.h100"]),
            },
            optional={"apiVersion": st.just("apps/v1")},
        ),
        "variantCost": st.sampled_from(["80.0", "5", "0"]),
        "modelProfile": st.fixed_dictionaries(
            {},
            optional={
                "accelerators": st.lists(
                    st.fixed_dictionaries(
                        {"acc": st.sampled_from(["A100", "H100"])},
                        optional={
                            "accCount": _COUNTS,
                            "maxBatchSize": _COUNTS,
                            "perfParms": st.fixed_dictionaries({"alpha": st.just("20.5")}),
                            "atSize": _COUNTS,
                        },
                    ),
                    max_size=2,
                ),
                "more": _COUNTS,
            },
        ),
        "sloClassRef": st.fixed_dictionaries({}, optional={"name": st.just("a"), "key": st.just("premium.yaml")}),
        "minReplicas": st.integers(0, 10),
        "maxReplicas": st.integers(10, 20),
        "scaleToZero": st.fixed_dictionaries(
            {}, optional={"enabled": st.booleans(), "retentionPeriod": st.sampled_from(["15m", "1h30m", "90s"])}
        ),
        "actuation": st.sampled_from(["metrics", "direct"]),
    },
)


def places_in(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*above, key)
        yield from places_in(item, (*above, key))


@settings(max_examples=200, deadline=None)
@given(_POLICIES)
def test_a_good_policy_is_taken_by_both(spec: Json) -> None:
    assert not POLICY.server_refuses(spec)
    assert [problem for problem in POLICY.model_refuses(spec) if "more than once" not in problem] == []


@settings(max_examples=100, deadline=None)
@given(_VARIANTS)
def test_a_good_variant_is_taken_by_both(spec: Json) -> None:
    assert not VARIANT.server_refuses(spec)
    assert VARIANT.model_refuses(spec) == ()


@settings(max_examples=400, deadline=None)
@given(_POLICIES.filter(bool), st.data())
def test_of_a_policy_with_one_thing_changed_they_say_the_same(spec: Json, data: st.DataObject) -> None:
    change_one_thing(spec, data)
    POLICY.check(spec)


@settings(max_examples=200, deadline=None)
@given(_VARIANTS.filter(bool), st.data())
def test_of_a_variant_with_one_thing_changed_they_say_the_same(spec: Json, data: st.DataObject) -> None:
    change_one_thing(spec, data)
    VARIANT.check(spec)


def change_one_thing(spec: Json, data: st.DataObject) -> None:
    *above, last = data.draw(st.sampled_from([*places_in(spec)]))
    inner: Any = spec
    for key in above:
        inner = inner[key]
    inner[last] = data.draw(st.sampled_from(_VALUES) | _JUNK)


@pytest.mark.parametrize(("kind", "name"), EVERY_FIELD)
def test_of_every_field_they_say_the_same(kind: Kind, name: str) -> None:
    for value in _VALUES:
        for nested in (value, [value], {"a": value}, {value: "a"} if isinstance(value, str) else value):
            kind.check({name: nested})


@pytest.mark.parametrize(
    "bad",
    [
        {"maxModelLen": 0},
        {"maxModelLen": "4096"},
        {"maxModelLen": 0.5},
        {"gpuMemoryUtilization": 0},
        {"gpuMemoryUtilization": 1.01},
        {"gpuCount": -1},
        {"tensorParallelSize": 0},
        {"cpuOffloadGB": -1},
        {"idleTimeout": "0h0s"},
        {"idleTimeout": "soon"},
        {"idleTimeout": 300},
        {"minReplicas": -1},
        {"maxReplicas": 0},
        {"servedModelName": "--port"},
        {"aliases": ["a b"]},
        {"aliases": "a"},
        {"extraArgs": ["--port=1"]},
        {"extraArgs": ["--served_model_name"]},
        {"extraArgs": ["--max-num-seqs 4"]},
        {"loraAdapters": [{"name": "a"}]},
        {"cache": {}},
        {"cache": {"pvc": {"claimName": "a"}, "emptyDir": {}}},
        {"cache": {"hostPath": {"path": "a"}}},
        {"env": [{"name": "a=b"}]},
        {"env": [{"name": "A", "value": 1}]},
        {"resources": {"limits": {"memory": "a lot"}}},
        {"resources": {"limits": {"memory": 0.5}}},
        {"nodeSelector": {"a": True}},
        {"shmSize": "0Gi"},
        {"huggingFaceToken": {"name": "a"}},
        {"group": "a b"},
        {"labels": {"a": "-"}},
        {"tolerations": [1]},
        {"modelName": ""},
    ],
    ids=str,
)
def test_both_refuse(bad: Json) -> None:
    assert MODEL.server_refuses(bad)
    assert MODEL.model_refuses(bad)


@pytest.mark.parametrize(
    "bad",
    [{"minReplicas": 2}, {"gpuCount": 1, "tensorParallelSize": 2}, {"aliases": ["org/small"]}, {"idleTimeout": "366d"}],
    ids=str,
)
def test_what_no_schema_can_say_the_model_refuses_alone(bad: Json) -> None:
    assert not MODEL.server_refuses(bad)
    assert MODEL.model_refuses(bad)


@pytest.mark.parametrize("utilization", [1, 1.0, 0.5, 1e-3])
def test_a_fraction_may_be_an_integer(utilization: float) -> None:
    assert not MODEL.server_refuses({"gpuMemoryUtilization": utilization})
    assert not MODEL.model_refuses({"gpuMemoryUtilization": utilization})


def rule(**fields: Any) -> Json:
    return {"scalingRules": [{"metric": "queue_length", "threshold": 10, **fields}]}


def behavior(**fields: Any) -> Json:
    return {"behavior": {"scaleUp": fields}}


STEP = {"type": "Pods", "value": 1, "periodSeconds": 60}


@pytest.mark.parametrize(
    "bad",
    [
        {"scaleTargetRef": {}},
        {"scaleTargetRef": {"kind": "Deployment", "name": "a b"}},
        {"scaleTargetRef": {"kind": "apps/Deployment", "name": "a"}},
        {"scaleTargetRef": "vllm"},
        {"minReplicas": -1},
        {"maxReplicas": 0},
        {"maxReplicas": "10"},
        {"maxReplicas": 1.5},
        rule(metric="queue"),
        rule(threshold=0),
        rule(threshold="10"),
        rule(target=-1),
        rule(aggregation="p95"),
        rule(percentile=101),
        rule(percentile=-1),
        rule(window="soon"),
        rule(window=0),
        rule(query=" "),
        {"scalingRules": [{"metric": "queue_length"}]},
        {"scalingRules": {"metric": "queue_length", "threshold": 10}},
        behavior(stabilizationWindowSeconds=3601),
        behavior(stabilizationWindowSeconds=-1),
        behavior(stabilizationWindowSeconds="5m"),
        behavior(selectPolicy="max"),
        behavior(policies=[]),
        behavior(policies=[{**STEP, "value": 0}]),
        behavior(policies=[{**STEP, "periodSeconds": 0}]),
        behavior(policies=[{**STEP, "periodSeconds": 1801}]),
        behavior(policies=[{**STEP, "type": "pods"}]),
        behavior(policies=[{"type": "Pods", "value": 1}]),
        {"tolerance": -0.1},
        {"tolerance": 1.1},
        {"tolerance": "0.1"},
        {"pollingInterval": 0},
        {"pollingInterval": "0s"},
        {"pollingInterval": 1.5},
        {"idleTimeout": "0h0m"},
        {"idleTimeout": -5},
        {"fallback": {"replicas": 0}},
        {"fallback": {"replicas": 2, "failureThreshold": 0}},
        {"fallback": {"failureThreshold": 3}},
        {"schedule": [{"start": "0 8 * * *", "end": "0 18 * * *"}]},
        {"schedule": [{"start": "0 8 * *", "end": "0 18 * * *", "minReplicas": 2}]},
        {"paused": "true"},
    ],
    ids=str,
)
def test_both_refuse_a_policy(bad: Json) -> None:
    assert POLICY.server_refuses(bad)
    assert POLICY.model_refuses(bad)


@pytest.mark.parametrize(
    "bad",
    [
        {"minReplicas": 11},
        {"idleTimeout": "366d"},
        {"pollingInterval": "500ms"},
        {"scaleTargetRef": {"kind": "RayCluster", "name": "a"}},
        rule(percentile=50),
        rule(aggregation="ttft"),
        rule(metric="promql"),
        {"fallback": {"replicas": 11}},
    ],
    ids=str,
)
def test_what_no_schema_can_say_of_a_policy_is_refused_here_alone(bad: Json) -> None:
    assert not POLICY.server_refuses(bad)
    assert POLICY.model_refuses(bad)


@pytest.mark.parametrize("interval", [1, 30, "30s", "1h30m", "1.5s", "0h5m", 31_536_000])
def test_an_interval_is_a_number_of_seconds_or_a_duration(interval: int | str) -> None:
    assert not POLICY.server_refuses({"pollingInterval": interval})
    assert not POLICY.model_refuses({"pollingInterval": interval})

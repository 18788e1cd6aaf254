from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft4Validator
from pydantic.fields import FieldInfo

from vllm_chill.api.crd import crd
from vllm_chill.api.model_spec import VLLMModelSpec
from vllm_chill.api.spec_parts import Part, fields_of, part_of
from vllm_chill.api.vllm_model import parse_model
from vllm_chill.errors import InvalidModel

VERSION = crd()["spec"]["versions"][0]
SCHEMA = VERSION["schema"]["openAPIV3Schema"]
SPEC = SCHEMA["properties"]["spec"]
FIELDS = fields_of(VLLMModelSpec)

Json = dict[str, Any]


def obj(spec: Json) -> Json:
    return {"metadata": {"name": "small"}, "spec": {"modelName": "org/small", **spec}}


def as_python_reads(schema: Any) -> Any:
    # To Go the end of a text is where it ends; Python's $ is before a last line break too.
    if isinstance(schema, dict):
        return {
            key: value.replace("$", r"\Z") if key == "pattern" and isinstance(value, str) else as_python_reads(value)
            for key, value in schema.items()
        }
    return [as_python_reads(item) for item in schema] if isinstance(schema, list) else schema


SERVER = Draft4Validator(as_python_reads(SCHEMA))


def model_refuses(spec: Json) -> tuple[str, ...]:
    try:
        parse_model(obj(spec))
    except InvalidModel as refused:
        return refused.problems
    return ()


def server_refuses(spec: Json) -> list[str]:
    return [error.message for error in SERVER.iter_errors(obj(spec))]


def below(schema: Json) -> Iterator[Json]:
    yield schema
    for field in schema.get("properties", {}).values():
        yield from below(field)
    for name in ("items", "additionalProperties"):
        if name in schema:
            yield from below(schema[name])


class TestObject:
    def test_it_is_what_the_seeds_name(self) -> None:
        made = crd()
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
        assert (VERSION["name"], VERSION["served"], VERSION["storage"]) == ("v1alpha1", True, True)
        assert VERSION["subresources"] == {"status": {}}
        assert [(column["name"], column["jsonPath"]) for column in VERSION["additionalPrinterColumns"]] == [
            ("Model", ".spec.modelName"),
            ("Served As", ".spec.servedModelName"),
            ("Status", ".status.phase"),
            ("Age", ".metadata.creationTimestamp"),
        ]

    def test_it_is_json(self) -> None:
        assert json.loads(json.dumps(crd())) == crd()


class TestStructure:
    """Kubernetes' rules for structural schemas, as far as ours could break them."""

    ALLOWED = (
        {"type", "description", "properties", "items", "additionalProperties", "required", "not", "anyOf"}
        | {"minimum", "maximum", "exclusiveMinimum", "minLength", "maxLength", "pattern"}
        | {"minItems", "maxItems", "minProperties", "maxProperties"}
        | {"x-kubernetes-list-type", "x-kubernetes-list-map-keys"}
        | {"x-kubernetes-preserve-unknown-fields", "x-kubernetes-int-or-string"}
    )

    @pytest.mark.parametrize("schema", [*below(SCHEMA)], ids=lambda schema: schema.get("description", "")[:40])
    def test_every_value_has_one_type_and_nothing_that_is_not_allowed(self, schema: Json) -> None:
        assert set(schema) <= self.ALLOWED
        if schema.get("x-kubernetes-int-or-string"):
            assert "type" not in schema
            assert schema["anyOf"] == [{"type": "integer"}, {"type": "string"}]
            return
        assert schema["type"] in ("object", "array", "string", "integer", "number", "boolean")
        assert "anyOf" not in schema
        assert ("items" in schema) == (schema["type"] == "array")
        assert isinstance(schema.get("exclusiveMinimum", True), bool)
        assert not {"properties", "additionalProperties"} <= set(schema)
        if "not" in schema:
            assert set(schema["not"]) == {"pattern"}

    @pytest.mark.parametrize(
        "schema",
        [schema for schema in below(SCHEMA) if schema.get("x-kubernetes-list-type") == "map"],
        ids=lambda schema: schema["description"][:40],
    )
    def test_the_keys_of_a_list_are_required_in_its_items(self, schema: Json) -> None:
        assert set(schema["x-kubernetes-list-map-keys"]) <= set(schema["items"]["required"])

    def test_every_field_is_described(self) -> None:
        assert all(field.get("description") for field in SPEC["properties"].values())

    def test_a_description_has_the_flag_and_what_is_accepted(self) -> None:
        assert SPEC["properties"]["maxModelLen"]["description"] == (
            "The longest context. Not set: the model's own. A shorter one takes less GPU memory. "
            "In vLLM: --max-model-len. Accepts a number of tokens, at least 1."
        )

    def test_nothing_is_filled_in_by_the_server(self) -> None:
        assert not any("default" in schema for schema in below(SCHEMA))


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


def some_fields(most: int) -> st.SearchStrategy[Json]:
    def of(names: list[str]) -> st.SearchStrategy[Json]:
        return st.fixed_dictionaries({name: near_field(FIELDS[name]) for name in names})

    return st.lists(st.sampled_from(sorted(FIELDS)), min_size=1, max_size=most, unique=True).flatmap(of)


def check(spec: Json) -> None:
    """The server takes what the model takes, and refuses what a field of the model refuses by itself."""
    refused = model_refuses(spec)
    told = server_refuses(spec)
    if not refused:
        assert not told
    elif any("is not accepted; give" in problem or "it is missing; give" in problem for problem in refused):
        assert told, refused


@settings(max_examples=500, deadline=None)
@given(some_fields(4))
def test_the_server_takes_what_the_model_takes_and_refuses_each_bad_field(spec: Json) -> None:
    check(spec)


@pytest.mark.parametrize("name", FIELDS)
def test_of_every_field_they_say_the_same(name: str) -> None:
    for value in _VALUES:
        for nested in (value, [value], {"a": value}, {value: "a"} if isinstance(value, str) else value):
            check({name: nested})


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
    assert server_refuses(bad)
    assert model_refuses(bad)


@pytest.mark.parametrize(
    "bad",
    [{"minReplicas": 2}, {"gpuCount": 1, "tensorParallelSize": 2}, {"aliases": ["org/small"]}, {"idleTimeout": "366d"}],
    ids=str,
)
def test_what_no_schema_can_say_the_model_refuses_alone(bad: Json) -> None:
    assert not server_refuses(bad)
    assert model_refuses(bad)


@pytest.mark.parametrize("utilization", [1, 1.0, 0.5, 1e-3])
def test_a_fraction_may_be_an_integer(utilization: float) -> None:
    assert not server_refuses({"gpuMemoryUtilization": utilization})
    assert not model_refuses({"gpuMemoryUtilization": utilization})

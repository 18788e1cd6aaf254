from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.control.variant_index import VariantIndex
from vllm_chill.core.saturation.spec import VariantSpec, VariantTarget

KEYS = st.sampled_from(["a/1", "a/2", "b/1"])
PLACES = st.tuples(st.sampled_from("mn"), st.sampled_from(["Deployment", "StatefulSet"]), st.sampled_from("tu"))


def spec(key: str, kind: str, target: str) -> VariantSpec:
    namespace, _, name = key.partition("/")
    return VariantSpec(namespace, name, VariantTarget("apps/v1", kind, target), "model")


@given(st.lists(st.tuples(KEYS, st.none() | PLACES)))
def test_a_variant_is_found_by_what_it_is_of_now(steps: list[tuple[str, tuple[str, str, str] | None]]) -> None:
    index, there = VariantIndex(), dict[str, tuple[str, str, str]]()
    for key, place in steps:
        if place is None:
            index.drop(key)
            there.pop(key, None)
        else:
            model, kind, target = place
            index.put(key, model, spec(key, kind, target))
            there[key] = place
    assert set(index.models) == {model for model, _, _ in there.values()}
    for model in "mn":
        assert set(index.of_model(model)) == {key for key, place in there.items() if place[0] == model}
    for key, (model, kind, target) in there.items():
        namespace = key.partition("/")[0]
        assert index.model_of(key) == model
        same = {k for k, p in there.items() if k.partition("/")[0] == namespace and p[1:] == (kind, target)}
        assert set(index.of_target(namespace, kind, target)) == same
    assert all(index.model_of(key) is None for key in {"a/1", "a/2", "b/1"} - there.keys())

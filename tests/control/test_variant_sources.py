from __future__ import annotations

from typing import Any

from vllm_chill.api.variant import INSTANCE_LABEL
from vllm_chill.control.variant_sources import VariantSources
from vllm_chill.core.objects import Json


def item(name: str, *, model: str = "m", generation: int = 1, instance: str = "blue") -> Json:
    labels = {INSTANCE_LABEL: instance}
    return {
        "metadata": {"namespace": "a", "name": name, "uid": name, "generation": generation, "labels": labels},
        "spec": {"scaleTargetRef": {"kind": "Deployment", "name": name}, "modelID": model},
    }


class Looked(dict[str, Any]):
    """An object that counts how often it is looked into."""

    looks = 0

    def get(self, key: str, default: Any = None) -> Any:
        self.looks += 1
        return super().get(key, default)


def test_an_object_that_is_as_it_was_is_not_looked_into_again() -> None:
    sources, one, other = VariantSources(), Looked(item("one")), item("other")
    assert sources.take({"one": one, "other": other}) == {"a/one", "a/other"}
    looks = one.looks
    assert looks
    assert sources.take({"one": one, "other": item("other", model="n", generation=2)}) == {"a/other"}
    assert one.looks == looks


def test_what_comes_changes_and_goes_is_told_and_a_status_is_not() -> None:
    sources = VariantSources()
    assert sources.take({"one": item("one")}) == {"a/one"}
    assert sources.take({"one": item("one") | {"status": {}}}) == set()
    assert sources["a/one"].item["status"] == {}
    assert sources.take({"one": item("one", model="n", generation=2), "two": item("two")}) == {"a/one", "a/two"}
    assert sources.take({"two": item("two")}) == {"a/one"}
    assert list(sources) == ["a/two"]


def test_one_that_is_given_to_another_controller_goes_and_comes_back() -> None:
    sources = VariantSources("blue")
    assert sources.take({"one": item("one"), "two": item("two", instance="green")}) == {"a/one"}
    assert sources.take({"one": item("one", instance="green")}) == {"a/one"}
    assert not sources
    assert sources.take({"one": item("one")}) == {"a/one"}

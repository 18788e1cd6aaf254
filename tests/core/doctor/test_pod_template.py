from __future__ import annotations

import pytest

from vllm_chill.core.doctor.pod_template import demand, image_name, quantity, selector_holds, wants_node
from vllm_chill.core.objects import Json


@pytest.mark.parametrize(
    ("text", "number"),
    [("500m", 0.5), ("2", 2), (1, 1), ("1.5Gi", 1.5 * 2**30), ("1e3", 1000), ("10k", 10_000), ("", 0), ("x", 0)],
)
def test_quantities_are_read_as_kubernetes_has_them(text: object, number: float) -> None:
    assert quantity(text) == number


def test_a_pod_asks_for_what_its_containers_ask_for_or_one_that_runs_before() -> None:
    containers = [
        {"resources": {"requests": {"cpu": "1"}}},
        {"resources": {"limits": {"cpu": "500m", "memory": "1Gi"}}},
    ]
    before = [{"resources": {"requests": {"cpu": "4"}}}]
    assert demand({"containers": containers}) == {"cpu": 1.5, "memory": 2.0**30}
    assert demand({"containers": containers, "initContainers": before})["cpu"] == 4


@pytest.mark.parametrize(
    ("image", "found"),
    [
        ("vllm/vllm-openai:v0.11.0", ("vllm-openai", "v0.11.0")),
        ("host:5000/vllm", ("vllm", "")),
        ("a/b@sha256:cd", ("b", "sha256:cd")),
        ("a/b:v1@sha256:cd", ("b", "sha256:cd")),
    ],
)
def test_an_image_is_a_name_and_a_version(image: str, found: tuple[str, str]) -> None:
    assert image_name({"image": image}) == found


@pytest.mark.parametrize(
    ("operator", "values", "holds"),
    [
        ("In", ["a"], True),
        ("NotIn", ["a"], False),
        ("Exists", [], True),
        ("DoesNotExist", [], False),
        ("Gt", ["1"], False),
        ("New", [], True),
    ],
)
def test_an_expression_holds_as_kubernetes_has_it(operator: str, values: list[str], holds: bool) -> None:
    one = {"key": "k", "operator": operator, "values": values}
    assert selector_holds({"matchExpressions": [one]}, {"k": "a"}) is holds
    terms: Json = {"nodeSelectorTerms": [{"matchExpressions": [one]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
    assert wants_node({"affinity": affinity}, {"k": "a"}) is holds


@pytest.mark.parametrize(("value", "greater"), [("5", True), ("1", False), ("x", False)])
def test_numbers_are_compared_as_numbers(value: str, greater: bool) -> None:
    above = {"key": "gpus", "operator": "Gt", "values": ["4"]}
    below = {"key": "gpus", "operator": "Lt", "values": ["5"]}
    assert selector_holds({"matchExpressions": [above]}, {"gpus": value}) is greater
    assert selector_holds({"matchExpressions": [below]}, {"gpus": value}) is (value == "1")


def test_no_selector_selects_nothing_and_an_empty_one_all() -> None:
    assert (selector_holds(None, {}), selector_holds({}, {})) == (False, True)

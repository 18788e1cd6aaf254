from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.objects import Collection, differences, digest, is_owned_by, meant

VALUES = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES, VALUES)
def test_equal_values_have_no_differences_and_others_have_some(one: Any, other: Any) -> None:
    assert differences(one, one) == ()
    assert (one == other) == (not differences(one, other))
    assert (one == other) == (digest(one) == digest(other))


@pytest.mark.parametrize(
    ("before", "after", "where"),
    [
        ({"a": 1}, {"a": 2}, ("a",)),
        ({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}, ("a.c",)),
        ({"a": [{"b": 1}, {"b": 2}]}, {"a": [{"b": 1}, {"b": 3}]}, ("a[1].b",)),
        ({"a": ["--x", "1"]}, {"a": ["--x", "2"]}, ("a",)),
        ({"a": [{"b": 1}]}, {"a": []}, ("a",)),
        ({"a": 1}, {"a": 1, "b": None}, ()),
    ],
)
def test_a_difference_is_told_where_it_is(before: Any, after: Any, where: tuple[str, ...]) -> None:
    assert differences(before, after) == where


def test_what_the_server_writes_is_not_meant() -> None:
    own = {"uid": "1", "resourceVersion": "2", "generation": 3, "creationTimestamp": "x", "managedFields": []}
    item = {"kind": "A", "metadata": {"name": "a", "labels": {"b": "c"}, **own}, "spec": 1, "status": {"d": 1}}
    assert meant(item) == {"kind": "A", "metadata": {"name": "a", "labels": {"b": "c"}}, "spec": 1}


def test_an_owner_is_known_by_its_uid() -> None:
    item = {"metadata": {"ownerReferences": [{"kind": "VLLMModel", "name": "a", "uid": "1"}]}}
    assert is_owned_by(item, "1")
    assert not is_owned_by(item, "2")
    assert not is_owned_by({"metadata": {}}, "1")


def test_an_object_is_named_with_its_namespace_where_it_has_one() -> None:
    assert Collection("apps/v1", "Deployment", "deployments", "ai-apps").named("a") == "Deployment ai-apps/a"
    assert Collection("v1", "Node", "nodes").named("a") == "Node a"

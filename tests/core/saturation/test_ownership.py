"""Who owns whom."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.saturation.ownership import Owner, Ownership, controller_of


def owner(uid: str, kind: str = "ReplicaSet") -> Owner:
    return Owner("apps/v1", kind, f"{kind}-{uid}", uid)


def test_only_an_owner_that_controls_counts() -> None:
    pod = {
        "metadata": {
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u1"},
                {"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u2", "controller": False},
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "vllm-5d", "uid": "u3", "controller": True},
            ]
        }
    }
    assert controller_of(pod) == Owner("apps/v1", "ReplicaSet", "vllm-5d", "u3")
    pod["metadata"]["ownerReferences"].pop()
    assert controller_of(pod) is None
    assert controller_of({"metadata": {}}) is None
    assert controller_of({"metadata": {"ownerReferences": [{"controller": True}]}}) == Owner("", "", "", "")


def test_from_a_pod_to_all_that_own_it_and_back() -> None:
    ownership = Ownership()
    ownership.put("pod", owner("set"))
    assert list(ownership.above("pod")) == [owner("set")]
    ownership.put("set", owner("deployment", "Deployment"))
    ownership.put("deployment", owner("runtime", "VLLMRuntime"))
    ownership.put("other", owner("set"))
    assert [each.uid for each in ownership.above("pod")] == ["set", "deployment", "runtime"]
    assert list(ownership.below("runtime")) == ["deployment", "set", "pod", "other"]
    assert list(ownership.below("set")) == ["pod", "other"]


def test_what_is_gone_or_another_s_by_now_is_owned_no_more() -> None:
    ownership = Ownership()
    ownership.put("pod", owner("a"))
    ownership.put("pod", owner("b"))
    assert (list(ownership.below("a")), list(ownership.below("b"))) == ([], ["pod"])
    ownership.drop("pod")
    ownership.drop("pod")
    assert (list(ownership.below("b")), list(ownership.above("pod"))) == ([], [])


def test_what_owns_itself_has_an_end() -> None:
    ownership = Ownership()
    ownership.put("a", owner("b"))
    ownership.put("b", owner("a"))
    assert {each.uid for each in ownership.above("a")} == {"a", "b"}
    assert set(ownership.below("a")) == {"a", "b"}


uids = st.sampled_from("abcdefgh")
changes = st.lists(st.tuples(uids, st.none() | uids | st.just("gone")), max_size=30)


@given(changes)
def test_below_is_above_turned_round_whatever_comes_and_goes(steps: list[tuple[str, str | None]]) -> None:
    ownership, owners = Ownership(), dict[str, str | None]()
    for uid, of in steps:
        if of == "gone":
            ownership.drop(uid)
            owners.pop(uid, None)
        else:
            ownership.put(uid, None if of is None else owner(of))
            owners[uid] = of
    for uid in "abcdefgh":
        assert {one for one in owners if uid in {each.uid for each in ownership.above(one)}} == set(
            ownership.below(uid)
        )
        direct = next(iter(ownership.above(uid)), None)
        assert (None if direct is None else direct.uid) == owners.get(uid)
    for uid, of in owners.items():
        ownership.drop(uid)
        assert uid not in ownership.below(of or "")
    assert ownership._owned == {}

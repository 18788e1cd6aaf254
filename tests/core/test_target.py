from __future__ import annotations

import pytest

from vllm_chill.core.target import (
    STATEFUL_SETS,
    Endpoint,
    Observation,
    Progress,
    Replica,
    Resource,
    Stage,
    TargetRef,
)

SERVICE = Endpoint("vllm-svc", 80)
A, B = Endpoint("10.0.0.1", 8000), Endpoint("10.0.0.2", 8000)
ADDRESSES = {"a": A, "b": B}


def by_service(serving: str, members: str = "ab") -> Observation:
    return replicas(serving, members, (SERVICE,) if serving else ())


def direct(serving: str, members: str = "ab") -> Observation:
    return replicas(serving, members, tuple(ADDRESSES[name] for name in serving))


def replicas(serving: str, members: str, endpoints: tuple[Endpoint, ...]) -> Observation:
    """Each letter of `members` is a replica, those of `serving` serve behind the endpoints."""
    progress = Progress(Stage.STARTING)
    return Observation(
        replicas=2,
        live=len(members),
        endpoints=endpoints,
        serving=frozenset(serving),
        members=tuple(Replica(name, ADDRESSES[name], name in serving, progress) for name in members),
    )


@pytest.mark.parametrize(
    ("before", "now", "departed"),
    [
        pytest.param(direct("ab"), direct("ab"), (), id="nothing happened"),
        pytest.param(direct("a"), direct("ab"), (), id="another is ready"),
        pytest.param(direct("ab"), direct("b", "b"), (A,), id="one left, and the other's connections stay"),
        pytest.param(direct("ab"), direct("b"), (A,), id="one is no longer ready"),
        pytest.param(direct("a", "a"), direct("", ""), (A,), id="the last one left"),
        pytest.param(direct("a"), direct("a", "a"), (B,), id="one left before it was ready"),
        pytest.param(direct("", "a"), direct("", ""), (A,), id="the only one left before it was ready"),
        pytest.param(by_service("a", "a"), direct("a", "a"), (SERVICE,), id="from the Service to the pod"),
        pytest.param(by_service("ab"), by_service("b", "b"), (SERVICE, A), id="one of those behind a Service left"),
        pytest.param(by_service("ab"), by_service("b"), (SERVICE,), id="one behind a Service is no longer ready"),
        pytest.param(by_service("a"), by_service("ab"), (), id="another is ready behind a Service"),
    ],
)
def test_connections_that_may_lead_to_a_replica_that_serves_no_longer(
    before: Observation, now: Observation, departed: tuple[Endpoint, ...]
) -> None:
    assert now.departed_from(before) == departed


def test_without_names_of_replicas_an_endpoint_departs_when_it_is_no_longer_one() -> None:
    before, now = Observation(1, 1, (A,)), Observation(1, 1)
    assert now.departed_from(before) == (A,)
    assert before.departed_from(before) == ()


@pytest.mark.parametrize(
    ("ref", "text", "named"),
    [
        (TargetRef("ns", "vllm"), "ns/vllm", "Deployment ns/vllm"),
        (TargetRef("ns", "vllm", STATEFUL_SETS), "StatefulSet ns/vllm", "StatefulSet ns/vllm"),
    ],
)
def test_a_target_is_called_by_its_kind_unless_it_is_a_deployment(ref: TargetRef, text: str, named: str) -> None:
    assert (str(ref), ref.named) == (text, named)


def test_a_kind_of_the_core_group_has_a_version_without_a_group() -> None:
    assert Resource("", "v1", "replicationcontrollers", "ReplicationController").api_version == "v1"
    assert STATEFUL_SETS.api_version == "apps/v1"

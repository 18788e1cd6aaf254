from __future__ import annotations

import pytest

from tests.core.doctor.world import ASKED, engine, found, is_fine, named, only, pods, sound, target
from vllm_chill.core.doctor.finding import Outcome, Unseen
from vllm_chill.core.doctor.picture import Asked
from vllm_chill.core.doctor.target import DEPLOYMENT, GRACE, IMAGE, STRATEGY


def test_the_deployment_is_told_with_its_replicas() -> None:
    assert only(DEPLOYMENT, sound()).says == "Deployment ai-apps/vllm is there, asleep"
    assert only(DEPLOYMENT, sound(target=target(replicas=2))).says.endswith("with replicas: 2")


def test_one_that_is_not_there_is_told_with_names_like_it() -> None:
    finding = only(DEPLOYMENT, sound(target=None), Asked(deployment="vlm"))
    assert finding.outcome is Outcome.FAILURE
    assert "and there is vllm" in finding.says
    assert "--deployment vllm" in finding.remedy


def test_one_of_another_namespace_is_told() -> None:
    finding = only(DEPLOYMENT, sound(target=None, elsewhere=("llm",)))
    assert finding.says.endswith("in llm")
    assert "--namespace llm" in finding.remedy


def test_without_any_an_example_is_named() -> None:
    finding = only(DEPLOYMENT, sound(target=None, deployments=()))
    assert (finding.says[-13:], finding.paste) == ("nor any other", "kubectl apply -k deploy/example")
    others = only(DEPLOYMENT, sound(target=None, deployments=(named("web"),)))
    assert others.says.endswith("; there is web")


def test_one_that_may_not_be_seen_is_no_failure() -> None:
    assert only(DEPLOYMENT, sound(target=Unseen("needs a right"))).outcome is Outcome.UNKNOWN


def test_with_models_there_need_be_none() -> None:
    assert found(DEPLOYMENT, sound(target=None), Asked(of_models=True)) == []


ROLLING = {"type": "RollingUpdate"}


@pytest.mark.parametrize(
    ("strategy", "outcome"),
    [
        pytest.param({"type": "Recreate"}, Outcome.OK, id="the old one goes first"),
        pytest.param(ROLLING, Outcome.WARNING, id="a new one comes first"),
        pytest.param({}, Outcome.WARNING, id="as Kubernetes has it"),
        pytest.param({**ROLLING, "rollingUpdate": {"maxSurge": 0}}, Outcome.OK, id="never one more"),
    ],
)
def test_a_rollout_must_not_wait_for_a_gpu(strategy: dict[str, object], outcome: Outcome) -> None:
    item = target()
    item["spec"]["strategy"] = strategy
    assert only(STRATEGY, sound(target=item)).outcome is outcome


def test_without_gpus_a_rollout_may_be_as_it_likes() -> None:
    item = target(strategy=ROLLING, template={"spec": {"containers": {"resources": None}}})
    assert is_fine(found(STRATEGY, sound(target=item)))


@pytest.mark.parametrize(("seconds", "outcome"), [(2, Outcome.WARNING), (10, Outcome.OK), (None, Outcome.OK)])
def test_an_engine_needs_time_to_end(seconds: int | None, outcome: Outcome) -> None:
    assert only(GRACE, pods(terminationGracePeriodSeconds=seconds)).outcome is outcome


@pytest.mark.parametrize(
    ("image", "policy", "outcome"),
    [
        pytest.param("vllm/vllm-openai:v0.11.0", None, Outcome.OK, id="a version"),
        pytest.param("vllm/vllm-openai@sha256:ab", None, Outcome.OK, id="a digest"),
        pytest.param("host:5000/vllm", None, Outcome.WARNING, id="a port, and no version"),
        pytest.param("vllm:latest", "IfNotPresent", Outcome.WARNING, id="latest"),
        pytest.param("vllm:v1", "Always", Outcome.WARNING, id="a registry each time"),
    ],
)
def test_a_wake_should_need_no_registry(image: str, policy: str | None, outcome: Outcome) -> None:
    assert only(IMAGE, engine(image=image, imagePullPolicy=policy), ASKED).outcome is outcome

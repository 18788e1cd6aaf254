"""Scaling policies and their targets, in memory and on loop time."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from tests.control.model_stage import DEPLOYMENTS, NAMESPACE
from tests.control.policy_stage import HPAS, POLICIES, POLL, SCALED_OBJECTS, deployment, hpa, policy_object, staged
from tests.control.scaling_stage import Clock
from vllm_chill.adapters.memory_objects import MemoryObjects
from vllm_chill.control.autoscaler import Autoscaler
from vllm_chill.control.policy_reports import OVERRIDE
from vllm_chill.core.scaling.policy import Policy
from vllm_chill.core.target import STATEFUL_SETS, Resource, TargetRef
from vllm_chill.errors import BackendRefused, BadRequest

pytestmark = pytest.mark.looptime(start=100)

_VLLM = TargetRef(NAMESPACE, "vllm")
_ANNOTATED = {
    "vllm-chill.io/autoscale": "true",
    "vllm-chill.io/min-replicas": "2",
    "vllm-chill.io/max-replicas": "4",
    "vllm-chill.io/metric.queue_length": "10",
}
_OWN = Policy("qwen", 1, 3)


# Which target a policy is for.


async def test_a_deployment_that_nobody_serves_is_scaled_by_a_controller_of_its_own() -> None:
    async with staged(deployment(), policy_object()) as stage:
        assert stage.targets.made == [_VLLM]
        stage.load().queue = 45
        await asyncio.sleep(POLL + 1)
        assert stage.replicas() == 5
        stage.load().queue = 0
        await asyncio.sleep(POLL + 5)
        assert stage.replicas() == 1


async def test_it_is_let_go_with_its_policy_and_stays_as_it_is() -> None:
    async with staged(deployment(), policy_object()) as stage:
        stage.load().queue = 45
        await asyncio.sleep(POLL + 1)
        stage.store.remove(POLICIES, "example")
        await asyncio.sleep(POLL)
        assert (stage.targets.running, len(stage.scalers), stage.replicas()) == (set(), 0, 5)


async def test_one_that_is_served_is_scaled_by_the_controller_that_it_has() -> None:
    async with staged(deployment(), policy_object(minReplicas=3), served={"one": "vllm"}) as stage:
        assert stage.targets.made == []
        policy = stage.scaler("one").policy
        assert policy is not None
        assert policy.name == "example"
        assert stage.scaler("one").source == "vLLMScalingPolicy ai-apps/example"
        assert stage.replicas() == 3


@pytest.mark.parametrize(
    "item",
    [
        pytest.param(policy_object(target="qwen", kind="VLLMModel", minReplicas=3), id="a VLLMModel"),
        pytest.param(policy_object(target="meta-llama/Llama-2-70b-hf", minReplicas=3), id="the name that requests say"),
        pytest.param(policy_object(target="vllm-qwen", minReplicas=3), id="its Deployment"),
    ],
)
async def test_a_model_is_named_as_itself_by_what_it_is_called_or_by_what_runs_it(item: dict[str, object]) -> None:
    async with staged(deployment("vllm-qwen", 0), served={"qwen": "vllm-qwen"}) as stage:
        stage.targets.models["meta-llama/Llama-2-70b-hf"] = "qwen"
        stage.store.create(POLICIES, item)
        await asyncio.sleep(POLL)
        assert stage.replicas("vllm-qwen") == 3
        assert stage.condition("Active") == ("True", "InForce")


async def test_a_model_that_comes_later_is_found_then() -> None:
    async with staged(deployment(), policy_object(target="qwen", kind="VLLMModel"), served={"one": "vllm"}) as stage:
        assert stage.condition("Active") == ("False", "TargetNotFound")
        assert stage.message("Active") == 'there is no model "qwen"'
        stage.targets.models["qwen"] = "one"
        stage.policies.changed()
        await asyncio.sleep(2)
        assert stage.condition("Active") == ("True", "InForce")


async def test_a_deployment_that_comes_later_is_found_then() -> None:
    async with staged(policy_object()) as stage:
        assert stage.condition("Active") == ("False", "TargetNotFound")
        stage.store.create(DEPLOYMENTS, deployment())
        await asyncio.sleep(2)
        assert stage.condition("Active") == ("True", "InForce")


async def test_nothing_is_decided_on_before_it_is_known_which_models_there_are() -> None:
    async with staged(deployment()) as stage:
        stage.targets.known = False
        stage.store.create(POLICIES, policy_object())
        await asyncio.sleep(5)
        assert stage.targets.made == []
        stage.targets.known = True
        stage.policies.changed()
        assert stage.targets.made == [_VLLM]


async def test_one_that_comes_to_be_served_is_no_longer_scaled_apart() -> None:
    async with staged(deployment(), policy_object()) as stage:
        assert stage.targets.running == {"ai-apps/vllm"}
        controller = stage.targets.controller(_VLLM, "ai-apps/vllm")
        served = Autoscaler("ai-apps/vllm", controller, stage.load(), wall=Clock())
        stage.scalers.add(served)
        await asyncio.sleep(1)
        assert stage.targets.running == set()
        assert stage.scaler() is served
        assert served.policy is not None


async def test_any_other_kind_is_asked_for_until_it_is_known() -> None:
    async with staged(policy_object(kind="InferenceService")) as stage:
        assert stage.condition("Active") == ("False", "TargetNotFound")
        assert "does not know the kind InferenceService" in stage.message("Active")
        kind = Resource("example.com", "v1", "inferenceservices", "InferenceService")
        stage.kinds.known["example.com/v1", "InferenceService"] = kind
        await asyncio.sleep(120)
        assert stage.targets.made == [TargetRef(NAMESPACE, "vllm", kind)]
        asked = stage.kinds.asked
        await asyncio.sleep(600)
        assert stage.kinds.asked == asked <= 4


# Which policy a target has.


async def test_of_two_policies_for_a_target_the_older_has_it_and_the_other_says_so() -> None:
    young, old = policy_object("a-young", maxReplicas=9), policy_object("old")
    async with staged(deployment(), old) as stage:
        young["metadata"]["creationTimestamp"] = "2027-01-01T00:00:00Z"
        stage.store.create(POLICIES, young)
        stage.store.change(POLICIES, "a-young", {"metadata": {"creationTimestamp": "2027-01-01T00:00:00Z"}})
        await asyncio.sleep(5)
        assert stage.condition("Active", "old") == ("True", "InForce")
        for kind, status in (("Active", "False"), ("Conflict", "True")):
            assert stage.condition(kind, "a-young") == (status, "TargetTaken")
            assert stage.message(kind, "a-young") == "the target is scaled by vLLMScalingPolicy ai-apps/old"
        assert len(stage.said("Conflict", "a-young")) == 1
        stage.store.remove(POLICIES, "old")
        await asyncio.sleep(5)
        assert stage.condition("Active", "a-young") == ("True", "InForce")
        assert stage.condition("Conflict", "a-young") == ("False", "NoOtherWriter")


async def test_annotations_of_a_deployment_are_a_policy() -> None:
    async with staged(deployment(annotations=_ANNOTATED)) as stage:
        assert stage.replicas() == 2
        stage.load().queue = 100
        await asyncio.sleep(POLL + 1)
        assert stage.replicas() == 4
        stage.store.change(DEPLOYMENTS, "vllm", {"metadata": {"annotations": {"vllm-chill.io/autoscale": None}}})
        await asyncio.sleep(1)
        assert len(stage.scalers) == 0


async def test_annotations_of_a_stateful_set_are_a_policy_too() -> None:
    item = {**deployment(annotations=_ANNOTATED), "kind": "StatefulSet"}
    async with staged(item) as stage:
        assert stage.targets.made == [TargetRef(NAMESPACE, "vllm", STATEFUL_SETS)]


async def test_an_object_beats_annotations_and_those_beat_the_model() -> None:
    async with staged(
        deployment(annotations=_ANNOTATED), policy_object(), served={"qwen": "vllm"}, own={"qwen": _OWN}
    ) as stage:

        def bounds() -> tuple[int, int]:
            policy = stage.scaler("qwen").policy
            assert policy is not None
            return policy.min_replicas, policy.max_replicas

        assert bounds() == (1, 10)
        stage.store.remove(POLICIES, "example")
        assert bounds() == (2, 4)
        stage.store.change(DEPLOYMENTS, "vllm", {"metadata": {"annotations": {"vllm-chill.io/autoscale": "false"}}})
        assert bounds() == (1, 3)
        stage.targets.own.clear()
        stage.policies.changed()
        assert stage.scaler("qwen").policy is None


async def test_a_policy_that_cannot_be_used_says_everything_that_is_wrong() -> None:
    async with staged(deployment(), policy_object(maxReplicas=-1, tolerance="x")) as stage:
        assert stage.targets.made == []
        assert stage.condition("Active") == ("False", "SpecNotAccepted")
        for part in ("spec.maxReplicas", "spec.tolerance"):
            assert part in stage.message("Active")
        [said] = stage.said("NotAccepted")
        assert "spec.maxReplicas" in said.message
        assert said.warning


async def test_one_that_cannot_be_used_any_more_leaves_its_earlier_version_in_force() -> None:
    async with staged(deployment(), policy_object(minReplicas=2)) as stage:
        stage.change({"spec": {"minReplicas": 50}})
        await asyncio.sleep(5)
        assert stage.replicas() == 2
        assert stage.condition("Active") == ("True", "EarlierSpecInForce")
        assert "spec.minReplicas: 50 is more than" in stage.message("Active")
        stage.change({"spec": {"minReplicas": 3}})
        await asyncio.sleep(5)
        assert stage.replicas() == 3
        assert stage.condition("Active") == ("True", "InForce")


async def test_annotations_that_cannot_be_used_are_told_and_the_earlier_ones_hold() -> None:
    async with staged(deployment(annotations=_ANNOTATED)) as stage:
        wrong = {"vllm-chill.io/max-replicas": "many", "vllm-chill.io/tolerance": "x"}
        stage.store.change(DEPLOYMENTS, "vllm", {"metadata": {"annotations": wrong}})
        await asyncio.sleep(5)
        [said] = stage.said("NotAccepted", "vllm")
        assert "max-replicas" in said.message
        assert "tolerance" in said.message
        assert stage.scaler().policy is not None


async def test_a_policy_that_is_made_anew_has_no_earlier_version() -> None:
    async with staged(deployment(), policy_object()) as stage:
        stage.store.remove(POLICIES, "example")
        stage.store.create(POLICIES, policy_object(maxReplicas=-1))
        await asyncio.sleep(2)
        assert len(stage.scalers) == 0
        assert stage.condition("Active") == ("False", "SpecNotAccepted")


# What a cluster lacks.


async def test_kinds_that_the_server_does_not_know_are_in_nobodys_way() -> None:
    store = MemoryObjects()
    for collection in (POLICIES, HPAS, SCALED_OBJECTS):
        store.lose(collection, f"the API server does not know {collection.plural}")
    async with staged(deployment(annotations=_ANNOTATED), store=store) as stage:
        assert stage.replicas() == 2
        stage.store.create(POLICIES, policy_object(minReplicas=3))
        stage.store.find(POLICIES)
        await asyncio.sleep(2)
        assert stage.replicas() == 3


async def test_a_target_that_is_served_needs_no_right_to_see_all_deployments() -> None:
    store = MemoryObjects()
    store.lose(DEPLOYMENTS, "it may not list them")
    async with staged(policy_object(), store=store, served={"one": "vllm"}) as stage:
        assert stage.scaler("one").policy is not None


async def test_policies_that_cannot_be_seen_for_a_while_stay_in_force() -> None:
    async with staged(deployment(), policy_object()) as stage:
        for collection in (POLICIES, HPAS):
            stage.store.lose(collection, "the API server is away")
        stage.load().queue = 45
        await asyncio.sleep(60)
        assert stage.scaler().decision is not None
        assert stage.scaler().policy is not None


async def test_without_the_right_to_write_a_status_it_is_scaled_all_the_same() -> None:
    async with staged(deployment(), policy_object()) as stage:
        stage.store.fail_next = [BackendRefused("it may not")] * 1000
        stage.load().queue = 45
        await asyncio.sleep(POLL + 1)
        assert stage.replicas() == 5


# Others who scale.


@pytest.mark.parametrize("other", [hpa(), {**hpa(), "apiVersion": SCALED_OBJECTS.api_version, "kind": "ScaledObject"}])
async def test_a_target_that_another_autoscaler_names_is_left_to_it(other: dict[str, object]) -> None:
    async with staged(deployment(replicas=2), policy_object(minReplicas=3), other) as stage:
        await asyncio.sleep(100)
        assert stage.replicas() == 2
        assert stage.condition("Conflict") == ("True", "OtherWriter")
        assert stage.condition("Active") == ("False", "Conflict")
        assert f"{other['kind']} ai-apps/other scales it too" in stage.message("Conflict")
        assert len(stage.said("Conflict")) == 1
        stage.store.remove(HPAS if other["kind"] == "HorizontalPodAutoscaler" else SCALED_OBJECTS, "other")
        await asyncio.sleep(5)
        assert stage.replicas() == 3
        assert stage.condition("Conflict") == ("False", "NoOtherWriter")
        assert len(stage.said("ConflictOver")) == 1


async def test_one_that_names_something_else_is_no_conflict() -> None:
    async with staged(deployment(), policy_object(), hpa("other")) as stage:
        assert stage.condition("Conflict") == ("False", "NoOtherWriter")


async def test_who_writes_again_and_again_is_a_conflict_until_it_has_been_quiet() -> None:
    async with staged(deployment(), policy_object(minReplicas=3)) as stage:
        for _ in range(3):
            stage.store.change(DEPLOYMENTS, "vllm", {"spec": {"replicas": 1}})
            await asyncio.sleep(POLL + 5)
        assert stage.replicas() == 1
        assert stage.condition("Conflict") == ("True", "OtherWriter")
        assert len(stage.said("Conflict")) == 1
        await asyncio.sleep(600)
        assert stage.replicas() == 3
        assert stage.condition("Conflict") == ("False", "NoOtherWriter")


# What is reported.


async def test_the_status_says_what_was_decided_and_why() -> None:
    async with staged(deployment(), policy_object()) as stage:
        stage.load().queue = 45
        await asyncio.sleep(POLL + 5)
        status = stage.status()
        assert (status["currentReplicas"], status["desiredReplicas"], status["observedGeneration"]) == (5, 5, 1)
        assert status["lastScaleTime"].startswith("2026-03-02T12:0")
        [metric] = status["metrics"]
        assert (metric["metric"], metric["current"], metric["target"]) == ("queue_length", 9, 10)
        assert [said["stage"] for said in status["trail"]] == ["recommend"]
        conditions = {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}
        assert conditions == {
            "Active": ("True", "InForce"),
            "AbleToScale": ("True", "ReadyForNewScale"),
            "ScalingLimited": ("False", "DesiredWithinRange"),
            "MetricsAvailable": ("True", "ValidMetricFound"),
            "Conflict": ("False", "NoOtherWriter"),
        }


async def test_each_change_of_replicas_is_an_event() -> None:
    async with staged(deployment(), policy_object()) as stage:
        stage.load().queue = 45
        await asyncio.sleep(POLL + 5)
        stage.store.change(DEPLOYMENTS, "vllm", {"spec": {"replicas": 7}})
        await asyncio.sleep(1)
        [rescaled] = stage.said("SuccessfulRescale")
        assert rescaled.message.startswith("New size: 5; reason: queue_length is 45")
        [elsewhere] = stage.said("ScaledElsewhere")
        assert elsewhere.message == "somebody else scaled it from 5 to 7"


async def test_a_status_that_says_nothing_new_is_not_written() -> None:
    async with staged(deployment(), policy_object()) as stage:
        await asyncio.sleep(60)
        written = stage.statuses()
        await asyncio.sleep(3600)
        assert stage.statuses() == written


async def test_figures_are_written_at_most_once_a_minute_or_when_they_have_moved() -> None:
    async with staged(deployment(), policy_object(maxReplicas=1)) as stage:
        await asyncio.sleep(60)
        written = stage.statuses()
        for second in range(600):
            stage.load().queue = 10 + (second % 7) / 10
            await asyncio.sleep(1)
        assert 5 <= stage.statuses() - written <= 11
        written = stage.statuses()
        for second in range(600):
            stage.load().queue = second
            await asyncio.sleep(1)
        assert 30 <= stage.statuses() - written <= 41


async def test_a_write_that_was_not_seen_yet_is_not_done_again() -> None:
    async with staged(deployment(), policy_object()) as stage:
        stage.store.lose(POLICIES, "the watch is away")
        stage.load().queue = 45
        await asyncio.sleep(POLL + 5)
        written = stage.statuses()
        await asyncio.sleep(600)
        assert stage.statuses() == written


async def test_conditions_keep_since_when_they_are_so() -> None:
    async with staged(deployment(), policy_object()) as stage:
        await asyncio.sleep(60)
        [since] = [c["lastTransitionTime"] for c in stage.status()["conditions"] if c["type"] == "Active"]
        stage.load().queue = 45
        await asyncio.sleep(60)
        assert [c["lastTransitionTime"] for c in stage.status()["conditions"] if c["type"] == "Active"] == [since]


# By hand.


async def test_an_adjustment_is_kept_in_the_status_and_outlives_a_restart() -> None:
    store = MemoryObjects()
    async with staged(deployment(), policy_object(), store=store) as stage:
        stage.scaler().adjust(4, "alice", 3600)
        await asyncio.sleep(5)
        assert stage.replicas() == 4
        kept = stage.status()["override"]
        assert (kept["replicas"], kept["by"]) == (4, "alice")
        [said] = stage.said("Adjusted")
        assert said.message == f"set to 4 by alice until {kept['expires']}"
    async with staged(store=store) as stage:
        override = stage.scaler().override
        assert override is not None
        assert (override.replicas, override.by) == (4, "alice")
        assert override.until - stage.scaler().controller.now() == pytest.approx(3590, abs=15)
        assert len(stage.said("Adjusted")) == 1
        await asyncio.sleep(3700)
        assert stage.replicas() == 1
        assert "override" not in stage.status()
        assert len(stage.said("AdjustmentEnded")) == 1


async def test_one_of_a_policy_without_an_object_is_kept_in_an_annotation() -> None:
    store = MemoryObjects()
    async with staged(deployment(annotations=_ANNOTATED), store=store) as stage:
        stage.scaler().adjust(3, "bob", 3600)
        await asyncio.sleep(5)
        assert stage.replicas() == 3
    async with staged(store=store) as stage:
        override = stage.scaler().override
        assert override is not None
        assert (override.replicas, override.by) == (3, "bob")
        await asyncio.sleep(3700)
        item = store.read(DEPLOYMENTS, "vllm")
        assert item is not None
        assert OVERRIDE not in item["metadata"]["annotations"]


async def test_one_of_a_models_own_policy_is_kept_with_its_deployment() -> None:
    store = MemoryObjects()
    async with staged(deployment(), store=store, served={"qwen": "vllm"}, own={"qwen": _OWN}) as stage:
        stage.scaler("qwen").adjust(3, "bob", 3600)
        await asyncio.sleep(5)
    async with staged(store=store, served={"qwen": "vllm"}, own={"qwen": _OWN}) as stage:
        override = stage.scaler("qwen").override
        assert override is not None
        assert override.by == "bob"


async def test_without_a_policy_nothing_is_adjusted() -> None:
    async with staged(deployment(), served={"qwen": "vllm"}) as stage:
        with pytest.raises(BadRequest):
            stage.scaler("qwen").adjust(3, "bob", 3600)


# Its life.


async def test_a_served_target_with_a_minimum_of_0_sleeps_by_the_policys_idle_timeout() -> None:
    async with staged(deployment(), policy_object(minReplicas=0, idleTimeout="60s"), served={"qwen": "vllm"}) as stage:
        await asyncio.sleep(100)
        assert stage.replicas() == 0
        assert stage.condition("ScalingLimited") == ("Unknown", "Asleep")
        assert stage.condition("Active") == ("True", "InForce")


async def test_one_that_is_not_served_is_left_at_0_by_whoever_put_it_there() -> None:
    async with staged(deployment(replicas=0), policy_object()) as stage:
        await asyncio.sleep(100)
        assert stage.replicas() == 0
        assert stage.condition("Active") == ("False", "ScalingDisabled")


async def test_times_of_the_status_are_in_order() -> None:
    async with staged(deployment(), policy_object()) as stage:
        seen = []
        for queue in (45, 95, 5):
            stage.load().queue = queue
            await asyncio.sleep(POLL + 5)
            seen.append(stage.status()["lastScaleTime"])
        assert all(before < after for before, after in pairwise(seen))

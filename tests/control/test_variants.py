"""Variants are decided on model by model, and what comes of it is told, or done."""

from __future__ import annotations

import asyncio

import pytest

from tests.control.variant_stage import DEPLOYMENTS, QUICK, VARIANTS, controlling
from vllm_chill.core.saturation.places import EngineLoad

pytestmark = pytest.mark.looptime(start=1000)

BUSY = EngineLoad(kv=0.95, queue=8.0, running=20.0)
CALM = EngineLoad(kv=0.5, queue=0.0, running=8.0)
EASY = EngineLoad(kv=0.1, queue=0.0, running=1.0)
QUIET = EngineLoad(kv=0.0, queue=0.0, running=0.0, successes=7)


async def test_an_overloaded_model_is_to_have_more_of_the_cheapest() -> None:
    async with controlling() as stage:
        stage.deploy("dear", 1)
        stage.deploy("cheap", 1)
        stage.variant("dear", variantCost="80.0", maxReplicas=4)
        stage.variant("cheap", variantCost="40.0", maxReplicas=9)
        stage.engines.loads = {"dear": BUSY, "cheap": BUSY}
        await asyncio.sleep(45)
        assert stage.wanted("dear") == 1
        assert (stage.wanted("cheap") or 0) > 1
        assert stage.series("wva_desired_replicas")["cheap"] == stage.wanted("cheap")
        assert stage.series("wva_current_replicas") == {"cheap": 1, "dear": 1}
        assert stage.condition("cheap", "OptimizationReady")[:2] == ("True", "OptimizationSucceeded")
        assert stage.condition("cheap", "TargetResolved") == (
            "True",
            "TargetFound",
            "Scale target Deployment cheap found",
        )
        assert stage.condition("cheap", "MetricsAvailable")[:2] == ("True", "MetricsFound")
        trail = stage.status("cheap")["decision"]["trail"]
        assert [step["stage"] for step in trail if step["stage"] != "collect"][:2] == ["analyze", "optimize"]
        assert stage.actuated.told == []


async def test_an_accelerator_is_told_as_it_was_named() -> None:
    async with controlling() as stage:
        stage.deploy("one", 1)
        stage.variant("one")
        label = {"inference.optimization/acceleratorName": "NVIDIA-H100-80GB-HBM3"}
        stage.store.change(VARIANTS, "one", {"metadata": {"labels": label}})
        stage.engines.loads = {"one": CALM}
        await asyncio.sleep(45)
        assert stage.status("one")["desiredOptimizedAlloc"]["accelerator"] == "NVIDIA-H100-80GB-HBM3"


async def test_a_decision_is_an_event_and_a_count() -> None:
    async with controlling() as stage:
        stage.one(1, CALM, maxReplicas=2)
        await asyncio.sleep(60)
        stage.engines.loads = {"one": BUSY}
        await asyncio.sleep(60)
        said = [one for one in stage.store.said if one.reason == "ScalingDecision"]
        assert len(said) == 1
        assert said[0].message.startswith("from 1 to 2 replicas (Saturated): ")
        assert sum(stage.series("wva_replica_scaling_total").values()) == 1


async def test_what_is_decided_at_the_first_look_counts_and_what_another_decided_does_not() -> None:
    async with controlling() as stage:
        stage.one(1, BUSY, maxReplicas=2)
        await asyncio.sleep(60)
        assert stage.wanted("one") == 2
        assert sum(stage.series("wva_replica_scaling_total").values()) == 1
    stage.metrics.leads(False)
    async with controlling(stage=stage):
        await asyncio.sleep(3)
        assert stage.series("wva_desired_replicas") == {"one": 2}
        assert sum(stage.series("wva_replica_scaling_total").values()) == 0
        assert len([one for one in stage.store.said if one.reason == "ScalingDecision"]) == 1


async def test_what_is_calm_stays() -> None:
    async with controlling() as stage:
        stage.one(3, EngineLoad(kv=0.6, queue=1.0, running=9.0), maxReplicas=5)
        await asyncio.sleep(1800)
        assert stage.wanted("one") == 3
        assert [one.reason for one in stage.store.said] == []


async def test_direct_actuation_follows_the_load_up_and_down() -> None:
    async with controlling(direct=True) as stage:
        stage.config(**QUICK)
        stage.one(1, BUSY, maxReplicas=3)
        await asyncio.sleep(120)
        assert stage.wanted("one") == 3
        assert stage.status("one")["actuation"] == {"applied": True}
        stage.engines.loads = {"one": EASY}
        await asyncio.sleep(600)
        assert stage.wanted("one") == 1
        assert [replicas for _, replicas in stage.actuated.told][-3:] == [3, 2, 1]


async def test_what_hinders_it_is_told() -> None:
    async with controlling(direct=True) as stage:
        stage.actuated.hindered = "KEDA scales it too"
        stage.one(1, BUSY, maxReplicas=3)
        await asyncio.sleep(60)
        assert stage.status("one")["actuation"] == {"applied": False}
        assert stage.condition("one", "OptimizationReady") == ("False", "OptimizationFailed", "KEDA scales it too")


async def test_a_variant_may_be_told_while_others_are_done() -> None:
    async with controlling(direct=True) as stage:
        stage.one(1, BUSY, maxReplicas=3, actuation="metrics")
        await asyncio.sleep(60)
        assert stage.actuated.told == []
        assert (stage.wanted("one") or 0) > 1


async def test_without_a_source_nothing_shrinks_and_it_is_told_how_old_the_last_word_is() -> None:
    async with controlling(direct=True) as stage:
        stage.config(**QUICK)
        stage.one(3, EASY, maxReplicas=3)
        await asyncio.sleep(20)
        stage.engines.away = "https://prometheus did not answer within 10 s"
        await asyncio.sleep(120)
        assert stage.wanted("one") == 3
        assert stage.condition("one", "MetricsAvailable")[:2] == ("False", "MetricsStale")
        assert stage.series("wva_desired_replicas") == {"one": 3}
        await asyncio.sleep(600)
        assert stage.wanted("one") == 3
        status, reason, message = stage.condition("one", "MetricsAvailable")
        assert (status, reason) == ("False", "PrometheusError")
        assert "did not answer within 10 s" in message
        assert any(one.warning and one.reason == "PrometheusError" for one in stage.store.said)
        stage.engines.away = None
        await asyncio.sleep(900)
        assert stage.wanted("one") == 1


async def test_a_target_that_is_deleted_is_told_and_resumed() -> None:
    async with controlling() as stage:
        stage.one(1, CALM, maxReplicas=3)
        await asyncio.sleep(45)
        stage.store.remove(DEPLOYMENTS, "one")
        await asyncio.sleep(45)
        assert stage.condition("one", "TargetResolved")[:2] == ("False", "TargetNotFound")
        assert stage.series("wva_desired_replicas") == {}
        for i in range(1):
            stage.store.remove(DEPLOYMENTS.__class__("v1", "Pod", "pods", DEPLOYMENTS.namespace), f"one-5d-{i}")
        stage.store.remove(
            DEPLOYMENTS.__class__("apps/v1", "ReplicaSet", "replicasets", DEPLOYMENTS.namespace), "one-5d"
        )
        stage.deploy("one", 2)
        await asyncio.sleep(45)
        assert stage.condition("one", "TargetResolved")[:2] == ("True", "TargetFound")
        assert stage.wanted("one") == 2


async def test_a_spec_that_is_wrong_is_a_condition_and_an_event_and_the_earlier_one_goes_on() -> None:
    async with controlling() as stage:
        stage.one(1, BUSY, maxReplicas=3)
        await asyncio.sleep(45)
        stage.store.change(VARIANTS, "one", {"spec": {"maxReplicas": "many"}})
        await asyncio.sleep(45)
        status, reason, message = stage.condition("one", "OptimizationReady")
        assert (status, reason) == ("False", "InvalidConfiguration")
        assert 'spec.maxReplicas: "many" is not accepted' in message
        assert "the earlier version is in force" in message
        assert (stage.wanted("one") or 0) > 1
        assert [one.reason for one in stage.store.said if one.warning] == ["InvalidConfiguration"]


async def test_one_that_was_never_right_is_told_so() -> None:
    async with controlling() as stage:
        stage.store.create(VARIANTS, {"metadata": {"name": "one", "namespace": VARIANTS.namespace}, "spec": {}})
        await asyncio.sleep(45)
        assert stage.condition("one", "OptimizationReady")[:2] == ("False", "InvalidConfiguration")


async def test_a_variant_that_is_gone_is_told_of_no_more() -> None:
    async with controlling(direct=True) as stage:
        stage.one(1, CALM, maxReplicas=3)
        await asyncio.sleep(45)
        stage.store.remove(VARIANTS, "one")
        await asyncio.sleep(45)
        assert stage.series("wva_desired_replicas") == {}
        assert stage.actuated.left == ["one"]


async def test_of_two_for_one_target_the_older_has_it() -> None:
    async with controlling() as stage:
        stage.deploy("one", 1)
        stage.variant("one")
        stage.store.create(
            VARIANTS,
            {
                "metadata": {"name": "two", "namespace": VARIANTS.namespace},
                "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "one"}, "modelID": "other"},
            },
        )
        stage.engines.loads = {"one": CALM}
        await asyncio.sleep(45)
        assert stage.condition("two", "TargetResolved")[:2] == ("False", "TargetTaken")
        assert stage.series("wva_desired_replicas") == {"one": 1}


async def test_an_idle_model_goes_to_zero_and_comes_back_for_who_waits() -> None:
    async with controlling(direct=True) as stage:
        stage.one(1, EASY, maxReplicas=3, scaleToZero={"enabled": True, "retentionPeriod": "5m"})
        await asyncio.sleep(600)
        assert stage.wanted("one") == 1
        stage.engines.loads = {"one": QUIET}
        await asyncio.sleep(240)
        assert stage.wanted("one") == 1
        await asyncio.sleep(180)
        assert stage.wanted("one") == 0
        assert any("from 1 to 0 replicas (Idle): " in one.message for one in stage.store.said)
        stage.engines.held = {"llama": 2.0}
        await asyncio.sleep(10)
        assert stage.wanted("one") == 1
        assert any("from 0 to 1 replicas (ScaleFromZero): " in one.message for one in stage.store.said)
        stage.engines.held = {}
        await asyncio.sleep(240)
        assert stage.wanted("one") == 1
        await asyncio.sleep(240)
        assert stage.wanted("one") == 0


async def test_another_controller_goes_on_from_what_the_first_decided() -> None:
    async with controlling() as stage:
        stage.one(1, BUSY, maxReplicas=6)
        await asyncio.sleep(20)
        decided = stage.wanted("one")
        assert decided is not None
        assert decided > 1
    stage.metrics.leads(False)
    assert stage.series("wva_desired_replicas") == {}
    async with controlling(stage=stage):
        await asyncio.sleep(3)
        assert stage.wanted("one") == decided
        assert stage.series("wva_desired_replicas") == {"one": decided}


async def test_a_variant_that_went_while_nobody_looked_is_told_of_no_more() -> None:
    async with controlling() as stage:
        for name in ("one", "two"):
            stage.deploy(name, 1)
            stage.variant(name)
        stage.engines.loads = {"one": CALM, "two": CALM}
        await asyncio.sleep(45)
    stage.store.remove(VARIANTS, "two")
    async with controlling(stage=stage):
        await asyncio.sleep(3)
        assert stage.series("wva_desired_replicas") == {"one": 1}


async def test_another_instances_variants_are_not_touched() -> None:
    async with controlling(instance="blue") as stage:
        stage.deploy("one", 1)
        stage.variant("one")
        stage.deploy("two", 1)
        stage.variant("two")
        stage.store.change(VARIANTS, "two", {"metadata": {"labels": {"wva.llmd.ai/controller-instance": "blue"}}})
        stage.engines.loads = {"one": CALM, "two": CALM}
        await asyncio.sleep(45)
        assert stage.series("wva_desired_replicas") == {"two": 1}
        assert stage.status("one") == {}


async def test_a_config_counts_from_when_it_is_there_and_a_mistake_changes_nothing() -> None:
    async with controlling() as stage:
        stage.one(2, EngineLoad(kv=0.6, queue=0.0, running=9.0), maxReplicas=6)
        await asyncio.sleep(45)
        assert stage.wanted("one") == 2
        stage.config(kvCacheThreshold=0.5)
        await asyncio.sleep(5)
        assert (stage.wanted("one") or 0) > 2
        stage.config(kvCacheThreshold="much")
        await asyncio.sleep(5)
        wrong = [one for one in stage.store.said if one.about == "saturation-scaling-config"]
        assert [(one.reason, one.warning) for one in wrong] == [("InvalidConfiguration", True)]
        assert "kvCacheThreshold" in wrong[0].message
        assert (stage.wanted("one") or 0) > 2


async def test_its_own_status_writes_bring_no_new_visit() -> None:
    async with controlling() as stage:
        stage.one(1, CALM)
        await asyncio.sleep(3600)
        writes = [what for what, _ in stage.store.writes if what == "status"]
        assert len(writes) < 20
        assert stage.engines.asked < 3600 / 30 + 20

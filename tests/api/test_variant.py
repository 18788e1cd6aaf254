from __future__ import annotations

from typing import Any

import pytest

from vllm_chill.api.variant import VariantAutoscaling, parse_variant, spec_of, variant_warnings
from vllm_chill.core.saturation.spec import VariantSpec, VariantTarget
from vllm_chill.errors import InvalidVariant

Json = dict[str, Any]

# As llm-d's samples are.
SAMPLE: Json = {
    "apiVersion": "llmd.ai/v1alpha1",
    "kind": "VariantAutoscaling",
    "metadata": {
        "name": "qwen-32b-premium-h100",
        "namespace": "llm-inference",
        "labels": {"app": "llm-inference", "model": "qwen-32b", "variant": "premium", "accelerator": "h100"},
    },
    "spec": {
        "scaleTargetRef": {"kind": "Deployment", "name": "qwen-32b-premium-h100"},
        "modelID": "Qwen/Qwen3-32B",
        "variantCost": "80.0",
    },
}
# As those of its earlier versions are, which had a profile of the model.
PROFILE: Json = {
    "accelerators": [
        {
            "acc": "A100",
            "accCount": 2,
            "maxBatchSize": 4,
            "atTokens": 256,
            "perfParms": {
                "decodeParms": {"alpha": "20.58", "beta": "0.41"},
                "prefillParms": {"gamma": "5.2", "delta": "0.1"},
            },
        },
        {"acc": "H100"},
    ],
    "batching": "continuous",
}


def obj(**spec: Any) -> Json:
    least = {"scaleTargetRef": {"kind": "Deployment", "name": "vllm"}, "modelID": "org/small"}
    return {"metadata": {"name": "small", "namespace": "ai-apps"}, "spec": {**least, **spec}}


def of(**spec: Any) -> VariantSpec:
    return spec_of(parse_variant(obj(**spec)))


def problems(given: Any) -> tuple[str, ...]:
    with pytest.raises(InvalidVariant) as refused:
        parse_variant(given)
    return refused.value.problems


class TestVariant:
    def test_the_sample_is_one(self) -> None:
        assert spec_of(parse_variant(SAMPLE)) == VariantSpec(
            "llm-inference",
            "qwen-32b-premium-h100",
            VariantTarget("apps/v1", "Deployment", "qwen-32b-premium-h100"),
            "Qwen/Qwen3-32B",
            80.0,
        )

    def test_one_that_says_little_leaves_the_rest_to_the_configuration(self) -> None:
        assert of() == VariantSpec(
            "ai-apps",
            "small",
            VariantTarget("apps/v1", "Deployment", "vllm"),
            "org/small",
            cost=None,
            min_replicas=0,
            max_replicas=None,
            scale_to_zero=None,
            retention_seconds=None,
            direct=None,
            accelerators=(),
            accelerator="",
            controller_instance="",
        )

    def test_all_that_can_be_said_is_in_it(self) -> None:
        given = obj(
            scaleTargetRef={"apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet", "name": "big"},
            variantCost="12.5",
            modelProfile=PROFILE,
            sloClassRef={"name": "service-classes-config", "key": "premium.yaml"},
            minReplicas=1,
            maxReplicas=8,
            scaleToZero={"enabled": False, "retentionPeriod": "1h30m"},
            actuation="direct",
        )
        given["metadata"]["labels"] = {
            "inference.optimization/acceleratorName": "H100",
            "wva.llmd.ai/controller-instance": "blue",
        }
        assert spec_of(parse_variant(given)) == VariantSpec(
            "ai-apps",
            "small",
            VariantTarget("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", "big"),
            "org/small",
            cost=12.5,
            min_replicas=1,
            max_replicas=8,
            scale_to_zero=False,
            retention_seconds=5400.0,
            direct=True,
            accelerators=(("A100", 2), ("H100", 1)),
            accelerator="H100",
            controller_instance="blue",
        )

    def test_who_scales_it_may_be_said_either_way(self) -> None:
        assert (of(actuation="metrics").direct, of(actuation="direct").direct) == (False, True)

    def test_a_stateful_set_needs_no_version(self) -> None:
        assert str(of(scaleTargetRef={"kind": "StatefulSet", "name": "a"}).target) == "StatefulSet a"

    @pytest.mark.parametrize(
        ("cost", "number"), [("80.0", 80.0), ("5", 5.0), ("0", 0.0), ("9" * 300, float("9" * 300))]
    )
    def test_a_cost_is_a_number_in_quotes(self, cost: str, number: float) -> None:
        assert of(variantCost=cost).cost == number

    def test_a_field_that_is_null_is_one_that_is_left_out(self) -> None:
        assert of(variantCost=None, maxReplicas=None, scaleToZero={"enabled": None}) == of()


class TestProblems:
    def test_everything_that_is_wrong_is_told_at_once(self) -> None:
        assert problems(
            {
                "apiVersion": "llmd.ai/v1",
                "metadata": {"name": "small"},
                "spec": {
                    "scaleTargetRef": {"kind": "Deployment"},
                    "variantCost": 80.0,
                    "minReplicas": -1,
                    "maxReplicas": 0,
                    "scaleToZero": {"retentionPeriod": "soon"},
                    "actuation": "both",
                    "modelProfile": {"accelerators": [{"accCount": 0}]},
                },
            }
        ) == (
            'apiVersion: "llmd.ai/v1" is not accepted; give llmd.ai/v1alpha1',
            "spec.scaleTargetRef.name: it is missing; give a name of a Kubernetes object: lower-case letters, digits, "
            "- and .",
            "spec.modelID: it is missing; give the model's name, as requests say it",
            'spec.variantCost: 80.0 is not accepted; give a number in quotes, 0 or more, such as "80.0"',
            "spec.modelProfile.accelerators[0].acc: it is missing; give the name of an accelerator, such as H100",
            "spec.modelProfile.accelerators[0].accCount: 0 is not accepted; give a whole number, at least 1",
            "spec.minReplicas: -1 is not accepted; give a number of replicas, 0 or more",
            "spec.maxReplicas: 0 is not accepted; give a number of replicas, at least 1",
            'spec.scaleToZero.retentionPeriod: "soon" is not accepted; give a duration such as 90s, 15m or 1h30m',
            'spec.actuation: "both" is not accepted; give metrics or direct',
        )

    @pytest.mark.parametrize("cost", ["-1", "1e3", "$80", "", " 80", "80.", ".5", "1" * 301, "\u0661"])
    def test_what_is_no_cost_is_refused(self, cost: str) -> None:
        [problem] = problems(obj(variantCost=cost))
        assert problem.startswith("spec.variantCost: ")

    def test_bounds_have_to_fit_together(self) -> None:
        assert problems(obj(minReplicas=3, maxReplicas=2)) == (
            "spec.minReplicas: 3 is more than the 2 of maxReplicas; give at most that",
        )
        assert of(minReplicas=2, maxReplicas=2).max_replicas == 2

    def test_another_kind_of_target_needs_its_version(self) -> None:
        assert problems(obj(scaleTargetRef={"kind": "LeaderWorkerSet", "name": "big"})) == (
            "spec.scaleTargetRef.apiVersion: it is missing, and LeaderWorkerSet is none of Deployment, StatefulSet, "
            "ReplicaSet; give its group and version",
        )

    def test_another_kind_of_object_is_none(self) -> None:
        assert problems({**obj(), "kind": "VLLMModel"}) == (
            'kind: "VLLMModel" is not accepted; give VariantAutoscaling',
        )

    def test_it_is_said_as_one_sentence(self) -> None:
        with pytest.raises(InvalidVariant, match=r'^the variant "small" cannot be used: spec\.modelID: '):
            parse_variant(obj(modelID=""))


class TestWarnings:
    def told(self, given: Json) -> tuple[str, ...]:
        return variant_warnings(parse_variant(given), given)

    def test_of_the_sample_there_are_none(self) -> None:
        assert self.told(SAMPLE) == ()

    def test_a_profile_may_have_any_field(self) -> None:
        assert self.told(obj(modelProfile=PROFILE)) == ()

    def test_a_field_that_there_is_not_is_told_with_the_nearest(self) -> None:
        assert self.told(obj(modelId="a")) == (
            'spec.modelId: there is no such field, and it is ignored; did you mean "modelID"?',
        )

    def test_zero_is_never_reached_above_the_fewest(self) -> None:
        assert self.told(obj(minReplicas=1, scaleToZero={"enabled": True})) == (
            "spec.scaleToZero: it is without effect, as minReplicas keeps replicas there",
        )
        assert self.told(obj(minReplicas=1, scaleToZero={"enabled": False})) == ()


class TestStatus:
    def test_llm_ds_own_is_read(self) -> None:
        status = {
            "desiredOptimizedAlloc": {"lastRunTime": "2026-03-02T12:00:00Z", "accelerator": "H100", "numReplicas": 3},
            "actuation": {"applied": True},
        }
        read = parse_variant({**SAMPLE, "status": status}).status
        assert read.desired_optimized_alloc is not None
        assert (read.desired_optimized_alloc.num_replicas, read.desired_optimized_alloc.accelerator) == (3, "H100")
        assert read.actuation is not None
        assert read.actuation.applied

    def test_one_that_cannot_be_read_makes_no_variant_unusable(self) -> None:
        read: VariantAutoscaling = parse_variant({**SAMPLE, "status": {"desiredOptimizedAlloc": {"numReplicas": "x"}}})
        assert read.status.desired_optimized_alloc is None

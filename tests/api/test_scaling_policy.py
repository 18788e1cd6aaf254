from __future__ import annotations

from typing import Any

from vllm_chill.api.scaling_policy import parse_policy, policy_of
from vllm_chill.core.scaling.policy import Policy, Rule
from vllm_chill.core.scaling.signals import Aggregation, Metric, Signal

SAMPLE: dict[str, Any] = {
    "apiVersion": "autoscaler.production-stack/v1alpha1",
    "kind": "vLLMScalingPolicy",
    "metadata": {"name": "example-policy"},
    "spec": {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "meta-llama/Llama-2-70b-hf"},
        "minReplicas": 1,
        "maxReplicas": 10,
        "scalingRules": [
            {"metric": "gpu_utilization", "threshold": 75},
            {"metric": "queue_length", "threshold": 10},
            {"metric": "latency", "threshold": 1000},
        ],
    },
}


def test_the_sample_is_a_policy() -> None:
    assert policy_of(parse_policy(SAMPLE)) == Policy(
        "example-policy",
        1,
        10,
        (
            Rule(Signal(Metric.GPU_UTILIZATION), 75, 75),
            Rule(Signal(Metric.QUEUE_LENGTH), 10, 10),
            Rule(Signal(Metric.LATENCY, Aggregation.TTFT, percentile=95, window_seconds=60), 1000, 1000),
        ),
    )

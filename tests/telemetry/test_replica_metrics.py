from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from vllm_chill.core.engine_page import EngineSample
from vllm_chill.core.histogram import Histogram
from vllm_chill.core.scaling.figures import ReplicaFigures
from vllm_chill.core.scaling.signals import Sample
from vllm_chill.core.scaling.track import Looked
from vllm_chill.core.target import TargetRef
from vllm_chill.telemetry.metrics import Metrics
from vllm_chill.telemetry.replica_metrics import Scaled

REF = TargetRef("ai-apps", "vllm")
SAMPLE = EngineSample(
    running=2,
    waiting=5,
    kv_cache_percent=25,
    generation_tokens=65,
    prompt_tokens=91,
    ttft=Histogram((0.1, 0.5), (1, 3), 4, 2.5),
)
A = ReplicaFigures("a", 10.0, Looked(95.0, SAMPLE), Sample(80.0, 90.0))


def told(*figures: ReplicaFigures, now: float = 100.0, **numbers: int | None) -> dict[str, float]:
    """Every series of the replicas, by what it is called in the text."""
    metrics = Metrics(CollectorRegistry(), "test")
    more = {name: (lambda value=value: value) for name, value in numbers.items()}
    metrics.replicas.follow(REF, Scaled(lambda: figures, lambda: now, **more))
    return series(metrics)


def series(metrics: Metrics) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(metrics.exposition("")[0].decode()):
        for one in family.samples:
            if "_replica_" in one.name or one.name.endswith(("desired_replicas", "recommended_replicas")):
                labels = ",".join(f"{name}={value}" for name, value in sorted(one.labels.items()))
                found[f"{one.name.removeprefix('vllm_chill_')}{{{labels}}}"] = one.value
    return found


def test_a_replica_is_told_in_base_units() -> None:
    a, ttft = "replica=a,target=ai-apps/vllm", "kind=ttft"
    assert told(A) == {
        f"replica_queue_length{{{a}}}": 5,
        f"replica_running_requests{{{a}}}": 2,
        f"replica_kv_cache_usage_ratio{{{a}}}": 0.25,
        f"replica_gpu_utilization_ratio{{{a}}}": 0.8,
        f"replica_inference_latency_seconds_bucket{{{ttft},le=0.1,{a}}}": 1,
        f"replica_inference_latency_seconds_bucket{{{ttft},le=0.5,{a}}}": 3,
        f"replica_inference_latency_seconds_bucket{{{ttft},le=+Inf,{a}}}": 4,
        f"replica_inference_latency_seconds_count{{{ttft},{a}}}": 4,
        f"replica_inference_latency_seconds_sum{{{ttft},{a}}}": 2.5,
        f"replica_tokens_total{{kind=prompt,{a}}}": 91,
        f"replica_tokens_total{{kind=generation,{a}}}": 65,
        f"replica_scrape_age_seconds{{{a}}}": 5,
    }


def test_it_is_told_in_openmetrics_too() -> None:
    metrics = Metrics(CollectorRegistry(), "test")
    metrics.replicas.follow(REF, Scaled(lambda: [A], lambda: 100.0))
    page, _ = metrics.exposition("application/openmetrics-text; version=1.0.0")
    families = {family.name for family in parse_openmetrics(page.decode())}  # type: ignore[no-untyped-call]
    assert {"vllm_chill_replica_inference_latency_seconds", "vllm_chill_replica_tokens"} <= families


def test_what_is_not_known_has_no_series() -> None:
    assert told(ReplicaFigures("a", None)) == {}
    b = replace(A, looked=Looked(100.0, EngineSample(waiting=0)), gpu_percent=None)
    b_labels = "replica=a,target=ai-apps/vllm"
    assert told(b) == {f"replica_queue_length{{{b_labels}}}": 0, f"replica_scrape_age_seconds{{{b_labels}}}": 0}


def test_what_is_old_is_told_by_its_age_alone() -> None:
    assert told(A, now=200) == {"replica_scrape_age_seconds{replica=a,target=ai-apps/vllm}": 105}


@pytest.mark.parametrize("number", [0, 3])
def test_how_many_there_should_be_is_told_where_somebody_says(number: int) -> None:
    assert told(desired=number, recommended=None) == {"desired_replicas{target=ai-apps/vllm}": number}
    assert told(recommended=number) == {"recommended_replicas{target=ai-apps/vllm}": number}
    assert told() == {}


def test_the_series_of_a_replica_and_of_a_target_go_with_them() -> None:
    metrics = Metrics(CollectorRegistry(), "test")
    figures = [A, replace(A, name="b")]
    metrics.replicas.follow(REF, Scaled(lambda: figures, lambda: 100.0, lambda: 2))
    assert any("replica=b" in name for name in series(metrics))
    figures.pop()
    assert not any("replica=b" in name for name in series(metrics))
    assert any("replica=a" in name for name in series(metrics))
    metrics.forget(REF)
    assert series(metrics) == {}

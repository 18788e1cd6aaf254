"""The series of variants: labels, ratio, removal with the variant, and silence of who does not lead."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from vllm_chill.core.saturation.decision import Direction, Reason
from vllm_chill.telemetry.metrics import Metrics
from vllm_chill.telemetry.variant_metrics import ControllerMetrics, VariantFigures


def figures(name: str = "dear", *, current: int = 2, desired: int = 3, accelerator: str = "H100") -> VariantFigures:
    return VariantFigures(name, "llm", accelerator, current, desired, 0.75, 1_700_000_000.0)


def lines(metrics: ControllerMetrics, prefix: str = "wva_") -> list[str]:
    text = generate_latest(metrics.registry).decode()
    return [line for line in text.splitlines() if line.startswith(prefix)]


def test_a_variant_has_the_labels_of_the_seed_and_of_upstream() -> None:
    metrics = ControllerMetrics("1")
    metrics.variants.tell("llm/dear", figures())
    labels = '{accelerator_type="H100",namespace="llm",variant="dear",variant_name="dear"}'
    found = {line.partition("{")[0]: line for line in lines(metrics)}
    assert float(found["wva_desired_replicas"].split()[-1]) == 3
    assert float(found["wva_current_replicas"].split()[-1]) == 2
    assert float(found["wva_desired_ratio"].split()[-1]) == 1.5
    assert float(found["wva_saturation_level"].split()[-1]) == 0.75
    assert float(found["wva_last_scaling_decision_timestamp"].split()[-1]) == 1_700_000_000
    said = found["wva_desired_replicas"].partition("{")[2].partition("}")[0]
    assert sorted(said.split(",")) == sorted(labels.strip("{}").split(","))


def test_the_ratio_of_none_is_what_is_desired() -> None:
    assert figures(current=0, desired=3).ratio == 3
    assert figures(current=4, desired=1).ratio == 0.25


def test_an_instance_is_told_apart() -> None:
    metrics = ControllerMetrics("1", "blue")
    metrics.variants.tell("llm/dear", figures())
    assert all('controller_instance="blue"' in line for line in lines(metrics, "wva_desired"))


def test_decisions_are_counted_and_outlast_another_accelerator() -> None:
    metrics = ControllerMetrics("1")
    metrics.variants.tell("llm/dear", figures())
    metrics.variants.scaled("llm/dear", Direction.UP, Reason.SATURATED)
    metrics.variants.scaled("llm/dear", Direction.UP, Reason.SATURATED)
    metrics.variants.tell("llm/dear", figures(accelerator="A100"))
    (counted,) = lines(metrics, "wva_replica_scaling_total")
    assert 'direction="up"' in counted
    assert 'reason="Saturated"' in counted
    assert 'accelerator_type="A100"' in counted
    assert counted.endswith(" 2.0")
    assert len(lines(metrics, "wva_desired_replicas")) == 1


def test_what_is_gone_is_not_told() -> None:
    metrics = ControllerMetrics("1")
    metrics.variants.tell("llm/dear", figures())
    metrics.variants.tell("llm/cheap", figures("cheap"))
    metrics.variants.scaled("llm/dear", Direction.UP, Reason.SATURATED)
    metrics.variants.forget("llm/dear")
    assert 'variant="dear"' not in "\n".join(lines(metrics))
    assert len(lines(metrics, "wva_desired_replicas")) == 1


def test_who_does_not_lead_is_silent() -> None:
    metrics = ControllerMetrics("1")
    metrics.leads(True)
    metrics.variants.tell("llm/dear", figures())
    metrics.leads(False)
    assert lines(metrics, "wva_desired") == []
    assert lines(metrics, "leader_election_master_status")[0].endswith(" 0.0")


def test_visits_and_calls_are_counted() -> None:
    metrics = ControllerMetrics("1")
    metrics.visited(0.2, False)
    metrics.visited(0.3, True)
    metrics.called("GET", "2xx", 0.01)
    metrics.called("PATCH", "unreachable", 5.0)
    metrics.missed(2)
    text = "\n".join(lines(metrics, ""))
    assert "wva_pod_mapping_miss_total 2.0" in text
    assert 'controller_runtime_reconcile_total{controller="variantautoscaling",result="error"} 1.0' in text
    assert 'controller_runtime_reconcile_errors_total{controller="variantautoscaling"} 1.0' in text
    assert 'rest_client_requests_total{code="2xx",method="GET"} 1.0' in text
    assert 'rest_client_requests_total{code="unreachable",method="PATCH"} 1.0' in text
    assert 'rest_client_request_duration_seconds_count{verb="PATCH"} 1.0' in text


def test_it_goes_beside_what_a_proxy_tells() -> None:
    proxy = Metrics(CollectorRegistry(), "1")
    metrics = ControllerMetrics("1", registry=proxy.registry)
    metrics.variants.tell("llm/dear", figures())
    page = proxy.exposition("")[0].decode()
    assert "\nwva_desired_replicas{" in page
    assert page.count("\nvllm_chill_build_info{") == 1

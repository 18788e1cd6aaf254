from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from vllm_chill.core.routing import Route
from vllm_chill.core.target import Asleep, Failed, Observation, Phase, Ready, Target, TargetRef, Waking
from vllm_chill.telemetry.metrics import Metrics, vllm_state
from vllm_chill.telemetry.recorder import TargetRecorder

REF = TargetRef("ai-apps", "vllm")


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry(), "1.2.3")


def test_every_promised_metric_is_exposed(metrics: Metrics) -> None:
    metrics.follow(lambda: Target(REF, Asleep(0), observed=Observation(0, 0)), lambda: 0)
    page, _ = metrics.exposition("")
    families = {family.name for family in parse_text(page.decode())}
    assert families >= {
        "vllm_chill_requests",
        "vllm_chill_request_duration_seconds",
        "vllm_chill_requests_waiting",
        "vllm_chill_requests_in_flight",
        "vllm_chill_wake_duration_seconds",
        "vllm_chill_hold_duration_seconds",
        "vllm_chill_scale_operations",
        "vllm_chill_current_replicas",
        "vllm_chill_idle_time_seconds",
        "vllm_chill_vllm_state",
    }


def test_a_scraper_gets_the_format_that_it_asks_for(metrics: Metrics) -> None:
    text, text_type = metrics.exposition("text/plain")
    openmetrics, openmetrics_type = metrics.exposition("application/openmetrics-text; version=1.0.0")
    assert text_type.startswith("text/plain")
    assert openmetrics_type.startswith("application/openmetrics-text")
    assert list(parse_text(text.decode()))
    assert list(parse_openmetrics(openmetrics.decode()))  # type: ignore[no-untyped-call]


def test_the_gauges_are_read_off_the_target_at_the_scrape(metrics: Metrics) -> None:
    target = Target(REF, Ready(since=10, idle_since=40), observed=Observation(1, 1))
    metrics.follow(lambda: target, lambda: 100)
    assert value(metrics, "vllm_chill_idle_time_seconds", target="ai-apps/vllm") == 60
    assert value(metrics, "vllm_chill_current_replicas", target="ai-apps/vllm") == 1
    assert value(metrics, "vllm_chill_vllm_state", target="ai-apps/vllm") == 2
    target = Target(REF, Ready(since=10, idle_since=40), waiting=3, in_flight=2, observed=Observation(1, 1))
    assert value(metrics, "vllm_chill_idle_time_seconds", target="ai-apps/vllm") == 0
    assert value(metrics, "vllm_chill_requests_waiting", target="ai-apps/vllm") == 3
    assert value(metrics, "vllm_chill_requests_in_flight", target="ai-apps/vllm") == 2


@pytest.mark.parametrize(("phase", "state"), [(Asleep(0), 0), (Waking(0, confirmed=False), 1), (Ready(0, 0), 2)])
def test_the_state_is_a_number(phase: Phase, state: int) -> None:
    assert vllm_state(Target(REF, phase)) == state


def test_labels_that_callers_make_up_are_one_label(metrics: Metrics) -> None:
    for number in range(100):
        metrics.request_ended(f"X{number}", Route.PROXIED, 200, 0.1)
    assert value(metrics, "vllm_chill_requests_total", method="OTHER", route="proxied", status="200") == 100
    assert len(metrics.requests.proxied.by_answer) == 1


def test_buckets_reach_half_an_hour(metrics: Metrics) -> None:
    metrics.request_ended("POST", Route.PROXIED, 200, 1700)
    assert value(metrics, "vllm_chill_request_duration_seconds_bucket", route="proxied", le="1200.0") == 0
    assert value(metrics, "vllm_chill_request_duration_seconds_bucket", route="proxied", le="1800.0") == 1


def test_a_wake_is_measured_and_its_scale_counted(metrics: Metrics) -> None:
    recorder = TargetRecorder(REF, metrics)
    recorder.changed(Target(REF, Waking(0, confirmed=True)), Target(REF, Ready(61, 61)), 61)
    recorder.scaled(Target(REF), 1, None)
    recorder.scaled(Target(REF), 0, "no")
    assert value(metrics, "vllm_chill_wake_duration_seconds_sum", target=str(REF)) == 61
    scaled = "vllm_chill_scale_operations_total"
    assert value(metrics, scaled, target=str(REF), direction="up", outcome="success") == 1
    assert value(metrics, scaled, target=str(REF), direction="down", outcome="failure") == 1


def test_what_counts_is_there_before_anything_has_happened(metrics: Metrics) -> None:
    """Prometheus takes no first sample for an increase, so that what begins at 1 is never seen to have happened."""
    metrics.follow(lambda: Target(REF), lambda: 0)
    for name in ("wake_failures_total", "wake_duration_seconds_count", "hold_duration_seconds_count"):
        assert value(metrics, f"vllm_chill_{name}", target=str(REF)) == 0
    metrics.forget(REF)
    assert not [line for line in metrics.exposition("")[0].decode().splitlines() if str(REF) in line]


def test_a_wake_that_fails_is_counted_once(metrics: Metrics) -> None:
    recorder = TargetRecorder(REF, metrics)
    failed = Failed(since=9, cause="it crashes", retry_at=14, confirmed=False)
    recorder.changed(Target(REF, Waking(0, confirmed=True)), Target(REF, failed), 9)
    recorder.changed(Target(REF, failed), Target(REF, replace(failed, confirmed=True)), 9)
    assert value(metrics, "vllm_chill_wake_failures_total", target=str(REF)) == 1


def test_whether_the_backend_tells_of_a_target_is_told_where_that_is_known(metrics: Metrics) -> None:
    sees = True
    metrics.follow(lambda: Target(REF), lambda: 0, sees=lambda: sees)
    assert value(metrics, "vllm_chill_backend_up", target=str(REF)) == 1
    sees = False
    assert value(metrics, "vllm_chill_backend_up", target=str(REF)) == 0
    metrics.follow(lambda: Target(REF), lambda: 0)
    assert value(metrics, "vllm_chill_backend_up", target=str(REF)) is None


class TestSeveralTargets:
    A, B = TargetRef("ns", "vllm-a"), TargetRef("ns", "vllm-b")

    def follow(self, metrics: Metrics) -> None:
        for number, (ref, model) in enumerate(((self.A, "a"), (self.B, "b"))):
            phase: Phase = Ready(0, 0) if number == 0 else Asleep(0)
            target = Target(ref, phase, waiting=number, observed=Observation(1 - number, 1 - number))
            metrics.follow(lambda target=target: target, lambda: 10, model)  # type: ignore[misc]

    def test_each_has_its_own_series(self, metrics: Metrics) -> None:
        self.follow(metrics)
        for name, a, b in (
            ("vllm_chill_vllm_state", 2, 0),
            ("vllm_chill_idle_time_seconds", 10, 0),
            ("vllm_chill_requests_waiting", 0, 1),
            ("vllm_chill_current_replicas", 1, 0),
        ):
            assert (value(metrics, name, target="ns/vllm-a"), value(metrics, name, target="ns/vllm-b")) == (a, b)

    def test_the_models_that_are_ready_are_the_current_ones(self, metrics: Metrics) -> None:
        self.follow(metrics)
        assert value(metrics, "vllm_chill_current_model", model_name="a") == 1
        assert value(metrics, "vllm_chill_current_model", model_name="b") is None

    def test_a_switch_is_counted_and_one_that_was_done_is_measured(self, metrics: Metrics) -> None:
        metrics.switched("a", "b", 61, ok=True)
        metrics.switched("b", "a", 5, ok=False)
        counted = "vllm_chill_managed_operations_total"
        assert value(metrics, counted, from_model="a", to_model="b", status="success") == 1
        assert value(metrics, counted, from_model="b", to_model="a", status="failure") == 1
        took = "vllm_chill_managed_operation_duration_seconds_sum"
        assert value(metrics, took, from_model="a", to_model="b") == 61
        assert value(metrics, took, from_model="b", to_model="a") is None

    def test_one_that_is_gone_leaves_nothing_behind(self, metrics: Metrics) -> None:
        self.follow(metrics)
        metrics.switched("a", "b", 61, ok=True)
        metrics.switched("c", "b", 61, ok=True)
        for ref in (self.A, self.B):
            recorder = TargetRecorder(ref, metrics)
            recorder.changed(Target(ref, Waking(0, confirmed=True)), Target(ref, Ready(61, 61)), 61)
            recorder.held(3)
            recorder.scaled(Target(ref), 1, None)
            metrics.cold_start_phases.labels(str(ref), "loading").observe(3)
        metrics.forget(self.A)
        page = metrics.exposition("")[0].decode()
        assert "vllm-a" not in page
        assert '"a"' not in page
        assert value(metrics, "vllm_chill_wake_duration_seconds_sum", target="ns/vllm-b") == 61
        assert value(metrics, "vllm_chill_managed_operations_total", from_model="c", to_model="b", status="success")
        metrics.forget(self.A)

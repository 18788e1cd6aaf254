"""Series of a Prometheus, and the load of each pod that they come to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.saturation.places import EngineLoad, LoadReading, PodPlace
from vllm_chill.core.saturation.series import Figure, Scraped, Series, expressions, quoted
from vllm_chill.core.target import Endpoint

A = PodPlace("vllm-a", Endpoint("10.0.0.1", 8000))
B = PodPlace("vllm-b", Endpoint("10.0.0.2", 8000))


def series(value: float, **labels: str) -> Series:
    return Series(labels, value, 1700000000.0)


def reading(
    pods: Sequence[PodPlace], told: Mapping[Figure, list[Series]], failures: Mapping[Figure, str] | None = None
) -> LoadReading:
    return Scraped(told, failures or {}).reading(pods)


def load(told: Mapping[Figure, list[Series]]) -> EngineLoad:
    """The load of the pod vllm-a."""
    return reading([A, B], told).loads.get("vllm-a", EngineLoad())


@pytest.mark.parametrize(
    ("labels", "pod"),
    [
        pytest.param({"pod": "vllm-a"}, "vllm-a", id="the label pod"),
        pytest.param({"pod_name": "vllm-a"}, "vllm-a", id="the label pod_name"),
        pytest.param({"kubernetes_pod_name": "vllm-a"}, "vllm-a", id="the label kubernetes_pod_name"),
        pytest.param({"exported_pod": "vllm-a", "pod": "exporter"}, "vllm-a", id="what the page said itself"),
        pytest.param({"exported_pod": "vllm-a", "pod": "vllm-b"}, "vllm-a", id="what the page said, first"),
        pytest.param({"pod": "vllm-b", "instance": "10.0.0.1:8000"}, "vllm-b", id="a label before an address"),
        pytest.param({"pod": "gone", "instance": "10.0.0.1:8000"}, "gone", id="an address that was another pod's"),
        pytest.param({"pod": "gone"}, "gone", id="a pod that is not asked about"),
        pytest.param({"instance": "10.0.0.1:8000"}, "vllm-a", id="its address"),
        pytest.param({"pod": "", "instance": "10.0.0.1:8000"}, "vllm-a", id="its address, and an empty label"),
        pytest.param({"instance": "10.0.0.2:9100"}, "vllm-b", id="its address with another port"),
        pytest.param({"instance": "10.0.0.2"}, "vllm-b", id="its address without a port"),
        pytest.param({"exported_instance": "10.0.0.1:8000", "instance": "10.0.0.2:9090"}, "vllm-a", id="federated"),
        pytest.param({"instance": "10.0.0.9:8000"}, None, id="somebody else's address"),
        pytest.param({"instance": "[fd00::3]:8000"}, "six", id="an address of IPv6"),
        pytest.param({"instance": "fd00::3"}, "six", id="an address of IPv6 without a port"),
        pytest.param({"instance": "10.0.0.7:8001"}, "second", id="the node's address with the pod's port"),
        pytest.param({"instance": "10.0.0.7:9100"}, None, id="the node's address, which two pods have"),
        pytest.param({}, None, id="nothing"),
    ],
)
def test_a_series_is_of_the_pod_that_it_names_or_that_was_scraped_there(
    labels: Mapping[str, str], pod: str | None
) -> None:
    node = [PodPlace("first", Endpoint("10.0.0.7", 8000)), PodPlace("second", Endpoint("10.0.0.7", 8001))]
    six = PodPlace("six", Endpoint("fd00::3", 8000))
    found = reading([A, B, six, PodPlace("new", None), *node], {Figure.QUEUE: [series(1, **labels)]})
    assert found.loads == ({} if pod is None else {pod: EngineLoad(queue=1)})


def test_of_several_engines_the_fullest_cache_counts_and_requests_and_tokens_are_summed() -> None:
    def engines(*values: float, **more: str) -> list[Series]:
        return [
            series(value, pod="vllm-a", engine=str(engine), model_name="m", instance="10.0.0.1:8000", **more)
            for engine, value in enumerate(values)
        ]

    assert load(
        {
            Figure.KV: engines(0.25, 0.75),
            Figure.QUEUE: engines(3, 4),
            Figure.RUNNING: engines(10, 2),
            Figure.SUCCESSES: engines(100, 50, finished_reason="stop") + engines(7, finished_reason="length"),
            Figure.RATE: engines(0.5, 0.25, finished_reason="stop"),
            Figure.CACHE: engines(1, 1, num_gpu_blocks="1000", block_size="16"),
        }
    ) == EngineLoad(kv=0.75, queue=7, running=12, successes=157, rate=0.75, cache_tokens=32000)


def test_engines_on_several_ports_of_a_pod_are_told_apart_without_a_label() -> None:
    queue = [series(2, pod="vllm-a", instance=f"10.0.0.1:{port}") for port in (8000, 8001)]
    assert load({Figure.QUEUE: queue}).queue == 4


def test_who_is_scraped_twice_counts_once() -> None:
    queue = [series(2, pod="vllm-a", instance="10.0.0.1:8000", engine="0", job=job) for job in ("pods", "services")]
    assert load({Figure.QUEUE: queue}).queue == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_missing_and_so_is_a_sum_that_lacks_it(value: float) -> None:
    one, other = series(value, pod="vllm-a", engine="0"), series(3, pod="vllm-a", engine="1")
    for told in ([one], [one, other], [other, one]):
        assert load(dict.fromkeys((Figure.KV, Figure.QUEUE), told)) == EngineLoad()
    twice = [one, series(5, pod="vllm-a", engine="0", job="again")]
    assert load({Figure.QUEUE: twice}).queue == 5
    assert load({Figure.QUEUE: twice[::-1]}).queue == 5


@pytest.mark.parametrize(
    ("blocks", "size"), [("None", "16"), ("100", "None"), ("", "16"), ("nan", "16"), ("inf", "16"), ("100", None)]
)
def test_a_cache_that_is_not_told_of_has_no_size(blocks: str, size: str | None) -> None:
    told = series(1, pod="vllm-a", num_gpu_blocks=blocks, **({} if size is None else {"block_size": size}))
    whole = series(1, pod="vllm-a", num_gpu_blocks="10", block_size="16", engine="1")
    assert load({Figure.CACHE: [told]}).cache_tokens is None
    assert load({Figure.CACHE: [told, whole]}).cache_tokens is None
    assert load({Figure.CACHE: [whole]}).cache_tokens == 160


def test_a_pod_that_no_series_is_of_is_a_failure_and_so_is_a_figure_that_could_not_be_asked_for() -> None:
    found = reading([A, B], {Figure.KV: [series(0.5, pod="vllm-a")]}, {Figure.QUEUE: "it did not answer"})
    assert found.loads == {"vllm-a": EngineLoad(kv=0.5)}
    assert found.failures.keys() == {"vllm-b", "queue length"}
    assert "see whether it is scraped" in found.failures["vllm-b"]
    assert found.failures["queue length"] == "it did not answer"


def test_a_pod_that_nobody_asked_about_is_told_of_by_its_label() -> None:
    found = reading([A], {Figure.KV: [series(0.5, pod="vllm-a"), series(0.7, pod="vllm-c")]})
    assert found == LoadReading({"vllm-a": EngineLoad(kv=0.5), "vllm-c": EngineLoad(kv=0.7)})
    nowhere = series(0.5, instance="10.0.0.9:8000")
    assert reading([], {Figure.KV: [nowhere]}) == LoadReading()


def test_what_was_put_together_is_told_of_any_pods_as_if_it_was_for_them() -> None:
    here = series(0.5, pod="gateway", pod_name="vllm-a")
    again = series(0.7, pod="vllm-a")
    address = series(0.3, instance="10.0.0.2:8000")
    scraped = Scraped({Figure.KV: [here, again, address]}, {})
    assert scraped.reading([A]).loads == {"vllm-a": EngineLoad(kv=0.7)}
    assert scraped.reading([B]).loads == {
        n: EngineLoad(k) for n, k in (("gateway", 0.5), ("vllm-a", 0.7), ("vllm-b", 0.3))
    }
    assert scraped.reading([A]).loads == {"vllm-a": EngineLoad(kv=0.7)}
    assert scraped.reading([A, B]).loads == {"vllm-a": EngineLoad(kv=0.7), "vllm-b": EngineLoad(kv=0.3)}


def test_an_engine_that_is_found_by_its_address_alone_counts_with_those_that_are_named() -> None:
    named, found = series(1, pod="vllm-a", engine="0"), series(2, instance="10.0.0.1:8001", engine="1")
    assert load({Figure.QUEUE: [named, found]}).queue == 3
    assert load({Figure.QUEUE: [named, found._replace(value=math.nan)]}).queue is None


def test_the_memory_of_a_pods_gpus_is_summed_and_is_no_engines_word() -> None:
    def gpu(metric: str, value: float, **labels: str) -> Series:
        return series(value, __name__=f"DCGM_FI_DEV_FB_{metric}", Hostname="node", **labels)

    memory = [
        gpu("USED", 1000, UUID="a", exported_pod="vllm-a", pod="exporter"),
        gpu("USED", 1000, UUID="a", exported_pod="vllm-a", pod="exporter", job="again"),
        gpu("USED", 200, UUID="b", exported_pod="vllm-a", pod="exporter"),
        gpu("FREE", 30, UUID="a", pod="vllm-a"),
        gpu("FREE", 1 << 63, UUID="f", pod="vllm-c"),
        gpu("FREE", 10, UUID="g", pod="vllm-c"),
        gpu("USED", 5, UUID="c", pod="vllm-b"),
        gpu("USED", 5, UUID="d", instance="10.0.0.1:9400"),
        gpu("USED", 5, UUID="e", pod="notebook"),
    ]
    found = reading([A, B], {Figure.KV: [series(0.5, pod=f"vllm-{n}") for n in "ac"], Figure.GPU_MEMORY: memory})
    assert found.loads == {
        "vllm-a": EngineLoad(kv=0.5, gpu_memory_used_mb=1200, gpu_memory_free_mb=30),
        "vllm-c": EngineLoad(kv=0.5),
    }
    assert found.failures.keys() == {"vllm-b"}


def test_requests_are_held_for_the_model_that_they_go_to() -> None:
    def queue(value: float, model: str, target: str, **more: str) -> Series:
        return series(value, model_name=model, target_model_name=target, inference_pool="p", **more)

    held = [
        queue(3, "chat", "org/a", fairness_id="x"),
        queue(4, "chat", "org/a", fairness_id="y"),
        queue(4, "chat", "org/a", fairness_id="y", job="again"),
        queue(1, "org/a", ""),
        queue(2, "org/a", "org/a"),
        queue(5, "org/b", ""),
        queue(math.nan, "org/c", ""),
        series(9, inference_pool="p"),
    ]
    assert reading([], {Figure.HELD: held}).held == {"org/a": 10, "org/b": 5}


def test_a_proxy_holds_requests_for_a_target() -> None:
    held = [
        series(2, target="ai-apps/vllm", instance="10.1.0.1:8080"),
        series(3, target="ai-apps/vllm", instance="10.1.0.2:8080"),
        series(1, target="StatefulSet ai-apps/vllm", instance="10.1.0.1:8080"),
        series(0, target="StatefulSet ai-apps/big", instance="10.1.0.1:8080"),
        series(1),
    ]
    assert reading([], {Figure.HELD_BY_TARGET: held}).held_by_target == {
        "ai-apps/vllm": 6,
        "ai-apps/big": 0,
    }


def test_a_namespace_is_asked_for_under_both_labels_and_a_figure_under_both_names() -> None:
    asked = expressions("ai-apps")
    assert asked[Figure.QUEUE] == (
        'max_over_time(vllm:num_requests_waiting{exported_namespace="ai-apps"}[1m]) or '
        'max_over_time(vllm:num_requests_waiting{namespace="ai-apps",exported_namespace=""}[1m])'
    )
    assert asked[Figure.KV].index("vllm:kv_cache_usage_perc") < asked[Figure.KV].index("vllm:gpu_cache_usage_perc")
    assert asked[Figure.HELD_BY_TARGET] == r'vllm_chill_requests_waiting{target=~"(.+ )?ai\\-apps/.+"}'


def test_a_text_is_quoted() -> None:
    assert quoted('a"b\\c\nd') == r'"a\"b\\c\nd"'


FIGURES = [Figure.KV, Figure.QUEUE, Figure.RUNNING, Figure.SUCCESSES, Figure.RATE]
VALUES = st.floats(0, 1e6)


@st.composite
def told(draw: st.DrawFn) -> tuple[dict[Figure, list[Series]], dict[str, EngineLoad]]:
    """What a Prometheus may tell of two pods, in any order and split in any way over engines and jobs; and what of it
    is true.
    """
    figures: dict[Figure, list[Series]] = {}
    loads: dict[str, dict[str, float]] = {A.name: {}, B.name: {}}
    for figure in FIGURES:
        found: list[Series] = []
        for pod in (A, B):
            where = draw(st.sampled_from([{"pod": pod.name}, {"exported_pod": pod.name, "pod": "gateway"}, {}]))
            parts = draw(st.lists(VALUES, max_size=4))
            for engine, value in enumerate(parts):
                jobs = draw(st.sets(st.sampled_from(["a", "b", "c"]), min_size=1))
                labels = {**where, "instance": f"{pod.endpoint}", "engine": str(engine), "model_name": "m"}
                found += [Series({**labels, "job": job}, value, 0.0) for job in jobs]
            if parts:
                loads[pod.name][figure] = max(parts) if figure is Figure.KV else math.fsum(parts)
        figures[figure] = draw(st.permutations(found))
    return figures, {pod: EngineLoad(*map(known.get, FIGURES)) for pod, known in loads.items() if known}


@given(told())
def test_neither_the_order_of_series_nor_how_they_are_split_makes_a_difference(
    case: tuple[dict[Figure, list[Series]], dict[str, EngineLoad]],
) -> None:
    figures, loads = case
    assert reading([A, B], figures).loads == loads


LABELS = st.dictionaries(
    st.sampled_from(["pod", "exported_pod", "instance", "engine", "num_gpu_blocks", "block_size", "target"]),
    st.sampled_from(["vllm-a", "10.0.0.1:8000", "[::1]:", ":", "", "0", "None"]),
)


@given(st.dictionaries(st.sampled_from(Figure), st.lists(st.builds(Series, LABELS, st.floats(), st.just(0.0)))))
def test_whatever_is_told_what_is_known_of_it_is_finite(figures: dict[Figure, list[Series]]) -> None:
    found = reading([A, B], figures)
    numbers = [getattr(load, name) for load in found.loads.values() for name in EngineLoad.__slots__]
    numbers += [*found.held.values(), *found.held_by_target.values()]
    assert all(math.isfinite(number) for number in numbers if number is not None)
    assert found.loads.keys() | found.failures.keys() >= {"vllm-a", "vllm-b"}
    assert not found.loads.keys() & found.failures.keys()

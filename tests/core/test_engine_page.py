"""The parser of engines' pages, beside prometheus_client's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from vllm_chill.core import histogram
from vllm_chill.core.engine_page import EngineSample, PageReader, engine_sample

# What vLLM 0.32 says, cut down to some lines of each family.
PAGE = b"""\
# HELP process_start_time_seconds Start time of the process since unix epoch in seconds.
# TYPE process_start_time_seconds gauge
process_start_time_seconds 1.79526889861e+09
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
vllm:num_requests_running{engine="1",model_name="tiny"} 2.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="tiny"} 1.0
vllm:num_requests_waiting{engine="1",model_name="tiny"} 6.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 99.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="tiny"} 0.5
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{engine="0",model_name="tiny"} 91.0
# TYPE vllm:prefix_cache_queries_created gauge
vllm:prefix_cache_queries_created{engine="0",model_name="tiny"} 1.79526895186694e+09
vllm:prefix_cache_hits_total{engine="0",model_name="tiny"} 16.0
vllm:prompt_tokens_total{engine="0",model_name="tiny"} 91.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="tiny",source="local_compute"} 91.0
vllm:generation_tokens_total{engine="0",model_name="tiny"} 65.0
vllm:request_success_total{engine="0",finished_reason="stop",model_name="tiny"} 4.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="tiny"} 3.0
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="tiny"} 0.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.25",model_name="tiny"} 5.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="tiny"} 7.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="tiny"} 7.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="tiny"} 1.5
vllm:time_to_first_token_seconds_bucket{engine="1",le="0.001",model_name="tiny"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="1",le="0.25",model_name="tiny"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="1",le="+Inf",model_name="tiny"} 1.0
vllm:time_to_first_token_seconds_count{engine="1",model_name="tiny"} 1.0
vllm:time_to_first_token_seconds_sum{engine="1",model_name="tiny"} 0.0005
"""


def test_a_page_of_vllm_is_read() -> None:
    assert engine_sample(PAGE) == EngineSample(
        running=5,
        waiting=7,
        kv_cache_percent=50,
        generation_tokens=65,
        prompt_tokens=91,
        prefix_hits=16,
        prefix_queries=91,
        successes=7,
        ttft=histogram.Histogram((0.001, 0.25), (1, 6), 8, 1.5005),
        began=1.79526889861e09,
    )


def test_a_whole_page_of_a_real_vllm_is_read() -> None:
    sample = engine_sample((Path(__file__).parent.parent / "engine" / "vllm-metrics.txt").read_bytes())
    assert sample is not None
    assert (sample.running, sample.waiting, sample.kv_cache_percent) == (0, 0, 0)
    assert (sample.prompt_tokens, sample.generation_tokens, sample.successes) == (91, 65, 7)
    assert (sample.prefix_hits, sample.prefix_queries, sample.began) == (0, 91, 1.79526889861e09)
    assert sample.cache_tokens == 8192 * 128 == 1048576
    kinds = (sample.ttft, sample.itl, sample.e2e)
    assert [kind and (len(kind.bounds), kind.bounds[-1], kind.count) for kind in kinds] == [
        (22, 2560, 7),
        (19, 80, 58),
        (21, 7680, 7),
    ]
    assert sample.ttft is not None
    assert sample.ttft.percentile(50) == pytest.approx(0.01 + 0.01 * 3.5 / 4)


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_it_can_be_cut_anywhere(size: int) -> None:
    reader = PageReader()
    for begin in range(0, len(PAGE), size):
        reader.feed(PAGE[begin : begin + size])
    assert reader.sample() == engine_sample(PAGE)


@pytest.mark.parametrize(
    ("page", "sample"),
    [
        pytest.param(
            b'vllm:gpu_cache_usage_perc{model_name="m"} 0.5',
            EngineSample(kv_cache_percent=50),
            id="the cache before V1",
        ),
        pytest.param(
            b"vllm:gpu_cache_usage_perc 0.5\nvllm:kv_cache_usage_perc 0.25\n",
            EngineSample(kv_cache_percent=25),
            id="where both names of a gauge are there the new one counts",
        ),
        pytest.param(
            b'vllm:time_per_output_token_seconds_bucket{le="0.1"} 1\n'
            b'vllm:time_per_output_token_seconds_bucket{le="+Inf"} 2\n'
            b"vllm:time_per_output_token_seconds_count 2\nvllm:time_per_output_token_seconds_sum 3\n",
            EngineSample(itl=histogram.Histogram((0.1,), (1,), 2, 3)),
            id="the time between tokens before it was called so",
        ),
        pytest.param(
            b"vllm:gpu_prefix_cache_hits_total 3\nvllm:gpu_prefix_cache_queries_total 4\n",
            EngineSample(prefix_hits=3, prefix_queries=4),
            id="the prefix cache as it was called first",
        ),
        pytest.param(b"vllm:generation_tokens 4", EngineSample(generation_tokens=4), id="a counter without its end"),
        pytest.param(
            b"llamacpp:requests_processing 2\nllamacpp:requests_deferred 1\nllamacpp:kv_cache_usage_ratio 0.125\n"
            b"llamacpp:prompt_tokens_total 16\nllamacpp:tokens_predicted_total 5\nllamacpp:prompt_seconds_total 1\n",
            EngineSample(running=2, waiting=1, kv_cache_percent=12.5, prompt_tokens=16, generation_tokens=5),
            id="llama.cpp's server",
        ),
        pytest.param(
            b'vllm:num_requests_running{model_name="a } b\\"} 7"} 2 1700000000000\n',
            EngineSample(running=2),
            id="a label with all that may stand in it, and a time behind the value",
        ),
        pytest.param(
            b"vllm:num_requests_waiting 0\n"
            b'vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",num_gpu_blocks="100"} 1.0\n'
            b'vllm:cache_config_info{num_gpu_blocks="200",block_size="16",engine="1"} 1.0\n',
            EngineSample(waiting=0, cache_tokens=4800),
            id="the caches of all engines together",
        ),
        pytest.param(
            b'vllm:num_requests_waiting 0\nvllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0\n',
            EngineSample(waiting=0),
            id="a cache whose size is not known yet",
        ),
        pytest.param(
            b"vllm:num_requests_waiting 0\nvllm:cache_config_info 1.0\n",
            EngineSample(waiting=0),
            id="a cache of which nothing is said",
        ),
        pytest.param(
            b"vllm:num_requests_running NaN\nvllm:num_requests_waiting 1\nvllm:kv_cache_usage_perc +Inf\n",
            EngineSample(waiting=1),
            id="what is no number is missing",
        ),
        pytest.param(
            b'vllm:time_to_first_token_seconds_bucket{le="0.1"} NaN\n'
            b'vllm:time_to_first_token_seconds_bucket{le="+Inf"} 2\n'
            b"vllm:time_to_first_token_seconds_count 2\nvllm:time_to_first_token_seconds_sum 3\n"
            b"vllm:num_requests_waiting 1\n",
            EngineSample(waiting=1),
            id="a histogram with what is no number in it is missing",
        ),
        pytest.param(
            b'vllm:e2e_request_latency_seconds_bucket{model_name="x,le=",le="2.0"} 1\n'
            b"vllm:e2e_request_latency_seconds_count 2\nvllm:e2e_request_latency_seconds_sum 3\n",
            EngineSample(e2e=histogram.Histogram((2.0,), (1,), 2, 3)),
            id="a label that looks like a bound",
        ),
    ],
)
def test_names_and_values_of_every_kind_are_read(page: bytes, sample: EngineSample) -> None:
    assert engine_sample(page) == sample


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"<html>404</html>", id="no metrics"),
        pytest.param(b"process_start_time_seconds 5\n# TYPE vllm:num_requests_running gauge\n", id="another program"),
        pytest.param(b"vllm:num_requests_running\nvllm:num_requests_waiting{\n", id="lines without a value"),
    ],
)
def test_a_page_of_something_else_is_none(page: bytes) -> None:
    assert engine_sample(page) is None


@given(st.binary())
def test_no_page_is_too_much(noise: bytes) -> None:
    engine_sample(noise)
    engine_sample(b"vllm:num_requests_running{" + noise)
    engine_sample(b'vllm:e2e_request_latency_seconds_bucket{le="' + noise)


# What prometheus_client makes of the same page, put together the slow way.

values = st.floats(0, 1e15) | st.sampled_from([0.0, 1.0, math.nan, math.inf])
engines = st.lists(st.tuples(st.sampled_from("0123"), st.text(max_size=5)), min_size=1, max_size=3, unique=True)


@st.composite
def pages(draw: st.DrawFn) -> bytes:
    """A page of a vLLM of old or new names, with engines and models that are called anything."""
    registry = CollectorRegistry()
    labels = draw(engines)
    cache = draw(st.sampled_from(["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"]))
    for name in draw(st.sets(st.sampled_from(["vllm:num_requests_running", "vllm:num_requests_waiting", cache]))):
        gauge = Gauge(name, "A gauge.", ["engine", "model_name"], registry=registry)
        for one in labels:
            gauge.labels(*one).set(draw(values))
    for name in draw(st.sets(st.sampled_from(["vllm:generation_tokens", "vllm:prompt_tokens", "vllm:other"]))):
        counter = Counter(name, "A counter.", ["engine", "model_name"], registry=registry)
        for one in labels:
            counter.labels(*one).inc(draw(st.floats(0, 1e12)))
    for name in draw(
        st.sets(st.sampled_from(["vllm:time_to_first_token_seconds", "vllm:time_per_output_token_seconds"]))
    ):
        bounds = draw(st.lists(st.floats(0.001, 100), min_size=1, max_size=4, unique=True).map(sorted))
        timed = Histogram(name, "A histogram.", ["engine", "model_name"], registry=registry, buckets=bounds)
        for one in labels:
            for value in draw(st.lists(st.floats(0, 200), max_size=5)):
                timed.labels(*one).observe(value)
            timed.labels(*one)
    return generate_latest(registry)


def _finite(samples: Iterable[Sample], *names: str) -> list[float]:
    return [one.value for one in samples if one.name in names and math.isfinite(one.value)]


def _histogram(samples: list[Sample], name: str) -> histogram.Histogram | None:
    buckets: dict[float, float] = {}
    for one in samples:
        if one.name == f"{name}_bucket":
            bound = float(one.labels["le"])
            buckets[bound] = buckets.get(bound, 0) + one.value
    if not buckets:
        return None
    count, total = sum(_finite(samples, f"{name}_count")), sum(_finite(samples, f"{name}_sum"))
    return histogram.histogram_of(buckets, count, total)


def _samples(page: bytes) -> Iterator[Sample]:
    for family in text_string_to_metric_families(page.decode()):
        yield from family.samples


@given(pages())
def test_it_agrees_with_the_parser_of_prometheus_client(page: bytes) -> None:
    samples = list(_samples(page))
    caches = _finite(samples, "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
    expected = EngineSample(
        running=sum(found) if (found := _finite(samples, "vllm:num_requests_running")) else None,
        waiting=sum(found) if (found := _finite(samples, "vllm:num_requests_waiting")) else None,
        kv_cache_percent=100 * max(caches) if caches else None,
        generation_tokens=sum(found) if (found := _finite(samples, "vllm:generation_tokens_total")) else None,
        prompt_tokens=sum(found) if (found := _finite(samples, "vllm:prompt_tokens_total")) else None,
        ttft=_histogram(samples, "vllm:time_to_first_token_seconds"),
        itl=_histogram(samples, "vllm:time_per_output_token_seconds"),
    )
    assert engine_sample(page) == (None if expected == EngineSample() else expected)

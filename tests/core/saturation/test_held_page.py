"""Who waits before any replica has them, read off the pages of those who hold them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from vllm_chill.core.saturation.held_page import HeldSample, held_sample

PROXY = b"""\
# HELP vllm_chill_requests_waiting Requests that are held until the target is ready.
# TYPE vllm_chill_requests_waiting gauge
vllm_chill_requests_waiting{target="ai-apps/vllm"} 3.0
vllm_chill_requests_waiting{target="StatefulSet ai-apps/big"} 2.0
vllm_chill_requests_waiting_total{target="ai-apps/vllm"} 99.0
"""

PICKER = b"""\
# TYPE inference_extension_flow_control_queue_size gauge
inference_extension_flow_control_queue_size{model_name="m",priority="0",target_model_name="m-v2"} 4
inference_extension_flow_control_queue_size{model_name="m",priority="1",target_model_name="m-v2"} 1
inference_extension_flow_control_queue_size{model_name="n",priority="0",target_model_name=""} 0
inference_extension_flow_control_queue_bytes{model_name="m",target_model_name="m-v2"} 9000
"""


@pytest.mark.parametrize(
    ("page", "by_model", "by_target"),
    [
        pytest.param(PROXY, {}, {"ai-apps/vllm": 3, "ai-apps/big": 2}, id="a proxy's"),
        pytest.param(PICKER, {"m-v2": 5, "n": 0}, {}, id="an endpoint picker's"),
        pytest.param(PICKER + PROXY, {"m-v2": 5, "n": 0}, {"ai-apps/vllm": 3, "ai-apps/big": 2}, id="both"),
        pytest.param(b"<html>404</html>", {}, {}, id="something else"),
        pytest.param(b'vllm_chill_requests_waiting{target="a/b"} NaN\n', {}, {}, id="no number"),
        pytest.param(b"vllm_chill_requests_waiting 3\n", {}, {}, id="nobody's"),
        pytest.param(
            b'inference_extension_flow_control_queue_size{model_name="a\\"b}\\\\"} 2 1700000000000\n',
            {'a"b}\\': 2},
            {},
            id="a name with all that may stand in it",
        ),
    ],
)
def test_a_page_says(page: bytes, by_model: Mapping[str, float], by_target: Mapping[str, float]) -> None:
    assert held_sample(page) == HeldSample(by_model, by_target)


def test_what_several_pages_say_of_the_same_is_summed() -> None:
    samples = [HeldSample({"m": 1}, {"a/b": 2}), HeldSample({"m": 3, "n": 0}), HeldSample()]
    assert HeldSample.summed(samples) == HeldSample({"m": 4, "n": 0}, {"a/b": 2})
    assert HeldSample.summed([]) == HeldSample()


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.integers(0, 1000), max_size=5))
def test_models_of_any_name_are_read_as_they_are_written(held: dict[str, int]) -> None:
    registry = CollectorRegistry()
    gauge = Gauge("inference_extension_flow_control_queue_size", "q", ["model_name"], registry=registry)
    for model, size in held.items():
        gauge.labels(model).set(size)
    assert held_sample(generate_latest(registry)).by_model == held


@given(st.binary())
def test_no_page_is_too_much(noise: bytes) -> None:
    held_sample(noise)
    held_sample(b'vllm_chill_requests_waiting{target="' + noise)

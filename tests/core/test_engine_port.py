"""The port of a pod's engine."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_chill.core.engine_port import engine_container, engine_port, metrics_port

Json = dict[str, Any]


@pytest.mark.parametrize(
    ("ports", "port"),
    [
        pytest.param([[{"containerPort": 9090}, {"containerPort": 8000, "name": "http"}]], 8000, id="one called http"),
        pytest.param([[{"containerPort": 9090}, {"containerPort": 80}]], 80, id="one of the Service's number"),
        pytest.param([[], [{"containerPort": 8000, "name": "api"}, {"containerPort": 9090}]], 8000, id="the first"),
        pytest.param([[{"containerPort": 53, "protocol": "UDP"}]], 80, id="the Service's, if none takes TCP"),
        pytest.param([[]], 80, id="the Service's, if none is declared"),
    ],
)
def test_the_port_of_the_engine_is(ports: list[list[Json]], port: int) -> None:
    assert engine_port({"containers": [{"name": "c", "ports": declared} for declared in ports]}, 80) == port


@pytest.mark.parametrize(
    ("annotation", "ports", "port"),
    [
        pytest.param("9400", [{"containerPort": 8000, "name": "http"}], 9400, id="what the annotation says"),
        pytest.param("http", [{"containerPort": 80}], 80, id="not what is no number"),
        pytest.param("0", [{"containerPort": 80}], 80, id="nor what is no port"),
        pytest.param(
            None, [{"containerPort": 1, "name": "metrics"}, {"containerPort": 2, "name": "http"}], 2, id="http"
        ),
        pytest.param(None, [{"containerPort": 1}, {"containerPort": 2, "name": "metrics"}], 2, id="then metrics"),
        pytest.param(None, [{"containerPort": 1}, {"containerPort": 8000}], 8000, id="then the one of vLLM's number"),
        pytest.param(None, [{"containerPort": 1}, {"containerPort": 2}], 1, id="then the first"),
        pytest.param(None, [], 8000, id="and vLLM's own, if none is declared"),
    ],
)
def test_metrics_are_had_at(annotation: str | None, ports: list[Json], port: int) -> None:
    annotations = {} if annotation is None else {"prometheus.io/port": annotation}
    pod = {"metadata": {"annotations": annotations}, "spec": {"containers": [{"name": "c", "ports": ports}]}}
    assert metrics_port(pod) == port


@pytest.mark.parametrize(
    ("containers", "annotations", "name"),
    [
        pytest.param([{"name": "a"}, {"name": "b", "ports": [{"containerPort": 8000}]}], {}, "b", id="its port"),
        pytest.param([{"name": "a"}, {"name": "b"}], {}, "a", id="the first"),
        pytest.param([{"name": "a"}, {"name": "b"}], {"kubectl.kubernetes.io/default-container": "b"}, "b", id="said"),
        pytest.param([{"name": "a"}], {"kubectl.kubernetes.io/default-container": "gone"}, "a", id="said wrongly"),
        pytest.param([], {}, "", id="none"),
    ],
)
def test_the_container_that_serves(containers: list[object], annotations: dict[str, str], name: str) -> None:
    pod = {"metadata": {"annotations": annotations}, "spec": {"containers": containers}}
    assert engine_container(pod, 80) == name

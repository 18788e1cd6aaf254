"""The document is what the proxy does: schemathesis sends a real one what the document allows, and what it does not."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema

from tests.web.several import several
from vllm_chill.core.gpu import Gpu, GpuReading
from vllm_chill.core.routing import METHODS, TABLE, Route
from vllm_chill.core.scaling.policy import Policy, Rule
from vllm_chill.core.scaling.signals import Metric, Signal
from vllm_chill.web.openapi import OPERATIONS, document


class OneGpu:
    """ports.GpuStats of a GPU that tells little."""

    async def read(self) -> GpuReading:
        return GpuReading("nvml", (Gpu(index=0, name="H200", memory_used_mb=1, memory_total_mb=3),))


@contextlib.contextmanager
def proxy() -> Iterator[str]:
    """The address of a proxy of two models, which runs in a thread: schemathesis waits for each answer in its own."""
    up, urls = threading.Event(), list[str]()
    stopped: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        async with several(default="a", start=0.0, sources=[OneGpu()]) as s:
            for name in ("a", "b"):
                s.scaled(name, Policy("p", 0, 2**31 - 1, (Rule(Signal(Metric.QUEUE_LENGTH), 5, 5),)))
            stopped.append((asyncio.get_running_loop(), asyncio.Event()))
            urls.append(s.url)
            up.set()
            await stopped[0][1].wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert up.wait(10)
        yield urls[0]
    finally:
        for loop, event in stopped:
            loop.call_soon_threadsafe(event.set)
        thread.join(10)


def failures(url: str, examples: int) -> tuple[set[str], list[str]]:
    """The operations that were tried, and what was wrong with any; the same requests each time."""
    schema = schemathesis.openapi.from_url(f"{url}{Route.PROXY_OPENAPI.value}", config=SchemathesisConfig(seed=1))
    schema.config.generation.update(max_examples=examples, deterministic=True, database="none")
    tried, wrong = set[str](), list[str]()
    ending = schema.exclude(path=Route.PROXY_EVENTS.value, method="GET")
    for event in from_schema(ending).execute():
        if isinstance(event, events.NonFatalError | events.FatalError):
            wrong.append(str(event))
        if isinstance(event, events.ScenarioFinished):
            tried.add(event.recorder.label)
            for case_id, checks in event.recorder.checks.items():
                case = event.recorder.cases[case_id].value
                for check in checks:
                    # A method that a path outside of /proxy/ does not take is the engine's, not 405.
                    engines = check.name == "unsupported_method" and not case.path.startswith("/proxy/")
                    if check.failure_info is not None and not engines:
                        failure = check.failure_info.failure
                        wrong.append(f"{case.method} {case.formatted_path} {failure.title}: {failure.message} {case}")
    return tried, wrong


def all_operations() -> set[str]:
    return {f"{method.upper()} {path}" for path, methods in document("0")["paths"].items() for method in methods}


def test_it_has_every_route_that_is_the_proxys_own() -> None:
    assert set(OPERATIONS) == {route for route in METHODS if TABLE[route].awake is not None}
    assert all_operations() == {f"{method} {route.value}" for route in OPERATIONS for method in METHODS[route]}


def test_it_is_valid() -> None:
    schema = schemathesis.openapi.from_dict(document("1.2.3"))
    schema.validate()
    assert schema.specification.version == "3.1.0"
    names = [one["operationId"] for methods in document("1.2.3")["paths"].values() for one in methods.values()]
    assert len(names) == len(set(names)) == len(all_operations())


@pytest.mark.parametrize("examples", [5, pytest.param(200, marks=pytest.mark.slow)])
def test_the_proxy_takes_and_answers_what_it_says(examples: int) -> None:
    with proxy() as url:
        tried, wrong = failures(url, examples)
    assert not wrong, "\n\n".join(wrong)
    read = {f"GET {Route.PROXY_OPENAPI.value}", f"GET {Route.PROXY_EVENTS.value}"}
    assert tried == all_operations() - read

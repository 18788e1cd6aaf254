"""The controller of variants as a process, against a real API server: a load that comes and goes, and what fails.

Intervals are short: it looks every two seconds, and spare capacity may go after five. What these tests print with -s is
in docs/variants.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import real_prometheus
from tests.cluster.cluster import Cluster
from tests.cluster.controlling import Controlling, controlling, kubeconfig_of, token_for
from tests.cluster.serving import ask, in_front_of
from tests.cluster.test_controller_rbac import installed
from tests.cluster.variants import Crowd, Variants, crowd_of, variants_of
from tests.deploy.kustomized import DEPLOY, needs_kubectl
from tests.hpa import Autoscaler
from vllm_chill.adapters.kubernetes.client import Json
from vllm_chill.adapters.kubernetes.watch import ListWatch, Snapshot

pytestmark = pytest.mark.slow

INTERVAL = 2.0
QUICK = ("--interval", f"{INTERVAL:g}s")
PODS = ("--metrics-source", "pods")
OPEN = ("--metrics-secure=false",)
DIRECT = ("--actuation", "direct")
SCALING = "scaleDownStabilization: 5s\nscaleDownPeriod: 5s\nscaleDownIncrement: 10\n"
ZERO = {"enabled": True, "retentionPeriod": "12s"}
# A replica of ten seats takes seven before less than a tenth of it is spare. Fourteen need two; at one, four wait.
SOME = 14
# One more replica starts within this, on a machine that has other things to do.
START_SECONDS = 20.0
# Of what a Prometheus has, the peak of the last minute counts.
PEAK_SECONDS = 60.0


@dataclass
class Stage:
    """A cheap and a dear variant of a model, and those who ask it."""

    cluster: Cluster
    variants: Variants
    crowd: Crowd


@contextlib.asynccontextmanager
async def stage(cluster: Cluster, scaling: str = SCALING) -> AsyncIterator[Stage]:
    async with variants_of(cluster) as variants, crowd_of(cluster) as crowd:
        await variants.configure("saturation-scaling-config", default=scaling)
        yield Stage(cluster, variants, crowd)


@contextlib.asynccontextmanager
async def scraping(cluster: Cluster, folder: Path, port: int = 0) -> AsyncIterator[int]:
    """The port of a Prometheus that scrapes the pods of the namespace, with the labels that a PodMonitor gives them.

    Debian's cannot ask an API server, so what that would tell it comes in a file.
    """
    found = folder / "pods.json"
    meta = "__meta_kubernetes"
    job = {
        "job_name": "vllm",
        "file_sd_configs": [{"files": [str(found)]}],
        "relabel_configs": [
            {"source_labels": [f"{meta}_namespace"], "target_label": "namespace"},
            {"source_labels": [f"{meta}_pod_name"], "target_label": "pod"},
        ],
    }
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [job]}
    discovering = asyncio.create_task(discover(cluster, found))
    try:
        async with real_prometheus.running(folder, config, port=port) as at:
            yield at
    finally:
        discovering.cancel()


async def discover(cluster: Cluster, into: Path) -> None:
    """Write down where the running pods of the namespace are, as Prometheus' own discovery would, until cancelled."""
    path = f"/api/v1/namespaces/{cluster.namespace}/pods"
    watch: ListWatch[Json] = ListWatch(cluster.api, path, {}, lambda item: item)
    async with aclosing(watch.steps()) as steps:
        async for step in steps:
            if not isinstance(step, Snapshot):
                continue
            groups = [
                {
                    "targets": [f"{pod['status']['podIP']}:8000"],
                    "labels": {
                        "__meta_kubernetes_namespace": cluster.namespace,
                        "__meta_kubernetes_pod_name": pod["metadata"]["name"],
                    },
                }
                for pod in step.objects.values()
                if pod["status"].get("podIP")
            ]
            new = into.with_suffix(".new")
            new.write_text(json.dumps(groups))
            new.rename(into)


async def follow_as_hpas(
    cluster: Cluster, controller: Controlling, token: str, autoscalers: Mapping[str, Autoscaler]
) -> None:
    """What kube-controller-manager makes of the sample's HPAs and what the controller tells, every two seconds."""
    known = dict(autoscalers)
    while True:
        told = await controller.figures(token)
        for name, autoscaler in known.items():
            current = await cluster.replicas(name)
            wanted, known[name] = autoscaler.look(time.monotonic(), told.get(name), current)
            if wanted != current:
                await cluster.scale(wanted, name)
        await asyncio.sleep(INTERVAL)


def sample_autoscalers(names: Mapping[str, str]) -> dict[str, Autoscaler]:
    """The sample's HPAs for Deployments of other names. `minReplicas: 0` is of the feature gate HPAScaleToZero."""
    text = (DEPLOY / "example/variants-hpa/hpa.yaml").read_text()
    manifests = {item["metadata"]["name"]: item for item in yaml.safe_load_all(text)}
    return {name: replace(Autoscaler.of(manifests[sample]), least=0) for name, sample in names.items()}


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Any:
    def said(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}")  # noqa: T201

    return said


def never_shrank(numbers: Iterable[int]) -> bool:
    numbers = list(numbers)
    return sorted(numbers) == numbers


@needs_kubectl
async def test_an_hpa_follows_what_is_wanted_for_a_load_that_comes_and_goes(
    cluster: Cluster, tmp_path: Path, say: Any
) -> None:
    async with (
        stage(cluster) as here,
        installed(cluster, ["monitor"], tmp_path),
        scraping(cluster, tmp_path) as port,
    ):
        variants, crowd = here.variants, here.crowd
        await variants.create("cheap", 10, replicas=1, maxReplicas=3, scaleToZero=ZERO)
        await variants.create("dear", 60, maxReplicas=1, scaleToZero=ZERO)
        own = await kubeconfig_of(cluster, f"vllm-chill-controller-{cluster.namespace}", tmp_path)
        token = await token_for(cluster, f"vllm-chill-scraper-{cluster.namespace}")
        source = ("--metrics-source", "prometheus", "--prometheus-base-url", f"http://127.0.0.1:{port}")
        async with controlling(cluster, *QUICK, *source, kubeconfig=own) as controller:
            crowd.grow_to(2)
            await variants.until_condition("cheap", "MetricsAvailable", "True", "MetricsFound")
            assert (await controller.page())[0] == 401
            assert (await controller.figures(token)) == {"cheap": 1, "dear": 0}
            samples = sample_autoscalers({"cheap": "chat-l4", "dear": "chat-h100"})
            following = asyncio.create_task(follow_as_hpas(cluster, controller, token, samples))
            try:
                grew = time.monotonic()
                crowd.grow_to(SOME)
                wanted = await variants.until_desired("cheap", 2)
                assert (await controller.figures(token))["cheap"] == 2
                await variants.until_ready("cheap", 2, START_SECONDS)
                ready = time.monotonic()

                assert variants.numbers("dear") == [0], "the cheap one first, up to its maxReplicas"
                crowd.grow_to(3 * SOME)
                await variants.until_desired("cheap", 3)
                await variants.until_desired("dear", 1)
                await variants.until_ready("dear", 1, START_SECONDS)
                assert never_shrank(variants.numbers("cheap"))

                gone = time.monotonic()
                await crowd.leave()
                fewer = await variants.until_desired("dear", 0, PEAK_SECONDS + 20)
                assert variants.numbers("cheap")[-1] > 0, "the dear one first"
                asleep = await variants.until_desired("cheap", 0, PEAK_SECONDS + 20)
                await variants.until_replicas("cheap", 0)
                await variants.until_ready("cheap", 0)
                # An HPA that is told nothing stays where it is.
                assert (await controller.figures(token)) == {"cheap": 0, "dear": 0}
                assert not following.done(), following.exception()
            finally:
                following.cancel()
            assert crowd.failed == []
            assert controller.said("forbidden") == []
            assert await variants.events("cheap", "ScalingDecision")
    say(
        f"by an HPA and a Prometheus: wanted {wanted - grew:.1f} s after the load grew, ready after "
        f"{ready - grew:.1f} s; the dear one gone {fewer - gone:.1f} s after the load had gone, zero after "
        f"{asleep - gone:.1f} s"
    )


@needs_kubectl
async def test_the_controller_scales_by_itself_to_zero_and_back_for_whom_a_proxy_holds(
    cluster: Cluster, tmp_path: Path, say: Any
) -> None:
    async with stage(cluster) as here, installed(cluster, ["direct"], tmp_path):
        variants, crowd = here.variants, here.crowd
        await variants.create("cheap", 10, replicas=1, maxReplicas=3, scaleToZero=ZERO)
        await variants.create("dear", 60, maxReplicas=1, scaleToZero=ZERO)
        own = await kubeconfig_of(cluster, f"vllm-chill-controller-{cluster.namespace}", tmp_path)
        address = await cluster.create_service("cheap-svc", app="cheap")
        in_front = ("--deployment", "cheap", "--mode", "recommend")
        async with in_front_of(cluster, *in_front, address=address) as proxy:
            held = ("--demand-urls", f"{proxy.url}/proxy/metrics")
            async with controlling(cluster, *QUICK, *PODS, *OPEN, *DIRECT, *held, kubeconfig=own) as controller:
                crowd.grow_to(2)
                await variants.until_condition("cheap", "MetricsAvailable", "True", "MetricsFound")
                grew = time.monotonic()
                crowd.grow_to(SOME)
                wanted = await variants.until_desired("cheap", 2)
                await variants.until_ready("cheap", 2, START_SECONDS)
                ready = time.monotonic()

                gone = time.monotonic()
                await crowd.leave()
                asleep = await variants.until_replicas("cheap", 0, 40)
                await variants.until_ready("cheap", 0)
                await asyncio.sleep(2 * INTERVAL)
                assert await cluster.replicas("cheap") == 0, "nobody waits"
                assert (await controller.figures())["cheap"] == 0

                asked = time.monotonic()
                answering = asyncio.create_task(ask(proxy.url))
                woken = await variants.until_replicas("cheap", 1)
                answer = await asyncio.wait_for(answering, START_SECONDS)
                answered = time.monotonic()
                assert answer.status == 200
                await variants.until_desired("cheap", 1)
                assert await cluster.replicas("dear") == 0, "one is enough, and the cheap one is"
                assert variants.numbers("dear") == [0]
                assert crowd.failed == []
                assert controller.said("forbidden") == []
    say(
        f"direct, asking the pods: wanted {wanted - grew:.1f} s after the load grew, ready after {ready - grew:.1f} s; "
        f"zero {asleep - gone:.1f} s after the load had gone; woken {woken - asked:.1f} s after somebody was held, who "
        f"was answered after {answered - asked:.1f} s"
    )


async def test_while_prometheus_is_away_what_was_wanted_last_stays_and_nothing_shrinks(
    cluster: Cluster, tmp_path: Path, say: Any
) -> None:
    # What is 1 and 5 minutes by default is 10 and 30 seconds here, and all of it is said in the main ConfigMap.
    ages = {
        "PROMETHEUS_METRICS_CACHE_FRESH_THRESHOLD": "10s",
        "PROMETHEUS_METRICS_CACHE_UNAVAILABLE_THRESHOLD": "30s",
        "GLOBAL_OPT_INTERVAL": f"{INTERVAL:g}s",
    }
    async with stage(cluster) as here:
        variants, crowd = here.variants, here.crowd
        await variants.create("cheap", 10, replicas=1, minReplicas=1, maxReplicas=3)
        async with contextlib.AsyncExitStack() as prometheus:
            port = await prometheus.enter_async_context(scraping(cluster, tmp_path))
            await variants.configure("wva-configmap", PROMETHEUS_BASE_URL=f"http://127.0.0.1:{port}", **ages)
            async with controlling(cluster, *OPEN, *DIRECT) as controller:
                crowd.grow_to(SOME)
                await variants.until_ready("cheap", 2)
                await variants.until_condition("cheap", "MetricsAvailable", "True", "MetricsFound")
                before = variants.numbers("cheap")[-1]

                await prometheus.aclose()
                away = time.monotonic()
                await crowd.leave()
                stale = await variants.until_condition("cheap", "MetricsAvailable", "False", "MetricsStale", 20)
                gone = await variants.until_condition("cheap", "MetricsAvailable", "False", "PrometheusError", 40)
                await asyncio.sleep(3 * INTERVAL)
                wanted = variants.numbers("cheap")
                assert never_shrank(wanted)
                assert wanted[-1] == await cluster.replicas("cheap") >= before
                assert (await controller.figures())["cheap"] == wanted[-1]
                assert variants.status("cheap")["decision"]["reason"] == "MetricsUnavailable"
                assert "saturation" not in variants.status("cheap")
                events = await variants.events("cheap", "PrometheusError")
                assert [count for _, count in events] == [1]

                back = time.monotonic()
                async with scraping(cluster, tmp_path, port):
                    found = await variants.until_condition("cheap", "MetricsAvailable", "True", "MetricsFound")
                    fewer = await variants.until_replicas("cheap", 1, PEAK_SECONDS + 20)
        assert crowd.failed == []
    say(
        f"Prometheus away: stale after {stale - away:.1f} s, gone after {gone - away:.1f} s, {wanted[-1]} replicas "
        f"kept; believed again {found - back:.1f} s after it was back, and shrunk after {fewer - back:.1f} s"
    )


async def test_when_the_leader_is_killed_the_other_goes_on_from_the_same_number(cluster: Cluster, say: Any) -> None:
    terms = ("--leader-elect", "--leader-election-lease-duration", "4s", "--leader-election-renew-deadline", "2500ms",
             "--leader-election-retry-period", "500ms")  # fmt: skip
    flags = (*QUICK, *PODS, *OPEN, *DIRECT, *terms)
    async with stage(cluster) as here:
        variants, crowd = here.variants, here.crowd
        # It loads for longer than a lease lasts: the next leader comes while what the first decided is on its way.
        await variants.create("cheap", 10, replicas=1, minReplicas=1, maxReplicas=3, load_seconds=6)
        async with controlling(cluster, *flags) as first, controlling(cluster, *flags) as second:
            await variants.until_condition("cheap", "MetricsAvailable", "True", "MetricsFound")
            told = [bool(await one.figures()) for one in (first, second)]
            assert sorted(told) == [False, True], "one leads, and only that one tells what is wanted"
            leader, other = (first, second) if told[0] else (second, first)
            crowd.grow_to(SOME)
            await variants.until_desired("cheap", 2)
            await variants.until_replicas("cheap", 2)
            written = await cluster.generation("cheap")
            assert not await other.figures()

            await leader.stop(signal.SIGKILL)
            killed = time.monotonic()
            async with asyncio.timeout(15):
                while not await other.figures():  # noqa: ASYNC110 - as a scraper would
                    await asyncio.sleep(0.1)
            taken = time.monotonic()
            assert taken - killed < 4 + 0.5 + 2, "the lease, a try, and what a first look takes"
            assert (await other.figures())["cheap"] == 2
            await variants.until_ready("cheap", 2, START_SECONDS)
            await asyncio.sleep(3 * INTERVAL)
            assert variants.numbers("cheap") == [1, 2], "neither less nor more at any time"
            assert await cluster.generation("cheap") == written
            decisions = await variants.events("cheap", "ScalingDecision")
            assert [count for _, count in decisions] == [1]
            assert decisions[0][0].startswith("from 1 to 2 replicas")

            await crowd.leave()
            await variants.until_desired("cheap", 1, 40)
            assert variants.numbers("cheap") == [1, 2, 1]
        assert crowd.failed == []
    say(f"the leader killed: the other tells what is wanted {taken - killed:.1f} s later (lease 4 s)")


async def test_a_target_that_is_deleted_and_a_spec_that_cannot_be_used_are_told_and_mended(cluster: Cluster) -> None:
    async with stage(cluster) as here:
        variants, crowd = here.variants, here.crowd
        made = await variants.create("cheap", 10, replicas=1, minReplicas=1, maxReplicas=3)
        async with controlling(cluster, *QUICK, *PODS, *OPEN, *DIRECT) as controller:
            await variants.until_condition("cheap", "MetricsAvailable", "True", "MetricsFound")
            assert (await controller.figures())["cheap"] == 1

            await cluster.delete_deployment("cheap")
            await variants.until_condition("cheap", "TargetResolved", "False", "TargetNotFound")
            assert "cheap" not in await controller.figures()
            await cluster.create(made)
            await variants.until_condition("cheap", "TargetResolved", "True", "TargetFound")
            await variants.until_condition("cheap", "MetricsAvailable", "True", "MetricsFound")
            assert (await controller.figures())["cheap"] == 1

            # Each bound is one that the definition lets through; together they are not.
            await variants.change("cheap", {"spec": {"minReplicas": 5}})
            await variants.until_condition("cheap", "OptimizationReady", "False", "InvalidConfiguration")
            [told] = [one for one in variants.status("cheap")["conditions"] if one["type"] == "OptimizationReady"]
            assert "minReplicas" in told["message"]
            crowd.grow_to(SOME)
            await variants.until_replicas("cheap", 2)  # by the version before
            await variants.change("cheap", {"spec": {"minReplicas": 3}})
            await variants.until_condition("cheap", "OptimizationReady", "True", "OptimizationSucceeded")
            await variants.until_replicas("cheap", 3)
            assert controller.process.returncode is None
            assert controller.said("traceback") == []


async def test_with_few_gpus_it_is_wanted_what_fits(cluster: Cluster) -> None:
    node = "/api/v1/nodes/node-0"
    await cluster.patch(node, {"metadata": {"labels": {"nvidia.com/gpu.product": "GPU-cheap"}}})
    try:
        async with stage(cluster, f"{SCALING}enableLimiter: true\n") as here:
            variants, crowd = here.variants, here.crowd
            # The node has eight GPUs, of which somebody takes three: five are two replicas of two.
            container = {"name": "own", "image": "busy", "command": ["sleep", "3600"],
                         "resources": {"limits": {"nvidia.com/gpu": "3"}}}  # fmt: skip
            taker = {"terminationGracePeriodSeconds": 0, "containers": [container]}
            await cluster.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "taker"}, "spec": taker})
            await variants.create("cheap", 10, replicas=1, minReplicas=1, maxReplicas=8, gpus=2)
            async with controlling(cluster, *QUICK, *PODS, *OPEN, *DIRECT) as controller:
                await variants.until_condition("cheap", "MetricsAvailable", "True", "MetricsFound")
                crowd.grow_to(3 * SOME)
                await variants.until("cheap", lambda item: reason(item) == "LimitedByGPUs")
                await variants.until_ready("cheap", 2, START_SECONDS)
                await asyncio.sleep(3 * INTERVAL)
                assert variants.numbers("cheap") == [1, 2]
                assert reason(variants.seen("cheap")) == "LimitedByGPUs"
                limits = [one for one in variants.status("cheap")["decision"]["trail"] if one["stage"] == "limit"]
                assert [one["replicas"] for one in limits] == [2]
                assert "GPU-cheap" in limits[0]["text"]
                assert (await controller.figures())["cheap"] == 2
    finally:
        await cluster.patch(node, {"metadata": {"labels": {"nvidia.com/gpu.product": None}}})


def reason(item: Json) -> str | None:
    """Why the last decision on a variant was made, in one word."""
    return ((item.get("status") or {}).get("decision") or {}).get("reason")

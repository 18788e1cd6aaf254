"""VLLMModel objects and their workloads on a real API server, with real pods."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.api_server import answers, away
from tests.cluster.cluster import Cluster
from tests.cluster.models import Models, condition, following, install_crd, model, remove_crd
from vllm_chill.adapters.kubernetes.client import ApiError
from vllm_chill.api.workload import workload_name
from vllm_chill.control.models import FINALIZER
from vllm_chill.control.workloads import MANAGED_BY, REPLACE
from vllm_chill.core.objects import Json
from vllm_chill.core.target import Ready
from vllm_chill.errors import ModelNotFound

EXAMPLES = Path(__file__).parents[2] / "deploy" / "example" / "models"


def args_of(deployment: Json) -> list[str]:
    args: list[str] = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    return args


def uids(pods: list[Json]) -> list[str]:
    return [pod["metadata"]["uid"] for pod in pods]


async def test_the_example_models_are_made_woken_and_shown(cluster: Cluster, models: Models) -> None:
    names = []
    async with following(cluster, idle_seconds=2) as follows:
        for file in sorted(EXAMPLES.glob("*-*.yaml")):
            item = yaml.safe_load(file.read_text())
            names.append(item["metadata"]["name"])
            await models.create(item)
        assert len(names) == 2
        for name in names:
            item = await models.until_phase(name, "Asleep")
            assert item["metadata"]["finalizers"] == [FINALIZER]
            assert (await models.columns(name))["Status"] == "Asleep"
        wanted, other = names
        lease = asyncio.create_task(follows.lease(wanted))
        await models.until_phase(wanted, "Waking")
        with await lease:
            item = await models.until_phase(wanted, "Ready")
            assert (await models.columns(wanted))["Status"] == "Ready"
            assert condition(item, "Available") == ("True", "Ready")
            assert item["status"]["lastWakeSeconds"] > 0
            assert item["status"]["replicas"] == 1
            assert await models.pods(other) == []
        await models.until_phase(wanted, "Asleep")
        await cluster.until("/api/v1", "pods", lambda pods: not pods)


async def test_what_was_changed_by_hand_is_put_back_and_said(cluster: Cluster, models: Models) -> None:
    name = models.name("drift")
    await models.create(model(name))
    workload = workload_name(name)
    path = f"/apis/apps/v1/namespaces/{cluster.namespace}/deployments/{workload}"
    service = f"/api/v1/namespaces/{cluster.namespace}/services/{workload}"
    async with following(cluster) as follows:
        await models.until_phase(name, "Asleep")
        before = args_of(await models.deployment(name))
        container = {"name": "vllm", "args": ["--model", "other"]}
        await cluster.patch(path, {"spec": {"template": {"spec": {"containers": [container]}}}}, "strategic-merge")
        await models.until_deployment(name, lambda item: item is not None and args_of(item) == before)
        await cluster.patch(path, {"metadata": {"labels": {MANAGED_BY: None}}})
        await models.until_deployment(name, lambda d: d is not None and MANAGED_BY in d["metadata"]["labels"])
        await cluster.delete(service)
        await cluster.until("/api/v1", "services", lambda items: any(s["metadata"]["name"] == workload for s in items))
        await cluster.delete(path)
        await models.until_deployment(name, lambda item: item is not None)
        (await follows.lease(name)).release()
        said = await models.until_said(name, "DriftUndone", 4)
        assert sum("was deleted by somebody else" in message for message in said) == 2


async def test_an_edit_while_it_is_busy_waits_for_the_last_stream(cluster: Cluster, models: Models) -> None:
    name = models.name("busy")
    await models.create(model(name))
    async with following(cluster) as follows:
        with await follows.lease(name):
            before = uids(await models.pods(name))
            await models.change(name, {"spec": {"maxModelLen": 1024}})
            await models.until_condition(name, "UpToDate", "False", "WaitsForIdle")
            await models.change(name, {"metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}}})
            await asyncio.sleep(2)
            assert uids(await models.pods(name)) == before
            assert "1024" not in args_of(await models.deployment(name))
        await models.until_condition(name, "UpToDate", "True", "Applied")
        (await follows.lease(name)).release()
        assert "1024" in args_of(await models.deployment(name))
        [pod] = await models.pods(name)
        assert pod["metadata"]["uid"] not in before
        generation = (await models.deployment(name))["metadata"]["generation"]
        await models.change(name, {"metadata": {"labels": {"a": "c"}}})
        await asyncio.sleep(2)
        assert (await models.deployment(name))["metadata"]["generation"] == generation


async def test_an_edit_with_the_annotation_lets_nobody_in_any_more(cluster: Cluster, models: Models) -> None:
    name = models.name("now")
    await models.create(model(name))
    async with following(cluster) as follows:
        first = await follows.lease(name)
        await models.change(name, {"spec": {"maxModelLen": 1024}, "metadata": {"annotations": {REPLACE: "now"}}})
        await models.until_phase(name, "Draining")
        later = asyncio.create_task(follows.lease(name))
        await asyncio.sleep(1)
        assert not later.done()
        first.release()
        with await later:
            assert "1024" in args_of(await models.deployment(name))


async def test_a_model_that_is_deleted_takes_its_workload_along_and_who_waits_is_told(
    cluster: Cluster, models: Models
) -> None:
    name, other = models.name("gone"), models.name("waiting")
    await models.create(model(name))
    await models.create(model(other, load_seconds=30))
    async with following(cluster) as follows:
        lease = await follows.lease(name)
        waiting = asyncio.create_task(follows.lease(other))
        await models.until_phase(other, "Waking")
        await models.delete(name)
        await models.delete(other)
        with pytest.raises(ModelNotFound, match="was deleted"):
            await waiting
        await models.until(other, lambda item: item is None)
        assert (await models.until_phase(name, "Deleting"))["metadata"]["finalizers"] == [FINALIZER]
        await asyncio.sleep(2)
        assert len(await models.pods(name)) == 1
        lease.release()
        await models.until(name, lambda item: item is None)
        await cluster.until("/apis/apps/v1", "deployments", lambda items: not items)
        await cluster.until("/api/v1", "services", lambda items: not items)
        await cluster.until("/api/v1", "pods", lambda items: not items)


async def test_a_proxy_that_starts_anew_adopts_what_runs_and_touches_nothing(cluster: Cluster, models: Models) -> None:
    name, asleep = models.name("adopted"), models.name("asleep")
    await models.create(model(name))
    await models.create(model(asleep))
    async with following(cluster) as follows:
        await follows.lease(name)
        await models.until_phase(asleep, "Asleep")
        await models.until_phase(name, "Ready")
        before = await snapshot(cluster, models, name, asleep)
    async with following(cluster) as follows:
        await follows.until(lambda: name in follows.controllers)
        with await follows.lease(name):
            assert isinstance(follows.controllers[name].target.phase, Ready)
        await asyncio.sleep(2)
        assert await snapshot(cluster, models, name, asleep) == before
        assert {reason for reason, _ in await models.events(name)} == {"Created"}


async def snapshot(cluster: Cluster, models: Models, *names: str) -> dict[str, Any]:
    deployments = [await models.deployment(name) for name in names]
    services = (await cluster.api.call("GET", f"/api/v1/namespaces/{cluster.namespace}/services"))["items"]
    return {
        "generations": [item["metadata"]["generation"] for item in deployments],
        "services": sorted((s["metadata"]["name"], s["metadata"]["resourceVersion"]) for s in services),
        "pods": [uids(await models.pods(name)) for name in names],
    }


async def test_a_model_that_was_deleted_while_nobody_looked_is_seen_out(cluster: Cluster, models: Models) -> None:
    name, never = models.name("unseen"), models.name("never")
    await models.create(model(name))
    async with following(cluster) as follows:
        (await follows.lease(name)).release()
        await models.until_phase(name, "Ready")
    await models.delete(name)
    item = model(never)
    item["metadata"]["finalizers"] = [FINALIZER]
    await models.create(item)
    await models.delete(never)
    assert not await models.is_gone(name)
    async with following(cluster):
        await models.until(name, lambda item: item is None)
        await models.until(never, lambda item: item is None)
        await cluster.until("/apis/apps/v1", "deployments", lambda items: not items)
        await cluster.until("/api/v1", "pods", lambda items: not items)


async def test_a_deployment_that_is_not_ours_is_never_touched(cluster: Cluster, models: Models) -> None:
    name = models.name("theirs")
    theirs = await cluster.create_deployment(workload_name(name))
    async with following(cluster) as follows:
        await models.create(model(name))
        item = await models.until_condition(name, "UpToDate", "False", "Conflict")
        assert "is not vllm-chill's" in item["status"]["message"]
        assert (await models.deployment(name))["metadata"]["generation"] == theirs["metadata"]["generation"]
        assert name not in follows.controllers
        await cluster.delete_deployment(workload_name(name))
        await models.until_phase(name, "Asleep")
        (await follows.lease(name)).release()


BAD: dict[str, Any] = {
    "maxModelLen": 0,
    "gpuMemoryUtilization": 1.5,
    "maxNumSeqs": "many",
    "maxNumBatchedTokens": -1,
    "gpuCount": -2,
    "dtype": "no such type!",
    "enablePrefixCaching": "perhaps",
    "idleTimeout": "soon",
    "aliases": ["a", "a"],
    "shmSize": "a lot",
}


async def test_ten_bad_fields_are_told_one_by_one(cluster: Cluster, models: Models) -> None:
    with pytest.raises(ApiError) as refused:
        await models.create(model(models.name("bad"), **BAD))
    missing = [field for field in BAD if f"spec.{field}" not in refused.value.message]
    assert missing == []


async def test_what_the_api_server_lets_pass_is_told_in_the_status(cluster: Cluster, models: Models) -> None:
    name = models.name("pair")
    async with following(cluster) as follows:
        await models.create(model(name, minReplicas=3, maxReplicas=2))
        item = await models.until_phase(name, "Invalid")
        assert condition(item, "Valid") == ("False", "SpecNotAccepted")
        assert "minReplicas" in item["status"]["message"]
        assert name not in follows.controllers
        [said] = await models.until_said(name, "NotAccepted")
        assert "minReplicas" in said
        await models.change(name, {"spec": {"minReplicas": 0}})
        await models.until_phase(name, "Asleep")


async def test_without_the_definition_it_says_how_to_install_it_and_goes_on_once_it_is_there(
    cluster: Cluster, models: Models
) -> None:
    await remove_crd(cluster.api)
    async with following(cluster) as follows:
        await follows.until(lambda: bool(follows.losses))
        assert "vllm-chill crd | kubectl apply -f -" in follows.losses[0]
        await install_crd(cluster.api)
        name = models.name("late")
        await models.create(model(name))
        (await follows.lease(name)).release()


async def test_while_the_api_server_is_away_a_model_goes_on_and_follows_its_spec_afterwards(
    cluster: Cluster, models: Models, control_plane: Path
) -> None:
    name = models.name("away")
    await models.create(model(name))
    async with following(cluster) as follows:
        with await follows.lease(name):
            async with away(control_plane):
                await follows.until(lambda: bool(follows.losses))
                (await follows.lease(name)).release()
            await answers(cluster.api)
            before = uids(await models.pods(name))
            await models.change(name, {"spec": {"maxModelLen": 1024}})
            await models.until_condition(name, "UpToDate", "False", "WaitsForIdle")
            assert uids(await models.pods(name)) == before
        await models.until_condition(name, "UpToDate", "True", "Applied")

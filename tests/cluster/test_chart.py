"""What helm and kustomize make of deploy/, on a real API server: it takes every object, grants the rights that are
written there and no others, and the proxy wakes and sleeps with them as its pod has it run. Of those that it cannot do
without each one is missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.account import mount
from tests.cluster.cluster import Cluster, path_of
from tests.cluster.models import Models, model
from tests.cluster.serving import CHAT, ask, caller, in_a_pod, metric, question
from tests.cluster.test_manifests import dropped, known_as
from tests.deploy.charted import CHART, HELM, needs_helm, render
from tests.deploy.kustomized import DEPLOY, Built, build_with, needs_kubectl
from tests.serving import Serving
from vllm_chill.adapters.kubernetes.client import ApiError, Json, connect
from vllm_chill.adapters.kubernetes.credentials import Places

ON = {"enabled": True}
_RIGHTS = ("ServiceAccount", "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")
# Nothing is of these kinds without the Prometheus Operator.
_UNKNOWN = ("ServiceMonitor", "PodMonitor", "PrometheusRule")
Rights = set[tuple[str, str, str, str]]


def charted(cluster: Cluster, values: Mapping[str, Any]) -> Built:
    """What helm makes, with names of its own for what is cluster-wide, and the account that tests are of."""
    values = {"serviceAccount": {"name": "vllm-chill"}, **values}
    return render(values, release=f"vllm-chill-{cluster.namespace[-8:]}", namespace=cluster.namespace)


def kustomized(cluster: Cluster, components: Sequence[str], folder: Path) -> Built:
    """The same of kustomize."""
    return build_with(DEPLOY, components, folder / "built", namespace=cluster.namespace)


async def define(cluster: Cluster) -> None:
    """Have the cluster know what the chart's folder of definitions has."""
    for file in (CHART / "crds").iterdir():
        item = yaml.safe_load(file.read_text())
        with contextlib.suppress(ApiError):  # it is there
            await cluster.api.call("POST", path_of(item), body=item)


@contextlib.asynccontextmanager
async def installed(cluster: Cluster, built: Built, *, without: tuple[str, str] | None = None) -> AsyncIterator[None]:
    """The definitions, the accounts and the rights, less one verb on one resource."""
    await define(cluster)
    made = []
    try:
        for item in (item for kind in _RIGHTS for item in built.all(kind)):
            await cluster.api.call("POST", path_of(item), body=less(item, without))
            made.append(f"{path_of(item)}/{item['metadata']['name']}")
        yield
    finally:
        for path in made:
            await cluster.delete(path)


def less(item: Json, right: tuple[str, str] | None) -> Json:
    item = copy.deepcopy(item)
    for rule in item.get("rules", []) if right is not None else ():
        if right is not None and right[1] in rule["resources"] and right[0] in rule["verbs"]:
            rule["verbs"].remove(right[0])
    if "rules" in item:
        item["rules"] = [rule for rule in item["rules"] if rule["verbs"]]
    return item


def granted(built: Built, namespace: str) -> Rights:
    """What the roles say that hold in this namespace: group, resource, name ("" for any), verb."""
    return {
        (group, resource, name, verb)
        for role in built.all("Role") + built.all("ClusterRole")
        if role["metadata"].get("namespace", namespace) == namespace
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
        for verb in rule["verbs"]
    }


async def held(cluster: Cluster, folder: Path) -> Rights:
    """What the API server says that the account may do in its namespace, but for what everybody may."""
    environ = await mount(cluster, folder)
    async with connect(places=Places(environ, folder, folder / "no-kubeconfig")) as api:
        path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview"}
        said = await api.call("POST", path, body={**body, "spec": {"namespace": cluster.namespace}})
    return {
        (group, resource, name, verb)
        for rule in said["status"]["resourceRules"]
        for group in rule.get("apiGroups", [])
        for resource in rule.get("resources", [])
        for name in rule.get("resourceNames") or [""]
        for verb in rule["verbs"]
        if not resource.startswith("selfsubject")
    }


async def until_held(cluster: Cluster, folder: Path, expected: Rights) -> None:
    found: Rights = set()
    for _ in range(40):
        found = await held(cluster, folder)
        if found == expected:
            return
        await asyncio.sleep(0.1)
    assert found == expected


def flags_of(built: Built, cluster: Cluster) -> list[str]:
    """How the pod has the proxy run, but for where it listens."""
    [deployment] = [item for item in built.all("Deployment") if item["metadata"]["name"].startswith("vllm-chill")]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    word, *flags = [argument.replace("$(POD_NAMESPACE)", cluster.namespace) for argument in container["args"]]
    assert word == "serve"
    return [*flags, "--host=127.0.0.1", "--port=0"]


async def wakes_and_sleeps(cluster: Cluster, proxy: Serving) -> None:
    """A caller at zero is answered, and its engine is gone afterwards."""
    assert (await ask(proxy.url)).status == 200
    await cluster.until_pods(lambda pods: not pods, seconds=20)
    assert await cluster.replicas() == 0


CHARTS: dict[str, Mapping[str, Any]] = {
    "as it is": {},
    "without what is optional": {"rbac": {"optional": False}},
    "two proxies": {"replicaCount": 2, "policies": ON, "networkPolicy": ON},
}
QUICK = {"idleTimeout": "1s", "wakeTimeout": "30s", "drainTimeout": "2s"}


@needs_helm
@pytest.mark.parametrize("values", CHARTS.values(), ids=CHARTS)
async def test_with_the_rights_of_the_chart_and_no_others_it_wakes_and_sleeps(
    values: Mapping[str, Any], cluster: Cluster, tmp_path: Path
) -> None:
    built = charted(cluster, {**QUICK, **values})
    await cluster.create_deployment()
    async with installed(cluster, built):
        await until_held(cluster, tmp_path, granted(built, cluster.namespace))
        async with in_a_pod(cluster, tmp_path, *flags_of(built, cluster)) as proxy, sight_of(cluster, proxy) as sees:
            await wakes_and_sleeps(cluster, proxy)
            assert sees == {1}
            said = [line["event"] for line in proxy.log if line["level"] in ("warning", "error")]
            optional = values.get("rbac", {}).get("optional", True)
            assert said == ([] if optional else ["what was saved is not kept"])


@needs_kubectl
@pytest.mark.parametrize("components", [[], ["overlays/ha"], ["policies", "overlays/network-policy"]], ids=str)
async def test_with_the_rights_of_the_overlays_and_no_others_it_wakes_and_sleeps(
    components: Sequence[str], cluster: Cluster, tmp_path: Path
) -> None:
    built = kustomized(cluster, components, tmp_path)
    await cluster.create_deployment()
    async with installed(cluster, built):
        await until_held(cluster, tmp_path, granted(built, cluster.namespace))
        flags = (*flags_of(built, cluster), "--idle-timeout=1s")
        async with in_a_pod(cluster, tmp_path, *flags) as proxy:
            await wakes_and_sleeps(cluster, proxy)


def needed() -> list[Any]:
    """Every right that it has without what is optional."""
    built = render({"rbac": {"optional": False}})
    return [
        pytest.param((verb, resource), id=f"{verb} {resource}")
        for _, resource, _, verb in sorted(granted(built, "ai-apps"))
    ]


@needs_helm
@pytest.mark.slow
@pytest.mark.parametrize("right", needed() if HELM is not None else [])
async def test_without_one_right_it_is_blind_or_names_the_right(
    right: tuple[str, str], cluster: Cluster, tmp_path: Path
) -> None:
    built = charted(cluster, {**QUICK, "rbac": {"optional": False}, "wakeTimeout": "8s"})
    verb, resource = right
    await cluster.create_deployment()
    async with installed(cluster, built, without=right):
        less_one = {one for one in granted(built, cluster.namespace) if (one[3], one[1]) != right}
        await until_held(cluster, tmp_path, less_one)
        async with in_a_pod(cluster, tmp_path, *flags_of(built, cluster)) as proxy, sight_of(cluster, proxy) as sees:
            with contextlib.suppress(AssertionError, TimeoutError):
                async with asyncio.timeout(15):
                    await wakes_and_sleeps(cluster, proxy)
            said = " ".join(str(line) for line in proxy.log) + (await ask(proxy.url)).body.decode()
            await asyncio.sleep(1)
    said = said.replace('\\"', '"')
    named = f'cannot {verb} resource "{resource}"' in said or f'the right to "{verb}" "{resource}"' in said
    assert named or 0 in sees


@contextlib.asynccontextmanager
async def sight_of(cluster: Cluster, proxy: Serving) -> AsyncIterator[set[float]]:
    """What vllm_chill_backend_up has been, from when the proxy has looked for the first time."""
    seen: set[float] = set()

    async def look() -> None:
        await asyncio.sleep(1)
        while True:
            seen.add(await metric(proxy, f'vllm_chill_backend_up{{target="{cluster.namespace}/vllm"}}'))
            await asyncio.sleep(0.02)

    looking = asyncio.create_task(look())
    try:
        yield seen
    finally:
        looking.cancel()
        await asyncio.wait([looking])


@needs_helm
async def test_with_models_it_serves_one_with_the_rights_of_that_switch(
    cluster: Cluster, models: Models, tmp_path: Path
) -> None:
    built = charted(cluster, {**QUICK, "models": ON})
    name = models.name("charted")
    async with installed(cluster, built):
        await until_held(cluster, tmp_path, granted(built, cluster.namespace))
        async with in_a_pod(cluster, tmp_path, *flags_of(built, cluster)) as proxy:
            await models.create(model(name))
            await models.until_phase(name, "Asleep")
            body = {**question(), "model": name}
            async with caller() as session, session.post(proxy.url + CHAT, json=body) as response:
                assert response.status == 200
            await models.until_phase(name, "Asleep")
            assert not [line for line in proxy.log if "deploy/models/rbac.yaml" in line["event"]]


EVERYTHING: Mapping[str, Any] = {
    "replicaCount": 2, "models": ON, "policies": ON, "networkPolicy": ON, "ingress": ON, "grafanaDashboard": ON,
    "autoscaler": {**ON, "direct": True}, "adminAuth": "kubernetes", "adminPort": 9090, "serviceMonitor": ON,
    "apiKeys": {"existingSecret": "keys"}, "tls": {"existingSecret": "certificate"},
}  # fmt: skip


@needs_helm
@pytest.mark.parametrize("values", [{}, EVERYTHING, {"variants": ON}], ids=["as it is", "everything", "variants"])
async def test_the_api_server_takes_every_object_of_the_chart_and_every_field(
    values: Mapping[str, Any], cluster: Cluster
) -> None:
    items = [item for item in charted(cluster, values).items if item["kind"] not in _UNKNOWN]
    assert len(items) >= 5
    for item in items:
        item = {**item, "apiVersion": await known_as(item["apiVersion"], cluster)}
        try:
            kept = await cluster.api.call("POST", path_of(item), query={"dryRun": "All"}, body=item)
        except ApiError as error:
            raise AssertionError(f"{item['kind']} {item['metadata']['name']}: {error.message}") from error
        assert dropped(item, kept) == [], item["kind"]

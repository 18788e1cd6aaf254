"""The rights in deploy/models suffice, and each is needed: without one the proxy names it, and does what it can."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.account import NAME, create_account, mount
from tests.cluster.cluster import Cluster
from tests.cluster.models import Following, Models, following, model
from vllm_chill.adapters.kubernetes.client import ApiClient, Json, connect
from vllm_chill.adapters.kubernetes.credentials import Places
from vllm_chill.adapters.kubernetes.rights import Right, missing_rights, rights_of_models
from vllm_chill.errors import TargetUnknown, WakeFailed

RBAC = Path(__file__).parents[2] / "deploy" / "models" / "rbac.yaml"
ROLES = [item for item in yaml.safe_load_all(RBAC.read_text()) if "rules" in item]
_RIGHTS = "/apis/rbac.authorization.k8s.io/v1"


@asynccontextmanager
async def granted(cluster: Cluster, folder: Path, *, without: Right | None = None) -> AsyncIterator[ApiClient]:
    """A client with the credentials of a pod of the proxy's ServiceAccount, which has these rights but for one."""
    await create_account(cluster)
    made = []
    subject = {"kind": "ServiceAccount", "name": NAME, "namespace": cluster.namespace}
    for role in ROLES:
        # Names of their own, as what is cluster-wide is shared with other tests.
        name = f"{role['metadata']['name']}-{cluster.namespace}"
        of = "" if role["kind"] == "ClusterRole" else f"/namespaces/{cluster.namespace}"
        kind = role["kind"]
        item = {**less(role, without), "metadata": {"name": name}}
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}
        binding = {"metadata": {"name": name}, "roleRef": reference, "subjects": [subject]}
        await cluster.api.call("POST", f"{_RIGHTS}{of}/{kind.lower()}s", body=item)
        await cluster.api.call("POST", f"{_RIGHTS}{of}/{kind.lower()}bindings", body=binding)
        made += [f"{_RIGHTS}{of}/{kind.lower()}bindings/{name}", f"{_RIGHTS}{of}/{kind.lower()}s/{name}"]
    environ = await mount(cluster, folder)
    try:
        async with connect(places=Places(environ, folder, folder / "no-kubeconfig")) as api:
            yield api
    finally:
        for path in made:
            await cluster.delete(path)


def less(role: Json, right: Right | None) -> Json:
    role = copy.deepcopy(role)
    for rule in role["rules"]:
        is_there = right is not None and (right.namespace is None) == (role["kind"] == "ClusterRole")
        if is_there and right is not None and right.resource in rule["resources"] and right.verb in rule["verbs"]:
            rule["verbs"].remove(right.verb)
    role["rules"] = [rule for rule in role["rules"] if rule["verbs"]]
    return role


async def until_missing(api: ApiClient, namespace: str, count: int) -> tuple[str, ...]:
    """What is missing, once the API server honours the roles."""
    while len(missing := await missing_rights(api, rights_of_models(namespace))) != count:
        pass
    return missing


async def test_the_rights_suffice_for_the_whole_life_of_a_model(
    cluster: Cluster, models: Models, tmp_path: Path
) -> None:
    name = models.name("whole")
    async with granted(cluster, tmp_path) as api:
        assert await until_missing(api, cluster.namespace, 0) == ()
        async with following(cluster, api, idle_seconds=1) as follows:
            await models.create(model(name))
            with await follows.lease(name):
                await models.until_phase(name, "Ready")
                await models.change(name, {"spec": {"maxModelLen": 1024}})
                await models.until_condition(name, "UpToDate", "False", "WaitsForIdle")
            await models.until_condition(name, "UpToDate", "True", "Applied")
            await models.until_phase(name, "Asleep")
            assert {reason for reason, _ in await models.events(name)} >= {"Created", "WaitsForIdle"}
            await models.delete(name)
            await models.until(name, lambda item: item is None)
            await cluster.until("/apis/apps/v1", "deployments", lambda items: not items)
            assert follows.losses == []


def rights() -> list[Any]:
    return [
        pytest.param(right, id=f"{right.verb} {right.resource}{'' if right.namespace else ' cluster-wide'}")
        for right in rights_of_models("any")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("right", rights())
async def test_without_one_right_it_is_named_and_missed_and_the_rest_works(
    right: Right, cluster: Cluster, models: Models, tmp_path: Path
) -> None:
    name = models.name("lacking")
    async with granted(cluster, tmp_path, without=right) as api:
        [complaint] = await until_missing(api, cluster.namespace, 1)
        assert f'the right to "{right.verb}" "{right.resource}"' in complaint
        await models.create(model(name))
        async with following(cluster, api, idle_seconds=1) as follows:
            served = await is_served(models, follows, name)
        if right.resource == "models" and right.verb != "patch":
            assert f'cannot {right.verb} resource "models"' in follows.losses[0]
        if right.verb != "watch":  # what is not told of changes is seen once, and again from time to time
            assert served == ((right.resource, right.verb) not in NEEDED)


NEEDED = {
    ("models", "list"),
    ("deployments", "list"),
    ("deployments", "get"),
    ("deployments", "create"),
    ("deployments", "patch"),
    ("deployments/scale", "patch"),
    ("pods", "list"),
}


async def is_served(models: Models, follows: Following, name: str) -> bool:
    """Whether a model is woken within a time in which it always is with all rights."""
    try:
        async with asyncio.timeout(12):
            (await follows.lease(name)).release()
    except (TimeoutError, WakeFailed, TargetUnknown):
        return False
    return True

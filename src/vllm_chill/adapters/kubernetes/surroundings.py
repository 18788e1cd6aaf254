"""What `vllm-chill doctor` looks at in a cluster, read once.

The rule: nothing is written and nothing is woken; of Secrets only the metadata is asked for. What may not be read is
told as that, with the right that it needs, and everything else goes on.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Sequence
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import aiohttp

from vllm_chill.adapters.authorities import trusting
from vllm_chill.adapters.engine_access import EngineAccess
from vllm_chill.adapters.kubernetes.client import JSON, UNREADABLE, ApiClient, ApiError, Json, Unreachable, items_of
from vllm_chill.adapters.kubernetes.rights import Right, rights_of_models, rights_of_peers, rights_of_policies
from vllm_chill.adapters.kubernetes.start_history import ANNOTATION
from vllm_chill.api.kinds import MODEL, POLICY, VARIANT
from vllm_chill.core.doctor.finding import Objects, Unseen
from vllm_chill.core.doctor.picture import Asked, EngineAnswer, Picture, Rights, Server
from vllm_chill.core.doctor.pod_template import pod_labels, pod_spec, references
from vllm_chill.core.doctor.rights import Need, needs_of_target
from vllm_chill.core.engine_port import engine_port
from vllm_chill.core.objects import annotations_of, metadata

_REVIEWS = "/apis/authorization.k8s.io/v1"
_METADATA = f"{JSON};as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_AT_A_TIME = 6
_ENGINE_SECONDS = 3.0
_PAGE_BYTES = 1 << 20


async def server_of(api: ApiClient) -> Server:
    """The API server as it answers. Raises ApiError or Unreachable."""
    async with api.stream("/version", {}) as response:
        try:
            found = json.loads(await response.read())
        except (aiohttp.ClientError, OSError, *UNREADABLE) as error:
            raise Unreachable(f"{api.server} answered with something that is no version of Kubernetes") from error
        said = response.headers.get("Date", "")
    version = str(found.get("gitVersion") or "") if isinstance(found, dict) else ""
    return Server(api.server, version, _ahead(said))


def _ahead(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except (TypeError, ValueError):
        return None


class Surroundings:
    """What is around one proxy. Each reading is one call, or one for each object that is named."""

    def __init__(self, api: ApiClient, namespace: str) -> None:
        self._api = api
        self._namespace = namespace
        self._turns = asyncio.Semaphore(_AT_A_TIME)

    async def deployments(self) -> Objects:
        """All Deployments of the namespace."""
        return await self._list("apps/v1", "deployments")

    async def picture(
        self, asked: Asked, server: Server, deployments: Objects, account: str | None, access: EngineAccess
    ) -> Picture:
        """Everything that the checks are given. `account` is the ServiceAccount whose rights are asked for, with its
        namespace (NAMESPACE/NAME); None for those of whoever asks.
        """
        target = None if asked.of_models else await self._target(asked, deployments)
        spec = pod_spec(target) if isinstance(target, dict) else {}
        wanted = references(spec)
        kinds = (
            ("v1", "services"),
            ("networking.k8s.io/v1", "ingresses"),
            ("v1", "persistentvolumeclaims"),
            ("v1", "resourcequotas"),
            ("autoscaling/v1", "horizontalpodautoscalers"),
            ("keda.sh/v1alpha1", "scaledobjects"),
            (VARIANT.api_version, VARIANT.plural),
            (POLICY.api_version, POLICY.plural),
            ("networking.k8s.io/v1", "networkpolicies"),
        )
        # A server refuses what may not be read before it tells that there is no such kind.
        groups = await self._groups()
        lists = await asyncio.gather(
            *(self._list(version, plural) if _is_known(version, groups) else _none() for version, plural in kinds)
        )
        services, ingresses, claims, quotas, hpas, scaled, variants, policies, networks = lists
        names = ("configmaps", wanted.config_maps), ("secrets", (*wanted.secrets, *wanted.pull_secrets))
        maps, secrets = [await self._named(plural, which) for plural, which in names]
        return Picture(
            server=server,
            target=target,
            history=annotations_of(target).get(ANNOTATION) if isinstance(target, dict) else None,
            rights=await self._rights(asked, account),
            elsewhere=await self._elsewhere(asked) if target is None and not asked.of_models else (),
            deployments=deployments,
            services=services,
            ingresses=ingresses,
            nodes=await self._list("v1", "nodes", everywhere=True),
            storage_classes=await self._list("storage.k8s.io/v1", "storageclasses", everywhere=True),
            claims=claims,
            quotas=quotas,
            horizontal_autoscalers=hpas,
            scaled_objects=scaled,
            variants=variants,
            policies=policies,
            budgets=await self._budgets(),
            network_policies=networks,
            config_maps=maps,
            secrets=secrets,
            accounts=await self._named("serviceaccounts", [wanted.account] if wanted.account else []),
            models=await self._models() if asked.of_models else (),
            engines=await self._engines(asked, target, access) if isinstance(target, dict) else (),
        )

    async def _target(self, asked: Asked, deployments: Objects) -> Json | Unseen | None:
        if not isinstance(deployments, Unseen):
            return next((one for one in deployments if metadata(one).get("name") == asked.deployment), None)
        # As the proxy itself sees it, whose right is to this one alone.
        found = await self._list("apps/v1", "deployments", {"fieldSelector": f"metadata.name={asked.deployment}"})
        return found if isinstance(found, Unseen) else next(iter(found), None)

    async def _elsewhere(self, asked: Asked) -> tuple[str, ...]:
        query = {"fieldSelector": f"metadata.name={asked.deployment}"}
        found = await self._list("apps/v1", "deployments", query, everywhere=True)
        return () if isinstance(found, Unseen) else tuple(str(metadata(one)["namespace"]) for one in found)

    async def _groups(self) -> frozenset[str] | None:
        """The groups of kinds that the server knows; None if it does not say."""
        found = await self._read("/apis", "read /apis")
        if not isinstance(found, dict):
            return None
        return frozenset(str(group.get("name")) for group in found.get("groups") or [])

    async def _budgets(self) -> Objects:
        path = f"/apis/policy/v1/namespaces/{quote(self._namespace)}/poddisruptionbudgets"
        found = await self._read(path, "list poddisruptionbudgets")
        if found is None:  # before Kubernetes 1.21
            return await self._list("policy/v1beta1", "poddisruptionbudgets")
        return found if isinstance(found, Unseen) else tuple(items_of(found))

    async def _models(self) -> Objects | None:
        found = await self._read(f"/apis/{MODEL.api_version}/{MODEL.plural}", f"list {MODEL.plural}")
        return found if found is None or isinstance(found, Unseen) else tuple(items_of(found))

    async def _list(
        self, version: str, plural: str, query: dict[str, str] | None = None, *, everywhere: bool = False
    ) -> Objects:
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        where = "" if everywhere else f"/namespaces/{quote(self._namespace)}"
        found = await self._read(f"{root}{where}/{plural}", f"list {plural}", query, everywhere=everywhere)
        if found is None:
            return ()
        return found if isinstance(found, Unseen) else tuple(items_of(found))

    async def _named(self, plural: str, names: Iterable[str]) -> dict[str, Json | Unseen | None]:
        root = f"/api/v1/namespaces/{quote(self._namespace)}/{plural}"
        accept = _METADATA if plural == "secrets" else JSON
        return {name: await self._read(f"{root}/{quote(name)}", f"get {plural}", accept=accept) for name in names}

    async def _read(
        self,
        path: str,
        right: str,
        query: dict[str, str] | None = None,
        *,
        everywhere: bool = False,
        accept: str = JSON,
    ) -> Json | Unseen | None:
        """What is at a path; None if it is not there, or its kind is not known."""
        try:
            async with self._turns:
                return await self._api.call("GET", path, query=query, accept=accept)
        except ApiError as error:
            if error.status == 404:
                return None
            if error.status == 403:
                return Unseen(f"needs the right to {right}{' cluster-wide' if everywhere else ''}")
            return Unseen(f"the API server answers {error.status}: {error.message.rstrip('.')}")
        except Unreachable as error:
            return Unseen(str(error))

    async def _rights(self, asked: Asked, account: str | None) -> Rights | Unseen:
        try:
            try:
                return await self._reviewed(asked, account)
            except ApiError as error:
                if error.status != 403 or account is None:
                    raise
                # Who may not ask of others, such as the proxy itself, asks of itself.
                return await self._reviewed(asked, None)
        except ApiError as error:
            return Unseen(f"the API server does not say which rights are granted: {error.message.rstrip('.')}")
        except Unreachable as error:
            return Unseen(str(error))

    async def _reviewed(self, asked: Asked, account: str | None) -> Rights:
        needs = _needs(asked)
        missing = await self._missing(needs, account)
        first, *more = _optional(rights_of_policies(asked.namespace))
        # Whoever may not see policies has none, and misses nothing.
        if not await self._missing([first], account):
            needs = [*needs, *(need for need in more if need not in needs)]
            missing |= await self._missing(more, account)
        return Rights("whoever asks" if account is None else f"ServiceAccount {account}", missing, tuple(needs))

    async def _missing(self, needs: Sequence[Need], account: str | None) -> frozenset[Need]:
        granted = await asyncio.gather(*(self._is_granted(need, account) for need in needs))
        return frozenset(need for need, is_granted in zip(needs, granted, strict=True) if not is_granted)

    async def _is_granted(self, need: Need, account: str | None) -> bool:
        resource, _, part = need.resource.partition("/")
        attributes = {"verb": need.verb, "group": need.group, "resource": resource, "subresource": part}
        attributes |= {key: value for key, value in (("namespace", need.namespace), ("name", need.name)) if value}
        spec: Json = {"resourceAttributes": attributes}
        kind = "SelfSubjectAccessReview"
        if account is not None:
            kind, (namespace, _, name) = "SubjectAccessReview", account.partition("/")
            groups = ("authenticated", "serviceaccounts", f"serviceaccounts:{namespace}")
            spec |= {"user": f"system:serviceaccount:{namespace}:{name}", "groups": [f"system:{one}" for one in groups]}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec}
        async with self._turns:
            answer = await self._api.call("POST", f"{_REVIEWS}/{kind.lower()}s", body=review)
        return bool((answer.get("status") or {}).get("allowed"))

    async def _engines(self, asked: Asked, target: Json, access: EngineAccess) -> tuple[EngineAnswer, ...] | Unseen:
        labels = ((target.get("spec") or {}).get("selector") or {}).get("matchLabels") or pod_labels(target)
        query = {"labelSelector": ",".join(f"{key}={value}" for key, value in labels.items())}
        pods = await self._list("v1", "pods", query)
        if isinstance(pods, Unseen):
            return pods
        async with aiohttp.ClientSession() as session:
            asking = (_ask(session, pod, asked, access) for pod in pods if _is_ready(pod))
            return tuple(await asyncio.gather(*asking))


def _is_known(version: str, groups: frozenset[str] | None) -> bool:
    return groups is None or "/" not in version or version.partition("/")[0] in groups


async def _none() -> Objects:
    return ()


def _needs(asked: Asked) -> list[Need]:
    if asked.of_models:
        needs = [_need(right) for right in rights_of_models(asked.namespace)]
        return needs + ([_need(right) for right in rights_of_peers(asked.namespace)] if asked.elects else [])
    scales, elects = not asked.recommends, asked.elects
    return list(needs_of_target(asked.namespace, asked.deployment, scales=scales, elects=elects, lease=asked.lease))


def _need(right: Right, *, optional: bool = False) -> Need:
    return Need(right.verb, right.group, right.resource, right.namespace, right.without, optional=optional)


def _optional(rights: Iterable[Right]) -> list[Need]:
    return [_need(right, optional=True) for right in rights]


def _is_ready(pod: Json) -> bool:
    status = pod.get("status") or {}
    conditions = {one.get("type"): one.get("status") for one in status.get("conditions") or []}
    return conditions.get("Ready") == "True" and bool(status.get("podIP")) and "deletionTimestamp" not in metadata(pod)


async def _ask(session: aiohttp.ClientSession, pod: Json, asked: Asked, access: EngineAccess) -> EngineAnswer:
    name, host = str(metadata(pod)["name"]), str(pod["status"]["podIP"])
    port = engine_port(pod.get("spec") or {}, asked.port)
    url = f"{access.scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    try:
        health, _ = await _get(session, url + asked.health_path, access)
        listing, page = await _get(session, url + "/v1/models", access)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        why = str(error) or f"no answer within {_ENGINE_SECONDS:g} s"
        return EngineAnswer(name, url, trouble=f"this machine does not reach {name} at {url}: {why}")
    return EngineAnswer(name, url, health, listing, _model_names(page))


async def _get(session: aiohttp.ClientSession, url: str, access: EngineAccess) -> tuple[int, bytes]:
    async with session.get(
        url,
        headers=access.own_headers,
        timeout=aiohttp.ClientTimeout(total=_ENGINE_SECONDS),
        allow_redirects=False,
        ssl=access.tls or (trusting() if url.startswith("https:") else True),
        server_hostname=access.server_name,
    ) as response:
        return response.status, await response.content.read(_PAGE_BYTES)


def _model_names(page: bytes) -> tuple[str, ...]:
    try:
        listed: Any = json.loads(page)["data"]
        return tuple(str(one["id"]) for one in listed)
    except UNREADABLE:
        return ()

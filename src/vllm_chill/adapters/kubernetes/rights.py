"""The rights that proxies, models and scaling policies need, and which are missing: asked when the proxy starts.

The rule: a missing right stops nothing here. It is named with what does not work without it, and everything else goes
on; what needs it says so again when it is needed. The manifests grant exactly these, which a test compares.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from vllm_chill.adapters.kubernetes.client import ApiClient, ApiError, Json, Unreachable
from vllm_chill.api.kinds import MODEL, POLICY

_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_SECONDS = 10.0
_AT_A_TIME = 4  # each connection is a handshake for the server, and memory here
_OF_PEERS = "deploy/rbac.yaml"
_OF_MODELS = "deploy/models/rbac.yaml"
_OF_POLICIES = "deploy/policies/rbac.yaml"


@dataclass(frozen=True, slots=True)
class Right:
    """A verb on a resource (`deployments/scale` names a part of one), in a namespace or (None) cluster-wide; `without`
    says what does not work without it, as a clause, and `manifest` what grants it.
    """

    verb: str
    group: str
    resource: str
    namespace: str | None
    without: str
    manifest: str = _OF_MODELS

    @property
    def complaint(self) -> str:
        """The sentence for its lack."""
        group = f" of {self.group}" if self.group else ""
        where = "cluster-wide" if self.namespace is None else f"in the namespace {self.namespace}"
        return (
            f'the right to "{self.verb}" "{self.resource}"{group} {where} is missing: {self.without}; '
            f"{self.manifest} has it"
        )


def rights_of_peers(namespace: str) -> tuple[Right, ...]:
    """All rights that proxies need to serve the same targets, whose Leases are in this namespace."""
    untold = "it puts nothing to sleep, as it cannot tell other proxies who is served here"
    unseen = "it puts nothing to sleep, as it does not know who is served by other proxies"
    left = "what a proxy has told stays when it ends, so that nothing is put to sleep until that has run out"
    asked = [(verb, untold) for verb in ("get", "create", "update")]
    asked += [(verb, unseen) for verb in ("list", "watch")]
    asked += [("delete", left)]
    return tuple(Right(verb, "coordination.k8s.io", "leases", namespace, without, _OF_PEERS) for verb, without in asked)


def rights_of_models(namespace: str) -> tuple[Right, ...]:
    """All rights that are needed to serve models whose workloads are in this namespace."""
    unseen = "no model is served"
    unmade = "what runs a model cannot be made, or put back as its model has it"
    own = [(verb, "deployments", unseen) for verb in ("list", "watch")]
    own += [(verb, "deployments", unmade) for verb in ("get", "create", "patch")]
    own += [("delete", "deployments", "what ran a model stays when the model is deleted, and so does the model")]
    own += [("patch", "deployments/scale", "no model is woken or put to sleep")]
    uncared = "a model's Service is not made, or put back as it was"
    services = [(verb, "services", uncared) for verb in ("list", "watch", "get", "create", "patch")]
    services += [("delete", "services", "a model's Service stays when the model is deleted, and so does the model")]
    pods = [(verb, "pods", "whether a model is ready is not known") for verb in ("list", "watch")]
    events = [(verb, "events", "what was done is not told in events") for verb in ("get", "create", "patch")]
    return (
        *(Right(verb, MODEL.group, MODEL.plural, None, unseen) for verb in ("list", "watch")),
        Right("patch", MODEL.group, MODEL.plural, None, "the end of a model does not wait for its requests"),
        Right("patch", MODEL.group, f"{MODEL.plural}/status", None, "a model's status is not told"),
        *(Right(verb, "", resource, None, without) for verb, resource, without in events),
        *(Right(verb, "apps", resource, namespace, without) for verb, resource, without in own),
        *(Right(verb, "", resource, namespace, without) for verb, resource, without in (*services, *pods)),
    )


def rights_of_policies(namespace: str) -> tuple[Right, ...]:
    """All rights that are needed to scale what is in this namespace by policies, beyond what deploy/rbac.yaml grants.

    What a policy for another kind needs besides is missed when it is needed.
    """
    annotated = "Deployments that policies name, or that ask for one by annotations, are not found"
    rivals = "that another autoscaler scales a target too is noticed late, or not at all"
    follows = "StatefulSets that policies name are not followed"
    seen = (
        (POLICY.group, POLICY.plural, "no scaling policy is seen"),
        ("apps", "deployments", annotated),
        ("apps", "statefulsets", follows),
        ("autoscaling", "horizontalpodautoscalers", rivals),
        ("keda.sh", "scaledobjects", rivals),
    )
    written = (
        (POLICY.group, f"{POLICY.plural}/status", "a scaling policy's status is not told"),
        ("apps", "deployments/scale", "Deployments are not scaled by policies"),
        ("apps", "statefulsets/scale", "StatefulSets are not scaled"),
    )
    silent = "what was done by a scaling policy is not told in events"
    asked = [(verb, group, resource, without) for group, resource, without in seen for verb in ("list", "watch")]
    asked += [("patch", group, resource, without) for group, resource, without in written]
    asked += [(verb, "", "events", silent) for verb in ("get", "create", "patch")]
    return tuple(
        Right(verb, group, resource, namespace, without, _OF_POLICIES) for verb, group, resource, without in asked
    )


async def missing_rights(api: ApiClient, rights: tuple[Right, ...], *, seconds: float = _SECONDS) -> tuple[str, ...]:
    """A sentence for each right that is missing, or one for why that cannot be told. Some are asked for at a time."""
    turns = asyncio.Semaphore(_AT_A_TIME)

    async def is_granted(right: Right) -> bool:
        async with turns:
            return await _is_granted(api, right)

    try:
        async with asyncio.timeout(seconds):
            granted = await asyncio.gather(*map(is_granted, rights))
    except TimeoutError:
        return (f"whether all rights are granted is not known: the API server did not say within {seconds:g} s",)
    except ApiError as error:
        return (f"whether all rights are granted is not known: {error.message.rstrip('.')}",)
    except Unreachable as error:
        return (f"whether all rights are granted is not known: {error}",)
    return tuple(right.complaint for right, is_granted in zip(rights, granted, strict=True) if not is_granted)


async def _is_granted(api: ApiClient, right: Right) -> bool:
    resource, _, part = right.resource.partition("/")
    attributes = {"verb": right.verb, "group": right.group, "resource": resource, "subresource": part}
    if right.namespace is not None:
        attributes["namespace"] = right.namespace
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    answer: Json = await api.call("POST", _REVIEWS, body=review)
    return bool(answer["status"]["allowed"])

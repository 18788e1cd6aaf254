"""Kinds that objects name, found on the API server as what can be scaled.

The rule: what was found is not asked for again; what was not is, as it may be installed by then.
"""

from __future__ import annotations

from urllib.parse import quote

from vllm_chill.adapters.kubernetes.client import ApiClient, ApiError, Json, Unreachable
from vllm_chill.core.target import DEPLOYMENTS, STATEFUL_SETS, Resource
from vllm_chill.errors import BackendRefused, BackendUnavailable


class KubernetesKinds:
    """ports.Kinds, by the API server's discovery."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api
        self._known = {(kind.api_version, kind.kind): kind for kind in (DEPLOYMENTS, STATEFUL_SETS)}

    async def find(self, api_version: str, kind: str) -> Resource:
        known = self._known.get((api_version, kind))
        if known is None:
            known = self._known[api_version, kind] = scalable(await self._listed(api_version), api_version, kind)
        return known

    async def _listed(self, api_version: str) -> list[Json]:
        """The resources of a version, and their parts."""
        root = "/apis" if "/" in api_version else "/api"
        try:
            found = await self._api.call("GET", f"{root}/{quote(api_version)}")
        except ApiError as error:
            if error.status == 404:
                return []
            sentence = f"the API server does not tell the kinds of {api_version} ({error.status}): {error.message}"
            raise BackendUnavailable(sentence.rstrip(".")) from error
        except Unreachable as error:
            raise BackendUnavailable(str(error)) from error
        return list(found.get("resources") or [])


def scalable(resources: list[Json], api_version: str, kind: str) -> Resource:
    """The kind among the resources of its version, if it has a scale and is in namespaces. Raises BackendRefused."""
    named = f"{kind} of {api_version}"
    # What has a slash is a part of another resource, and a part may be of the same kind as the whole.
    found = next((each for each in resources if each.get("kind") == kind and "/" not in each["name"]), None)
    if found is None:
        raise BackendRefused(f"the API server does not know the kind {named}: correct its name, or install it")
    if not found.get("namespaced"):
        raise BackendRefused(f"the kind {named} is cluster-wide: only what is in a namespace can be scaled")
    if not any(each["name"] == f"{found['name']}/scale" for each in resources):
        raise BackendRefused(f"the kind {named} cannot be scaled: it has no scale subresource")
    group, _, version = api_version.rpartition("/")
    return Resource(group, version, found["name"], kind)

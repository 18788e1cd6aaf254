"""Calls for the Leases of a namespace, and what their refusals mean to whoever wanted something of them.

The rule: a write names the version that it rests on, so that one that the server carries out late, when nobody waits
for it any more, does not take back a newer one. And an answer is believed only if it is the Lease that was asked for,
as it was written: a proxy that took anything else for one would lead beside another.
"""

from __future__ import annotations

from urllib.parse import quote

from vllm_chill.adapters.kubernetes.client import (
    ApiClient,
    ApiError,
    Json,
    Query,
    Unreachable,
    is_object,
    not_logged_in,
)
from vllm_chill.errors import BackendConflict, BackendError, BackendRefused, BackendUnavailable

VERSION = "coordination.k8s.io/v1"
_METHODS = {"get": "GET", "list": "GET", "create": "POST", "update": "PUT", "delete": "DELETE"}


def path_of(namespace: str) -> str:
    """The path of a namespace's Leases."""
    return f"/apis/{VERSION}/namespaces/{quote(namespace)}/leases"


class LeaseCalls:
    """Each call has the client's deadline, and raises BackendUnavailable (try again later), BackendConflict among them,
    or BackendRefused (no use).
    """

    def __init__(self, api: ApiClient, namespace: str, rights: tuple[str, ...]) -> None:
        """`rights` are the verbs that whoever calls must be granted, for the sentence that asks for them."""
        self._api = api
        self._namespace = namespace
        self._rights = rights

    async def get(self, name: str) -> Json | None:
        """The Lease as it is at this moment; None if there is none."""
        try:
            return self._lease(name, await self._call("get", name))
        except BackendConflict:
            return None

    async def list(self, query: Query) -> Json:
        """A page of them."""
        return await self._call("list", query=query)

    async def create(self, name: str, item: Json) -> Json:
        """The Lease of this name, which there is not yet."""
        metadata = {**(item.get("metadata") or {}), "name": name, "namespace": self._namespace}
        whole = {"apiVersion": VERSION, "kind": "Lease", **item, "metadata": metadata}
        return self._lease(name, await self._call("create", name, body=whole), holder=_holder(whole))

    async def update(self, name: str, item: Json) -> Json:
        """The Lease as it is after it was one of this version and uid."""
        return self._lease(name, await self._call("update", name, body=item), holder=_holder(item))

    async def delete(self, name: str, version: str) -> None:
        """Delete it if it still is of this version."""
        terms = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"resourceVersion": version}}
        await self._call("delete", name, body=terms)

    async def _call(self, verb: str, name: str = "", *, query: Query | None = None, body: Json | None = None) -> Json:
        path = path_of(self._namespace) + (f"/{quote(name)}" if name and verb != "create" else "")
        try:
            return await self._api.call(_METHODS[verb], path, query=query, body=body)
        except ApiError as error:
            raise self._refusal(verb, name, error) from error
        except Unreachable as error:
            raise BackendUnavailable(str(error)) from error

    def _lease(self, name: str, answer: Json, *, holder: str | None = None) -> Json:
        """The answer, if it is this Lease; after a write, if it has the holder that was written."""
        if not is_object(answer, name) or holder not in {None, _holder(answer)}:
            raise BackendUnavailable(
                f"the API server answered with something that is not the Lease {self._namespace}/{name}: is it a "
                "Kubernetes API server?"
            )
        return answer

    def _refusal(self, verb: str, name: str, error: ApiError) -> BackendError:
        said = error.message.rstrip(".")
        what = f"the Lease {self._namespace}/{name}" if name else f"the Leases in {self._namespace}"
        match error.status:
            case 401:
                return not_logged_in(error)
            case 404 if verb == "create":
                return BackendRefused(f"{what} cannot be made: {said}; create the namespace, or name another")
            case 404 if name:
                return BackendConflict(f"{what} is gone")
            case 409:
                return BackendConflict(f"{what} is another by now: {said}")
            case 403:
                return BackendRefused(
                    f"{what} cannot be used: {said}; grant {self._needed()} on leases of coordination.k8s.io in the "
                    f"namespace {self._namespace}"
                )
            case 408 | 410 | 429:
                return BackendUnavailable(f"the API server does not {verb} {what} just now: {said}")
            case status if status >= 500:
                return BackendUnavailable(f"the API server does not {verb} {what} ({status}): {said}")
            case status:
                return BackendRefused(f"the API server does not {verb} {what} ({status}): {said}")

    def _needed(self) -> str:
        *first, last = (f'"{right}"' for right in self._rights)
        return f"{', '.join(first)} and {last}"


def _holder(item: Json) -> str:
    return str((item.get("spec") or {}).get("holderIdentity") or "")

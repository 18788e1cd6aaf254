"""A Lease of coordination.k8s.io on an API server: what candidates for leadership read and write.

The rule: every write is of the Lease as it was read, its resource version with it, so that of two who write only one
does. What is in it besides the record, such as somebody's labels, is written back as it was.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from vllm_chill.adapters.kubernetes.client import ApiClient, ApiError, Json, Unreachable, not_logged_in
from vllm_chill.core.election import Record, StoredLease
from vllm_chill.errors import BackendConflict, BackendError, BackendRefused, BackendUnavailable

_VERSION = "coordination.k8s.io/v1"
_VERBS = {"GET": "get", "POST": "create", "PUT": "update"}


class KubernetesLease:
    """ports.LeaseStore for the Lease of this name in this namespace. Each call has the client's deadline."""

    def __init__(self, api: ApiClient, namespace: str, name: str) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._leases = f"/apis/{_VERSION}/namespaces/{quote(namespace)}/leases"
        self._path = f"{self._leases}/{quote(name)}"

    async def get(self) -> StoredLease | None:
        try:
            return _stored(await self._api.call("GET", self._path))
        except ApiError as error:
            if error.status == 404:
                return None
            raise self._refusal("GET", error) from error
        except Unreachable as error:
            raise BackendUnavailable(str(error)) from error

    async def create(self, record: Record) -> StoredLease:
        metadata = {"name": self._name, "namespace": self._namespace}
        item: Json = {"apiVersion": _VERSION, "kind": "Lease", "metadata": metadata}
        return await self._write("POST", self._leases, item, record)

    async def update(self, stored: StoredLease, record: Record) -> StoredLease:
        return await self._write("PUT", self._path, stored.item, record)

    async def _write(self, method: str, path: str, item: Json, record: Record) -> StoredLease:
        try:
            return _stored(await self._api.call(method, path, body={**item, "spec": _spec(item, record)}))
        except ApiError as error:
            raise self._refusal(method, error) from error
        except Unreachable as error:
            raise BackendUnavailable(str(error)) from error

    def _refusal(self, method: str, error: ApiError) -> BackendError:
        verb, said = _VERBS[method], error.message.rstrip(".")
        what = f"the Lease {self._namespace}/{self._name}"
        match error.status:
            case 404 if method == "PUT":
                return BackendConflict(f"{what} is gone")
            case 404:
                return BackendRefused(f"{what} cannot be made: {said}; create the namespace, or name another")
            case 409:
                return BackendConflict(f"{what} is another by now: {said}")
            case 401:
                return not_logged_in(error)
            case 403:
                return BackendRefused(
                    f'{what} cannot be used: {said}; grant "get", "create" and "update" on leases of '
                    f"coordination.k8s.io in the namespace {self._namespace}"
                )
            case 408 | 429:
                return BackendUnavailable(f"the API server does not {verb} {what} just now: {said}")
            case status if status >= 500:
                return BackendUnavailable(f"the API server does not {verb} {what} ({status}): {said}")
            case status:
                return BackendRefused(f"the API server does not {verb} {what} ({status}): {said}")


def _stored(item: Json) -> StoredLease:
    spec: dict[str, Any] = item.get("spec") or {}
    record = Record(
        holder=spec.get("holderIdentity") or "",
        lease_seconds=spec.get("leaseDurationSeconds") or 0,
        acquired=spec.get("acquireTime") or "",
        renewed=spec.get("renewTime") or "",
        transitions=spec.get("leaseTransitions") or 0,
    )
    return StoredLease(record, item)


def _spec(item: Json, record: Record) -> Json:
    ours: dict[str, Any] = {
        "holderIdentity": record.holder,
        "leaseDurationSeconds": record.lease_seconds,
        "acquireTime": record.acquired,
        "renewTime": record.renewed,
        "leaseTransitions": record.transitions,
    }
    # What is empty is left out: a server that is strict takes no empty text for it.
    kept = {name: value for name, value in (item.get("spec") or {}).items() if name not in ours}
    return kept | {name: value for name, value in ours.items() if value != ""}

"""A Lease of coordination.k8s.io on an API server: what candidates for leadership read and write.

The rule: every write is of the Lease as it was read, its resource version with it, so that of two who write only one
does. What is in it besides the record, such as somebody's labels, is written back as it was.
"""

from __future__ import annotations

from typing import Any

from vllm_chill.adapters.kubernetes.client import ApiClient, Json
from vllm_chill.adapters.kubernetes.lease_calls import LeaseCalls
from vllm_chill.core.election import Record, StoredLease


class KubernetesLease:
    """ports.LeaseStore for the Lease of this name in this namespace. Each call has the client's deadline."""

    def __init__(self, api: ApiClient, namespace: str, name: str) -> None:
        self._leases = LeaseCalls(api, namespace, ("get", "create", "update"))
        self._name = name

    async def get(self) -> StoredLease | None:
        item = await self._leases.get(self._name)
        return None if item is None else _stored(item)

    async def create(self, record: Record) -> StoredLease:
        return _stored(await self._leases.create(self._name, {"spec": _spec({}, record)}))

    async def update(self, stored: StoredLease, record: Record) -> StoredLease:
        item = stored.item
        return _stored(await self._leases.update(self._name, {**item, "spec": _spec(item, record)}))


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

"""Reports of proxies as Leases of coordination.k8s.io: one for each proxy, which nobody else writes.

The rule: each write rests on the version that the one before it left. A write whose answer never came may be carried
out at any time; resting on an old version it then does nothing, so that no report is ever followed by an older one.

That is why a Lease is replaced, and not applied or patched, and it takes no other right than the leader's Lease does.
It names no owner: whoever deletes a pod by force may leave a proxy behind that serves, and its report must stay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from typing import NamedTuple

from vllm_chill.adapters.kubernetes.client import UNREADABLE, ApiClient, Json, Query
from vllm_chill.adapters.kubernetes.lease_calls import LeaseCalls, path_of
from vllm_chill.adapters.kubernetes.watch import ListWatch, Outage, Pace, Snapshot
from vllm_chill.api.kinds import ANNOTATIONS
from vllm_chill.core.objects import digest
from vllm_chill.core.peers import Demands, Report, from_text, to_text
from vllm_chill.core.phrases import micro_timestamp
from vllm_chill.errors import BackendConflict, BackendUnavailable
from vllm_chill.ports import PeersObserver

RIGHTS = ("get", "list", "watch", "create", "update", "delete")
"""The verbs on Leases that a proxy needs."""
LABEL = f"{ANNOTATIONS}peers-of"
"""The label by which the proxies of a group find one another's Leases: it says what their leader's Lease is called."""
ANNOTATION = f"{ANNOTATIONS}demands"
"""Where a Lease has what its proxy reports."""
_PAGE = 100
_WRITES = 3
"""How often in a row a write is tried that finds another version than it rests on."""
_LABEL_CHARACTERS = 63  # the most that a label's value may have


class _Reports(NamedTuple):
    """All reports, by identity, as of a version."""

    version: int
    reports: Mapping[str, Report]


class KubernetesPeers:
    """ports.PeerReports by Leases called after `lease_name`, that of the leader. Each call has the client's deadline.

    `gone_seconds`: after how long without a new report a proxy is gone; a Lease says so to people. `pace` is that of
    the watch.
    """

    def __init__(
        self,
        api: ApiClient,
        namespace: str,
        lease_name: str,
        *,
        gone_seconds: float = 30.0,
        pace: Pace | None = None,
    ) -> None:
        self._api = api
        self._path = path_of(namespace)
        self._leases = LeaseCalls(api, namespace, RIGHTS)
        self._lease_name = lease_name
        self._group = lease_name if len(lease_name) <= _LABEL_CHARACTERS else digest(lease_name)
        self._gone_seconds = gone_seconds
        self._pace = pace or Pace()
        self._written: dict[str, Json] = {}
        self._names: Mapping[str, str] = {}
        self._newest: _Reports | None = None

    async def watch(self, observer: PeersObserver) -> None:
        leases = ListWatch(self._api, self._path, self._query, _report, self._pace)
        told: Mapping[str, Report] | str | None = None
        async with aclosing(leases.steps()) as steps:
            async for step in steps:
                before = told
                match step:
                    case Outage(cause):
                        # What follows was listed after all that was read so far.
                        self._newest = None
                        told = cause
                        if told != before:
                            observer.lost(cause)
                    case Snapshot():
                        told = self._not_older(step)
                        if told != before:
                            observer.seen(told)

    async def read(self) -> Mapping[str, Report]:
        found: dict[str, Report] = {}
        query: dict[str, str | int] = {**self._query, "limit": _PAGE}
        version: int | None = None
        while True:
            # Without a version to rest on, a list is what is there at this moment, whichever server answers.
            page = await self._leases.list(query)
            metadata = page.get("metadata") or {}
            version = _number(metadata) if version is None else version
            found |= _reports(page)
            if not metadata.get("continue"):
                break
            query["continue"] = metadata["continue"]
        read = _Reports(version, self._by_identity(found))
        if self._newest is None or self._newest.version <= version:
            self._newest = read
        return dict(read.reports)

    async def write(self, identity: str, demands: Demands) -> None:
        name = self._name_of(identity)
        for left in reversed(range(_WRITES)):
            # Once it is begun it may be done, whether or not that is heard of.
            before = self._written.pop(identity, None) or await self._leases.get(name)
            item = self._item(identity, demands, before or {})
            try:
                written = self._leases.create(name, item) if before is None else self._leases.update(name, item)
                self._written[identity] = await written
            except BackendConflict:
                if not left:
                    raise
            else:
                return

    async def remove(self, report: Report) -> None:
        self._written.pop(report.identity, None)
        name = self._names.get(report.identity) or self._name_of(report.identity)
        try:
            await self._leases.delete(name, report.version)
        except BackendConflict:
            return  # it is another by now, or gone

    @property
    def _query(self) -> Query:
        return {"labelSelector": f"{LABEL}={self._group}"}

    def _name_of(self, identity: str) -> str:
        # Who it is, is the holder, which kubectl shows beside the name.
        return f"{self._lease_name}-{digest(identity)}"

    def _not_older(self, snapshot: Snapshot[Report]) -> Mapping[str, Report]:
        """What a watch has come to, or what was read if that is newer."""
        newest = self._newest
        if newest is not None and snapshot.version < newest.version:
            return newest.reports
        return self._by_identity(snapshot.objects)

    def _by_identity(self, found: Mapping[str, Report]) -> Mapping[str, Report]:
        self._names = {report.identity: name for name, report in found.items()}
        return {report.identity: report for report in found.values()}

    def _item(self, identity: str, demands: Demands, before: Json) -> Json:
        """A Lease that says this, and what else it said before."""
        metadata, spec = before.get("metadata") or {}, before.get("spec") or {}
        now = micro_timestamp(datetime.now(UTC))
        return {
            **before,
            "metadata": {
                **metadata,
                "labels": {**(metadata.get("labels") or {}), LABEL: self._group},
                "annotations": {**(metadata.get("annotations") or {}), ANNOTATION: to_text(demands)},
            },
            "spec": {
                **spec,
                "holderIdentity": identity,
                "leaseDurationSeconds": math.ceil(self._gone_seconds),
                "acquireTime": spec.get("acquireTime") or now,
                "renewTime": now,
            },
        }


def _reports(page: Json) -> dict[str, Report]:
    try:
        return {item["metadata"]["name"]: _report(item) for item in page.get("items") or []}
    except UNREADABLE as error:
        raise BackendUnavailable("the API server sent a list of something that is no Lease") from error


def _report(item: Json) -> Report:
    """What a Lease says. One that nobody holds is known by its name, so that it is not taken for nothing."""
    metadata = item["metadata"]
    identity = (item.get("spec") or {}).get("holderIdentity") or metadata["name"]
    text = (metadata.get("annotations") or {}).get(ANNOTATION) or ""
    return Report(identity, str(metadata.get("resourceVersion") or ""), from_text(text))


def _number(metadata: Json) -> int:
    version = str(metadata.get("resourceVersion"))
    if not version.isdigit():
        raise BackendUnavailable("the API server sent a list without a version: is it a Kubernetes API server?")
    return int(version)

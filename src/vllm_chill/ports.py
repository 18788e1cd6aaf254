"""What the controller needs of the world, as Protocols; `adapters` has an implementation for each world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from vllm_chill.core.access import Access
from vllm_chill.core.catalogue import ModelEntry
from vllm_chill.core.election import Record, StoredLease
from vllm_chill.core.engine_output import Line
from vllm_chill.core.gpu import GpuReading
from vllm_chill.core.objects import Collection, Json
from vllm_chill.core.peers import Demands, Report
from vllm_chill.core.saturation.places import LoadReading, PodPlace
from vllm_chill.core.savings_ledger import KeptText
from vllm_chill.core.target import Endpoint, Observation, Resource, Target, TargetRef


class Observer(Protocol):
    """Whoever wants to know what a backend sees. Both calls return at once and never raise."""

    def observed(self, observation: Observation) -> None:
        """Take what the target is now."""

    def lost(self, cause: str) -> None:
        """Take that the target cannot be seen at present, and why: a sentence without a full stop."""


class ClusterBackend(Protocol):
    """What runs scale targets. `tests/adapters/contract.py` is the contract in full.

    All calls may be cancelled at any await. One `watch` runs for a target at a time.
    """

    async def watch(self, ref: TargetRef, observer: Observer) -> None:
        """Tell the observer what the target is, now and after each change, until cancelled.

        It outlasts any trouble: it reports `lost`, tries again with a back-off, and then `observed` again.
        """

    async def scale(self, ref: TargetRef, replicas: int, *, doomed: Sequence[str] = ()) -> None:
        """Ask for that many replicas; asking for what already is changes nothing.

        `doomed` names the replicas that should be the ones to go when there are to be fewer; a backend that cannot
        choose ignores it. It returns once the observer was told something at least as new as the write; readiness is
        not waited for. Raises BackendUnavailable (try again later) or BackendRefused (no use).
        """

    async def catch_up(self, ref: TargetRef) -> None:
        """Return once the observer was told all that has been written by now, whoever wrote it.

        What is not known to be so is no reason to take a replica away. Raises BackendUnavailable.
        """


class Kinds(Protocol):
    """Where what an object names by apiVersion and kind is found as something that can be scaled."""

    async def find(self, api_version: str, kind: str) -> Resource:
        """The kind. Raises BackendUnavailable (try again later), or BackendRefused: there is none, or it has no scale.

        What is refused now may be found later, once it is installed.
        """


class OutputObserver(Protocol):
    """Whoever follows what engines write. Both calls return at once and never raise."""

    def wrote(self, line: Line) -> None:
        """Take the next line."""

    def lost(self, cause: str) -> None:
        """Take that nothing can be read at present, and why: a sentence without a full stop."""


class EngineOutput(Protocol):
    """What the engine of one target writes. `tests/adapters/output_contract.py` is the contract in full.

    All calls may be cancelled at any await. `lines` is the most of each replica, and `replica` the name of the only one
    that counts. Both read and follow raise ReplicaNotFound, BackendUnavailable (try again later) and BackendRefused (no
    use).
    """

    def recent(self, lines: int) -> Sequence[Line] | None:
        """The last lines, if they are at hand; None if somebody has to be asked for them."""

    async def read(self, lines: int, replica: str | None = None) -> Sequence[Line]:
        """The last lines, each replica's together; those of the last run that ended too."""

    async def follow(self, lines: int, observer: OutputObserver, replica: str | None = None) -> None:
        """Tell the observer the last lines, and each that is written from now on, until cancelled: also those of
        replicas that come later.
        """


class ObjectsObserver(Protocol):
    """Whoever wants to know which objects there are. Both calls return at once and never raise."""

    def seen(self, objects: Mapping[str, Any]) -> None:
        """Take all objects of the collection, or what it keeps of them, by `Collection.key`. They are not to be
        changed.
        """

    def lost(self, cause: str) -> None:
        """Take that they cannot be seen at present, and why: a sentence without a full stop."""


class ObjectStore(Protocol):
    """The objects of an API server, as JSON-able dicts. `tests/adapters/objects_contract.py` is the contract in full.

    All calls may be cancelled at any await. Each but `watch` raises BackendUnavailable (try again later),
    BackendConflict among them, or BackendRefused (no use).
    """

    async def watch(self, collection: Collection, observer: ObjectsObserver) -> None:
        """Tell the observer which objects there are, now and after each change, until cancelled.

        It outlasts any trouble: it reports `lost`, tries again with a back-off, and then `seen` again.
        """

    async def get(self, collection: Collection, name: str) -> Json | None:
        """The object as it is at this moment; None if there is none."""

    async def get_scale(self, collection: Collection, name: str) -> Json | None:
        """An object's scale, as it is at this moment: spec.replicas, status.replicas, and status.selector as text; what
        is 0 or empty may be left out. None if there is no such object, or if its kind has no scale.
        """

    async def apply(self, collection: Collection, item: Json, *, dry_run: bool = False) -> Json:
        """Have the object say what `item` says, and no longer what an earlier `item` said and this one does not; what
        others have added stays. It is created if need be. Returns the object that results.

        With a metadata.resourceVersion it raises BackendConflict if the object is another than that by now. With
        `dry_run` nothing is written, and the object returned is the one that would be.
        """

    async def delete(self, collection: Collection, name: str, uid: str) -> None:
        """Delete the object with this uid; nothing happens if there is none, or another one."""

    async def patch(self, collection: Collection, name: str, change: Json) -> Json | None:
        """Merge a change into an object: null removes, lists are replaced. Returns the object; None if there is none.

        With a metadata.resourceVersion it raises BackendConflict if the object is another than that by now.
        """

    async def patch_status(self, collection: Collection, name: str, status: Json) -> Json | None:
        """Merge into an object's status, as `patch` does."""

    async def record(self, about: Json, reason: str, message: str, *, warning: bool = False) -> None:
        """Say in an Event what happened to an object. The same said again raises a count."""


class LeaseStore(Protocol):
    """One Lease that several processes read and write. `tests/adapters/lease_contract.py` is the contract in full.

    All calls may be cancelled at any await, and one that fails or is cancelled may have written. Each raises
    BackendUnavailable (try again later) or BackendRefused (no use).
    """

    async def get(self) -> StoredLease | None:
        """The Lease as it is at this moment; None if there is none."""

    async def create(self, record: Record) -> StoredLease:
        """Make the Lease. Raises BackendConflict if there is one."""

    async def update(self, stored: StoredLease, record: Record) -> StoredLease:
        """Have the Lease say this; what else is in it stays. Raises BackendConflict if it is another by now."""


class PeersObserver(Protocol):
    """Whoever wants to know what other proxies report. Both calls return at once and never raise."""

    def seen(self, reports: Mapping[str, Report]) -> None:
        """Take all reports that there are, by the identity of their proxy."""

    def lost(self, cause: str) -> None:
        """Take that they cannot be seen at present, and why: a sentence without a full stop."""


class PeerReports(Protocol):
    """What proxies of the same targets report to one another. `tests/adapters/peers_contract.py` is the contract in
    full.

    All calls may be cancelled at any await, and one that fails or is cancelled may have written. Each but `watch`
    raises BackendUnavailable (try again later) or BackendRefused (no use).
    """

    async def watch(self, observer: PeersObserver) -> None:
        """Tell the observer which reports there are, now and after each change, until cancelled.

        It outlasts any trouble: it reports `lost`, tries again with a back-off, and then `seen` again.
        """

    async def read(self) -> Mapping[str, Report]:
        """All reports that there are at this moment, and not a moment before."""

    async def write(self, identity: str, demands: Demands) -> None:
        """Have this proxy's report say this; it is made if need be."""

    async def remove(self, report: Report) -> None:
        """Remove a report, if it still is this version of it."""


class Authorizer(Protocol):
    """Who knows whose a token is, and what they may do."""

    async def may(self, token: str, verb: str, path: str) -> Access:
        """Whether whoever has this token may do this with a path of ours; `verb` is an HTTP method in lower case. It
        may be cancelled, and may answer from memory.

        Raises BackendUnavailable (try again later) or BackendRefused (no use), neither with the token in its message.
        """


class CatalogueObserver(Protocol):
    """Whoever serves models. Both calls return at once and never raise."""

    def catalogued(self, entries: Sequence[ModelEntry]) -> None:
        """Take all models that there are, now and after each change."""

    def lost(self, cause: str) -> None:
        """Take that they cannot be seen at present, and why: a sentence without a full stop."""


class StartHistory(Protocol):
    """Where what was learned of a target's starts outlasts this process: one short text for each target, opaque here.

    Neither call raises: a history that cannot be kept is one that is learned anew, and one log line says why.
    """

    async def load(self, ref: TargetRef) -> str | None:
        """The text that was saved last, or None if none was or it cannot be had."""

    async def save(self, ref: TargetRef, text: str) -> None:
        """Keep this text in place of the one before."""


class SavingsStore(Protocol):
    """Where what was saved outlasts this process: one text, opaque here, that several processes read and write.
    `tests/adapters/savings_contract.py` is the contract in full.

    Both calls may be cancelled at any await, and one that fails or is cancelled may have written. Each raises
    BackendUnavailable (try again later) or BackendRefused (no use).
    """

    async def read(self) -> KeptText | None:
        """The text as it is at this moment; None if there is none."""

    async def write(self, text: str, before: KeptText | None) -> None:
        """Have it say this in place of what was read before. Raises BackendConflict if it is another by now."""


class GpuStats(Protocol):
    """Where one kind of reading of the GPUs, or of the engines on them, comes from."""

    async def read(self) -> GpuReading:
        """What it reads now; it wakes nothing. Raises BackendUnavailable, whose message says why it has nothing."""


class LoadSource(Protocol):
    """Where what engines say of their load comes from."""

    async def read(self, namespace: str, pods: Sequence[PodPlace]) -> LoadReading:
        """What these pods say now, and who waits for a replica. A pod that says nothing is among the failures.

        Raises BackendUnavailable if nothing can be asked.
        """


class Recorder(Protocol):
    """Whoever keeps a record of what happens to a target. Calls return at once and never raise."""

    def changed(self, before: Target, after: Target, now: float) -> None:
        """Take a change of phase; `now` is in seconds on the clock of the phases."""

    def progressed(self, target: Target, now: float) -> None:
        """Take that the start is seen to be elsewhere: `target.observed.progress` is another than before."""

    def answered(self, now: float) -> None:
        """Take that the first byte of an answer to a held request has come."""

    def departed(self, endpoint: Endpoint) -> None:
        """Take that a replica behind this endpoint no longer serves: a kept connection may lead to it."""

    def held(self, seconds: float) -> None:
        """Take that a caller was held for that long, whatever came of it."""

    def scaled(self, target: Target, replicas: int, error: str | None) -> None:
        """Take that the backend was told a number of replicas, from what target, and why it failed if it did."""

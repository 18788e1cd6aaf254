"""VLLMModel objects as the catalogue: each is read, its workload is made and kept, and its end is seen through.

The rule: what to do is read off the objects as they are now, however they came to be so; so a proxy that was away does
what it would have done. A model that others depend on is never stopped for a reason that is not its own: a spec that
cannot be used leaves the earlier one in force, and who cannot be seen stays as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from vllm_chill.api.vllm_model import API_VERSION, GROUP, KIND, PLURAL, VLLMModel, entry_of, parse_model, warnings
from vllm_chill.api.workload import WorkloadDefaults, workload_name
from vllm_chill.control.model_reports import ModelReports
from vllm_chill.control.reconciler import Reconciler, Rhythm
from vllm_chill.control.workloads import NOT_MADE, ModelController, Workloads, is_foreign, model_of
from vllm_chill.core.catalogue import Catalogue, ModelEntry
from vllm_chill.core.model_status import Condition, Facts
from vllm_chill.core.objects import Collection, Json, digest, meant, metadata
from vllm_chill.core.target import TargetRef
from vllm_chill.errors import BackendConflict, BackendError, BackendRefused, InvalidModel
from vllm_chill.ports import CatalogueObserver, ObjectStore

MODELS = Collection(API_VERSION, KIND, PLURAL, absent="install it: vllm-chill crd | kubectl apply -f -")
FINALIZER = f"{GROUP}/workload"
_NO_WORKLOAD = "workload"
_LOOK_AGAIN_SECONDS = 1.0


@dataclass(slots=True)
class _Model:
    """A model's object as it was last seen, and what came of it. `good` is the last version that could be used; `said`
    and `not_owned` are what has been complained of already.
    """

    item: Json
    good: VLLMModel | None = None
    problems: tuple[str, ...] = ()
    workload: Condition = NOT_MADE
    said: tuple[str, ...] = ()
    not_owned: str | None = None
    ending_since: float | None = None

    @property
    def name(self) -> str:
        return str(metadata(self.item)["name"])

    @property
    def uid(self) -> str:
        return str(metadata(self.item).get("uid"))

    @property
    def is_deleting(self) -> bool:
        return metadata(self.item).get("deletionTimestamp") is not None


class ModelReconciler:
    """The catalogue of a cluster, for one namespace of workloads. `run` must be running.

    Invariant: what `observer` was told last is what the models and the Deployments say that were seen last; nothing is
    told before both have been.
    """

    def __init__(
        self,
        store: ObjectStore,
        observer: CatalogueObserver,
        controller_of: Callable[[str], ModelController | None],
        *,
        namespace: str,
        defaults: WorkloadDefaults,
        grace_seconds: float,
        rhythm: Rhythm | None = None,
        wall_clock: Callable[[], float] = time.time,
        turn: asyncio.Event | None = None,
    ) -> None:
        """`controller_of` has the controller of a model, also while it ends. `grace_seconds` is how long the requests
        of a model that is deleted may go on. Nothing is written while `turn` is not set: that is another proxy's.
        """
        self._store = store
        self._observer = observer
        self._controller_of = controller_of
        self._namespace = namespace
        self._defaults = defaults
        self._grace_seconds = grace_seconds
        self._clock = asyncio.get_running_loop().time
        self._log = structlog.get_logger("vllm_chill.models")
        self._work = Reconciler(self._visit, failed=self._failed, rhythm=rhythm, turn=turn)
        self._workloads = Workloads(store, namespace, defaults, self._work.add)
        self._reports = ModelReports(store, MODELS, self._facts, controller_of, wall_clock, turn)
        self._models: dict[str, _Model] = {}
        self._gone: dict[str, float] = {}
        self._seen: dict[Collection, Mapping[str, Json]] = {}
        self._entries: tuple[ModelEntry, ...] | None = None
        self._catalogue = Catalogue()
        self._lost: set[Collection] = set()
        self._complaints: dict[Collection, str] = {}

    async def run(self) -> None:
        """Follow the models and what is made for them, until cancelled."""
        collections = (MODELS, self._workloads.deployments, self._workloads.services)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._workloads.run())
            tasks.create_task(self._work.run())
            tasks.create_task(self._reports.run())
            for collection in collections:
                tasks.create_task(self._store.watch(collection, _Follower(self, collection)))

    def changed(self, name: str) -> None:
        """Take that a model's controller has changed its phase, or what it sees."""
        self._reports.changed(name)
        model = self._models.get(name)
        if name in self._gone or (model is not None and model.is_deleting):
            self._work.add(name)

    # What the store tells.

    def seen(self, collection: Collection, objects: Mapping[str, Json]) -> None:
        """Take all objects of one of the collections."""
        before = self._seen.get(collection, {})
        self._seen[collection] = objects
        found_again = collection in self._lost
        self._lost.discard(collection)
        self._complaints.pop(collection, None)
        if collection is MODELS:
            self._take_models(objects)
        else:
            for name in _changed(before, objects):
                made_for = model_of(objects.get(name) or before[name]) or self._named_as(name)
                if made_for is not None:
                    self._work.add(made_for)
        self._tell(again=found_again)
        if found_again:
            # What could not be done meanwhile is not to wait for its pause to end.
            for name in (*self._models, *self._gone):
                self._work.add(name)

    def lost(self, collection: Collection, cause: str) -> None:
        """Take that one of the collections cannot be seen at present."""
        is_needed = collection is not self._workloads.services
        if collection is MODELS or (is_needed and self._entries is None):
            self._lost.add(collection)
            self._observer.lost(cause)
        elif self._complaints.get(collection) != cause:
            self._complaints[collection] = cause
            self._log.warning("what runs the models cannot be seen", what=collection.plural, cause=cause)

    def _take_models(self, objects: Mapping[str, Json]) -> None:
        for name in self._models.keys() - objects.keys():
            self._forget(name)
        for name, item in objects.items():
            known = self._models.get(name)
            if known is not None and known.uid != metadata(item).get("uid"):
                self._forget(name)
                known = None
                # Told for a moment without it: what comes back under the name is another model.
                self._tell()
            if known is None:
                known = self._models[name] = _Model(item)
                self._gone.pop(name, None)
                self._read(known)
            elif digest(meant(known.item)) != digest(meant(item)):
                known.item = item
                self._read(known)
            else:
                known.item = item

    def _read(self, model: _Model) -> None:
        try:
            model.good, model.problems = parse_model(model.item), ()
        except InvalidModel as error:
            model.problems = error.problems
        if model.is_deleting and model.ending_since is None:
            model.ending_since = self._clock()
        self._reports.changed(model.name)
        self._work.add(model.name)

    def _forget(self, name: str) -> None:
        del self._models[name]
        self._reports.forget(name)
        self._gone[name] = self._clock()
        self._work.add(name)

    def _named_as(self, workload: str) -> str | None:
        """The model whose workload has, or would have, this name."""
        return next((name for name in self._models if workload_name(name) == workload), None)

    # What is told.

    def _tell(self, *, again: bool = False) -> None:
        if self._lost or not {MODELS, self._workloads.deployments} <= self._seen.keys():
            return
        first = self._entries is None
        entries = tuple(self._entry(model.good) for model in self._models.values() if self._is_served(model))
        if first or again or entries != self._entries:
            self._entries = entries
            clashes, self._catalogue = self._catalogue.clashes, Catalogue(entries)
            self._observer.catalogued(entries)
            for name in {clash.claimed_by for clash in (*clashes, *self._catalogue.clashes)}:
                self._reports.changed(name)
        if first:
            self._spare_what_runs()
            for name in {*self._models, *filter(None, map(model_of, self._workloads_seen()))}:
                self._work.add(name)
            for name in self._models:
                self._reports.changed(name)
        self._hold_back_what_is_not_made()

    def _spare_what_runs(self) -> None:
        """What ran before this proxy did may have streams of the one before, which ends when they have."""
        for item in self._seen[self._workloads.deployments].values():
            name = model_of(item)
            if name is not None and item["spec"].get("replicas"):
                self._workloads.spare(name, self._grace_seconds)

    def _is_served(self, model: _Model) -> bool:
        return model.good is not None and not model.is_deleting and not self._is_taken(model.good)

    def _is_taken(self, model: VLLMModel) -> bool:
        """Whether a Deployment of somebody else's has the name of this model's."""
        live = self._seen[self._workloads.deployments].get(workload_name(model.name))
        return live is not None and is_foreign(live, model)

    def _entry(self, model: VLLMModel | None) -> ModelEntry:
        assert model is not None
        return entry_of(model, self._ref(model.name), gpu_count=self._defaults.gpu_count)

    def _ref(self, name: str) -> TargetRef:
        return TargetRef(self._namespace, workload_name(name))

    def _hold_back_what_is_not_made(self) -> None:
        """A wake has to wait for the Deployment that it scales."""
        deployments = self._seen[self._workloads.deployments]
        for entry in self._entries or ():
            controller = self._controller_of(entry.name)
            if controller is None:
                continue
            if entry.ref.name in deployments:
                controller.let_go(_NO_WORKLOAD)
            else:
                controller.hold_back(_NO_WORKLOAD, self._why_not_made(entry.name))

    def _why_not_made(self, name: str) -> str:
        workload = self._models[name].workload
        return workload.message if workload.status is False else "its Deployment is being made"

    def _workloads_seen(self) -> list[Json]:
        both = (self._workloads.deployments, self._workloads.services)
        return [item for collection in both for item in self._seen.get(collection, {}).values()]

    # What is done.

    async def _visit(self, name: str) -> float | None:
        if self._entries is None:
            return math.inf  # all of them are visited once both are seen
        model = self._models.get(name)
        if model is None:
            return await self._clear_away(name)
        if model.is_deleting:
            return await self._end(model)
        await self._say_problems(model)
        if model.good is None:
            return await self._workloads.put_to_sleep(name, model.item)
        await self._own(model)
        seen = {collection: objects.get(workload_name(name)) for collection, objects in self._seen.items()}
        brought = await self._workloads.bring(model.good, self._controller_of(name), seen, model.item)
        self._came_to(model, brought.condition)
        return brought.again_seconds

    async def _own(self, model: _Model) -> None:
        """Have its end wait for its workload's. Without the right to, it is served all the same."""
        finalizers = metadata(model.item).get("finalizers") or []
        if FINALIZER not in finalizers:
            try:
                await self._finalize(model, [*finalizers, FINALIZER])
            except BackendRefused as error:
                if model.not_owned == error.message:
                    return
                model.not_owned = error.message
                self._log.warning("the end of a model will not wait", model=model.name, cause=error.message)

    async def _finalize(self, model: _Model, finalizers: list[str]) -> None:
        change = {"resourceVersion": metadata(model.item)["resourceVersion"], "finalizers": finalizers}
        await self._store.patch(MODELS, model.name, {"metadata": change})

    async def _say_problems(self, model: _Model) -> None:
        problems = model.problems
        if problems and problems != model.said:
            model.said = problems
            kept = "; its earlier version is served" if model.good is not None else ""
            self._log.warning("a model is not accepted", model=model.name, problems=list(problems))
            message = f"the spec is not accepted{kept}: {'; '.join(problems)}"
            with contextlib.suppress(BackendError):  # the status says it too
                await self._store.record(model.item, "NotAccepted", message, warning=True)

    def _came_to(self, model: _Model, workload: Condition) -> None:
        if model.workload != workload:
            model.workload = workload
            self._reports.changed(model.name)

    async def _end(self, model: _Model) -> float | None:
        """See a model out: its requests, then its workload, then its object."""
        assert model.ending_since is not None
        finalizers = metadata(model.item).get("finalizers") or []
        if FINALIZER not in finalizers:
            return math.inf  # others still hold it, and nothing of ours is left
        if self._is_in_use(model.name, model.ending_since):
            return _LOOK_AGAIN_SECONDS
        await self._workloads.clear_away(model.name)
        await self._finalize(model, [each for each in finalizers if each != FINALIZER])
        return math.inf

    async def _clear_away(self, name: str) -> float | None:
        """Remove what is left of a model that is gone."""
        if self._is_in_use(name, self._gone.setdefault(name, self._clock())):
            return _LOOK_AGAIN_SECONDS
        if any(model_of(item) == name for item in self._workloads_seen()):
            self._log.info("a workload is removed, as its model is gone", model=name)
            await self._workloads.clear_away(name)
        self._gone.pop(name, None)
        return math.inf

    def _is_in_use(self, name: str, since: float) -> bool:
        controller = self._controller_of(name)
        if controller is None or self._clock() >= since + self._grace_seconds:
            return False
        return controller.runs or controller.target.in_flight > 0

    def _failed(self, name: str, error: BackendError, pause: float) -> None:
        if isinstance(error, BackendConflict):
            return  # somebody else wrote in the same moment
        self._log.warning("a model's workload is not as it should be", model=name, cause=error.message)
        model = self._models.get(name)
        if model is not None:
            self._came_to(model, Condition("UpToDate", False, "NotApplied", error.message))
        if self._entries is not None:
            self._hold_back_what_is_not_made()

    # What is reported.

    def _facts(self, name: str) -> tuple[Json, Facts] | None:
        """What is to be said of a model: its object, and the facts; None if there is no such model, or nothing yet."""
        model = self._models.get(name)
        if model is None or self._entries is None:
            return None
        controller = self._controller_of(name)
        facts = Facts(
            problems=model.problems,
            runs=self._is_served(model),
            deleting=model.is_deleting,
            target=controller.target if controller is not None else None,
            workload=model.workload,
            clashes=tuple(clash for clash in self._catalogue.clashes if clash.claimed_by == name),
            warnings=warnings(model.good) if model.good is not None else (),
        )
        return model.item, facts


class _Follower:
    """ports.ObjectsObserver of one collection."""

    def __init__(self, models: ModelReconciler, collection: Collection) -> None:
        self.seen = partial(models.seen, collection)
        self.lost = partial(models.lost, collection)


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The names of the objects that are new, gone, or another version than before."""
    names = dict.fromkeys((*before, *after))
    return [name for name in names if _version(before.get(name)) != _version(after.get(name))]


def _version(item: Json | None) -> object:
    return None if item is None else (metadata(item).get("uid"), metadata(item).get("resourceVersion"))

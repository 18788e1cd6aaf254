"""What runs a model: its Deployment and its Service, made to say what the model says, whatever was done to them.

The rule: what is to be written is what the API server itself says would change, on what it says at that moment; so
nothing is written twice, and how it writes a number makes no difference. A pod template is written only while nothing
of the model runs. The number of replicas belongs to the model's controller: it is passed on as it is found, with the
version that it was found at, so that nothing is ever woken or put to sleep by a write of something else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import structlog

from vllm_chill.api.vllm_model import GROUP, KIND, VLLMModel
from vllm_chill.api.workload import SPEC_HASH, WorkloadDefaults, deployment_of, service_of, workload_name
from vllm_chill.core.model_status import Condition
from vllm_chill.core.objects import (
    Collection,
    Json,
    annotations_of,
    differences,
    digest,
    is_owned_by,
    labels_of,
    meant,
    metadata,
)
from vllm_chill.core.phrases import listed
from vllm_chill.core.target import Limits, Target
from vllm_chill.errors import BackendConflict, BackendError
from vllm_chill.ports import ObjectStore

MANAGED_BY = "app.kubernetes.io/managed-by"
REPLACE = f"{GROUP}/replace"
"""The annotation of a model that asks, with the value now, for its pods to be replaced without waiting for idle."""
IN_PLACE = Condition("UpToDate", True, "Applied")
NOT_MADE = Condition("UpToDate", None, "NotMadeYet")

_INSTANCE = "app.kubernetes.io/instance"
_OURS = "vllm-chill"
_TEMPLATE = "spec.template"
_SHOWN_PATHS = 5
_WRITE_TRIES = 5
_NO_CONTROLLER_SECONDS = 1.0
_SPARED_SECONDS = 10.0


class ModelController(Protocol):
    """What is needed of a model's ScaleController."""

    @property
    def target(self) -> Target: ...
    @property
    def limits(self) -> Limits: ...
    @property
    def runs(self) -> bool: ...
    def now(self) -> float: ...
    def hold_back(self, by: str, cause: str) -> None: ...
    def let_go(self, by: str) -> None: ...
    async def replaced(self, write: Callable[[], Awaitable[None]], *, at_once: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class Brought:
    """How far a model's workload has come, and in how many seconds to look at it again, if it is not to be told."""

    condition: Condition
    again_seconds: float | None = None


class Workloads:
    """The workloads of one namespace. `run` must be running. Invariant: at most one replacement goes on for a model."""

    def __init__(
        self, store: ObjectStore, namespace: str, defaults: WorkloadDefaults, again: Callable[[str], None]
    ) -> None:
        """`again` is told the name of a model whose replacement has ended, however it did."""
        self.deployments = Collection("apps/v1", "Deployment", "deployments", namespace)
        self.services = Collection("v1", "Service", "services", namespace)
        self._store = store
        self._namespace = namespace
        self._defaults = defaults
        self._again = again
        self._placed: dict[tuple[Collection, str], _Placed] = {}
        self._replacements: dict[str, _Replacement] = {}
        self._spared: dict[str, float] = {}
        self._clock = asyncio.get_running_loop().time
        self._tasks = asyncio.TaskGroup()

    async def run(self) -> None:
        """Have replacements take place, until cancelled."""
        async with self._tasks:
            await asyncio.get_running_loop().create_future()

    async def bring(
        self, model: VLLMModel, controller: ModelController | None, seen: Mapping[Collection, Json | None], about: Json
    ) -> Brought:
        """Make a model's Deployment and Service say what it says, as far as that can be done now.

        `seen` is what is known of them, and only spares a look at what is in place; `about` is the model's object, for
        events. Raises BackendError.
        """
        service = _Want(self.services, model, service_of(model, self._namespace), about)
        deployment = _Want(self.deployments, model, deployment_of(model, self._namespace, self._defaults), about)
        # Requests go to the pods themselves where they can, so a model is served before it has its Service.
        brought = await self._bring_deployment(deployment, controller, seen.get(self.deployments))
        has_service = await self._bring_service(service, seen.get(self.services))
        return brought if brought.condition.status is not True else Brought(has_service)

    def spare(self, name: str, seconds: float) -> None:
        """Replace nothing that runs of a model for so long, or until it has slept: the proxy before this one may still
        be answering with it.
        """
        self._spared[name] = self._clock() + seconds

    async def put_to_sleep(self, name: str, about: Json) -> float | None:
        """Take the replicas of a model that has no controller; in how many seconds to try, if it is spared.

        Raises BackendError.
        """
        live = await self._store.get(self.deployments, workload_name(name))
        if live is None or model_of(live) != name or not live["spec"].get("replicas"):
            return None
        if (wait := self._spared.get(name, 0.0) - self._clock()) > 0:
            return wait
        change = {"metadata": {"resourceVersion": metadata(live)["resourceVersion"]}, "spec": {"replicas": 0}}
        await self._store.patch(self.deployments, workload_name(name), change)
        what = self.deployments.named(workload_name(name))
        message = f"{what} is put to sleep, as its spec is not accepted and no earlier one is known"
        await self._say(about, Said("PutToSleep", message, True))
        return None

    async def clear_away(self, name: str) -> None:
        """Delete what was made for the model of this name. Raises BackendError."""
        await self._stop_replacing(name)
        for collection in (self.deployments, self.services):
            self._placed.pop((collection, name), None)
            live = await self._store.get(collection, workload_name(name))
            if live is not None and model_of(live) == name:
                await self._store.delete(collection, workload_name(name), metadata(live)["uid"])

    async def _bring_service(self, want: _Want, seen: Json | None) -> Condition:
        if self._is_in_place(want, seen):
            return IN_PLACE
        live = await self._store.get(want.collection, want.name)
        if live is None:
            await self._make(want, want.item)
            return IN_PLACE
        if is_foreign(live, want.model):
            return _conflict(want)
        item = _at_version_of(live, want.item)
        await self._settle(want, live, item, await self._would_change(want, live, item))
        return IN_PLACE

    async def _bring_deployment(self, want: _Want, controller: ModelController | None, seen: Json | None) -> Brought:
        if self._is_in_place(want, seen):
            await self._stop_replacing(want.model.name)  # its model has changed back
            return Brought(IN_PLACE)
        live = await self._store.get(want.collection, want.name)
        if live is None:
            await self._stop_replacing(want.model.name)
            await self._make(want, _with_replicas(want.item, 0))
            return Brought(IN_PLACE)
        if is_foreign(live, want.model):
            await self._stop_replacing(want.model.name)
            return Brought(_conflict(want))
        item = _as_it_is_scaled(live, want.item)
        paths = await self._would_change(want, live, item)
        if any(path.startswith(_TEMPLATE) for path in paths):
            return await self._replace(want, controller, paths, live)
        await self._stop_replacing(want.model.name)
        await self._settle(want, live, item, paths)
        return Brought(IN_PLACE)

    # Looking.

    def _is_in_place(self, want: _Want, seen: Json | None) -> bool:
        placed = self._placed.get(want.key)
        return placed is not None and seen is not None and placed == _Placed(digest(want.item), digest(_shape(seen)))

    def _place(self, want: _Want, live: Json) -> None:
        self._placed[want.key] = _Placed(digest(want.item), digest(_shape(live)))

    async def _would_change(self, want: _Want, live: Json, item: Json) -> tuple[str, ...]:
        would = await self._store.apply(want.collection, item, dry_run=True)
        return differences(_shape(live), _shape(would))

    def _was_in_place(self, want: _Want, live: Json | None) -> bool:
        """Whether what is wanted has been there before: then it was somebody else who changed it."""
        placed = self._placed.get(want.key)
        if placed is not None:
            return placed.wanted == digest(want.item)
        hashed = annotations_of(want.item).get(SPEC_HASH)
        return live is not None and hashed is not None and annotations_of(live).get(SPEC_HASH) == hashed

    # Writing.

    async def _make(self, want: _Want, item: Json) -> None:
        was_there = self._was_in_place(want, None)
        self._place(want, await self._store.apply(want.collection, item))
        if was_there:
            await self._say(
                want.about, Said("DriftUndone", f"{want} was deleted by somebody else; it was made again", True)
            )
        else:
            await self._say(want.about, Said("Created", f"{want} was made"))

    async def _settle(self, want: _Want, live: Json, item: Json, paths: tuple[str, ...]) -> None:
        """Write what would change at these paths, if there are any."""
        if not paths:
            self._place(want, live)
            return
        said = _said_of_change(want, paths, drift=self._was_in_place(want, live))
        self._place(want, await self._store.apply(want.collection, item))
        await self._say(want.about, said)

    async def _say(self, about: Json, said: Said) -> None:
        try:
            await self._store.record(about, said.reason, said.message, warning=said.warning)
        except BackendError:
            return  # what is done is done, whether or not it can be said

    # Replacing: the pod template, while nothing runs.

    async def _replace(
        self, want: _Want, controller: ModelController | None, paths: tuple[str, ...], live: Json
    ) -> Brought:
        if controller is None:
            return Brought(_waits(paths), _NO_CONTROLLER_SECONDS)
        if not controller.runs:
            self._spared.pop(want.model.name, None)
        elif (spared := self._spared.get(want.model.name, 0.0) - self._clock()) > 0:
            return Brought(_waits(paths), min(spared, _SPARED_SECONDS))
        replacement = _Replacement(digest(want.item), replaces_at_once(want.model), controller)
        under_way = self._replacements.get(want.model.name)
        if under_way == replacement:
            under_way.complain()
            if under_way.is_under_way:
                return Brought(_waits(paths))
        await self._stop_replacing(want.model.name)
        drift = self._was_in_place(want, live)
        said = _said_of_change(want, paths, drift=drift)
        if not controller.runs:
            await controller.replaced(partial(self._write_template, want, replacement), at_once=False)
            await self._say(want.about, said)
            return Brought(IN_PLACE)
        await self._say(want.about, _said_of_change(want, paths, drift=drift, waits=True))
        replacement.task = self._tasks.create_task(self._replaced(replacement, want, said))
        self._replacements[want.model.name] = replacement
        return Brought(_waits(paths))

    async def _replaced(self, replacement: _Replacement, want: _Want, said: Said) -> None:
        try:
            write = partial(self._write_template, want, replacement)
            await replacement.controller.replaced(write, at_once=replacement.at_once)
        except BackendError as error:
            replacement.error = error
        except Exception:
            # A bug of ours with one model must not end the care for all the others.
            structlog.get_logger("vllm_chill.models").exception("a workload was not replaced", model=want.model.name)
        else:
            await self._say(want.about, said)
        self._again(want.model.name)

    async def _write_template(self, want: _Want, replacement: _Replacement) -> None:
        replacement.writes = True
        for tries_left in reversed(range(_WRITE_TRIES)):
            live = await self._store.get(want.collection, want.name)
            if live is None or is_foreign(live, want.model):
                return
            try:
                written = await self._store.apply(want.collection, _as_it_is_scaled(live, want.item))
            except BackendConflict:
                # Its status is written often while its last pods go.
                if not tries_left:
                    raise
            else:
                self._place(want, written)
                return

    async def _stop_replacing(self, name: str) -> None:
        under_way = self._replacements.pop(name, None)
        if under_way is not None and under_way.task is not None and under_way.is_under_way:
            # Once it writes it is nearly over, and has yet to wake what it put to sleep.
            if not under_way.writes:
                under_way.task.cancel()
            # Until it is over it holds the model back, and would let it go for whoever comes after it.
            await asyncio.wait([under_way.task])


@dataclass(frozen=True, slots=True)
class _Want:
    """An object that a model is to have. `about` is the model's own object, for events."""

    collection: Collection
    model: VLLMModel
    item: Json
    about: Json

    @property
    def name(self) -> str:
        return workload_name(self.model.name)

    @property
    def key(self) -> tuple[Collection, str]:
        return self.collection, self.model.name

    def __str__(self) -> str:
        return self.collection.named(self.name)


@dataclass(frozen=True, slots=True)
class _Placed:
    """What was last found or put in place: the digests of what was wanted, and of what that had become."""

    wanted: str
    found: str


@dataclass(frozen=True, slots=True)
class Said:
    """What an event says."""

    reason: str
    message: str
    warning: bool = False


@dataclass(slots=True)
class _Replacement:
    """A replacement by what was wanted (a digest), whether it has come to its write, and what came of it."""

    wanted: str
    at_once: bool
    controller: ModelController
    task: asyncio.Task[None] | None = field(default=None, compare=False)
    writes: bool = field(default=False, compare=False)
    error: BackendError | None = field(default=None, compare=False)

    @property
    def is_under_way(self) -> bool:
        return self.task is not None and not self.task.done()

    def complain(self) -> None:
        """Raise what it failed for, once."""
        if self.error is not None:
            error, self.error = self.error, None
            raise error


def replaces_at_once(model: VLLMModel) -> bool:
    """Whether a model's pods are replaced as soon as its leases have ended, rather than once nobody wants it."""
    return model.metadata.annotations.get(REPLACE) == "now"


def is_foreign(live: Mapping[str, Any], model: VLLMModel) -> bool:
    """Whether an object that has the name of a model's workload is not vllm-chill's, or is another model's."""
    return not is_owned_by(live, model.metadata.uid) and model_of(live) != model.name


def model_of(live: Mapping[str, Any]) -> str | None:
    """The name of the model that vllm-chill made this object for; None if it did not."""
    if labels_of(live).get(MANAGED_BY) != _OURS:
        return None
    owners = [owner for owner in metadata(live).get("ownerReferences") or () if owner.get("controller")]
    if owners:
        return next((str(owner["name"]) for owner in owners if owner.get("kind") == KIND), None)
    # One that was restored from a backup has lost its owner.
    name = labels_of(live).get(_INSTANCE)
    return name if name is not None and workload_name(name) == metadata(live)["name"] else None


def _conflict(want: _Want) -> Condition:
    message = f"{want} is there already and is not vllm-chill's: delete it, or give the model another name"
    return Condition("UpToDate", False, "Conflict", message)


def _waits(paths: tuple[str, ...]) -> Condition:
    return Condition("UpToDate", False, "WaitsForIdle", f"it is replaced once nobody uses it ({_shown(paths)})")


def _said_of_change(want: _Want, paths: tuple[str, ...], *, drift: bool, waits: bool = False) -> Said:
    match drift, waits:
        case True, True:
            how = "it is put back once nobody uses it"
            return Said("Drift", f"{want} was changed by somebody else ({_shown(paths)}); {how}", True)
        case True, False:
            return Said(
                "DriftUndone",
                f"{want} was changed by somebody else ({_shown(paths)}); it was put back",
                True,
            )
        case False, True:
            return Said("WaitsForIdle", f"{want} is replaced once nobody uses it ({_shown(paths)})")
        case _:
            return Said("Applied", f"{want} follows the model's spec ({_shown(paths)})")


def _shown(paths: tuple[str, ...]) -> str:
    return listed(paths, _SHOWN_PATHS)


def _shape(item: Json) -> Json:
    """What an object is meant to be, but for how many replicas it has."""
    shape = meant(item)
    if "spec" in shape:
        shape["spec"] = {key: value for key, value in shape["spec"].items() if key != "replicas"}
    return shape


def _at_version_of(live: Json, item: Json) -> Json:
    return {**item, "metadata": {**item["metadata"], "resourceVersion": metadata(live)["resourceVersion"]}}


def _with_replicas(item: Json, replicas: int) -> Json:
    return {**item, "spec": {**item["spec"], "replicas": replicas}}


def _as_it_is_scaled(live: Json, wanted: Json) -> Json:
    replicas = live["spec"].get("replicas")
    return _with_replicas(_at_version_of(live, wanted), 1 if replicas is None else replicas)

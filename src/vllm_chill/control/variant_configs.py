"""The ConfigMaps of the controller of variants, followed: its own namespace's, and those of namespaces with variants.

The rule: what they say counts from the moment at which they say it. What is wrong with one is told once, in an event
about it, and what was good before goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import structlog

from vllm_chill.api.controller_config import ControllerConfig
from vllm_chill.api.variant_config import NAMES, Problem, by_place, read_configs
from vllm_chill.api.variant_entries import MainSettings
from vllm_chill.control.reconciler import Reconciler, Rhythm
from vllm_chill.core.objects import Collection, Json, annotations_of, metadata
from vllm_chill.errors import BackendError
from vllm_chill.ports import ObjectStore

EXCLUDED = "wva.llmd.ai/exclude"
"""The annotation of a namespace whose own ConfigMaps do not count."""
_KNOWN = frozenset(name for names in NAMES.values() for name in names)
_NAMESPACES = Collection("v1", "Namespace", "namespaces", metadata_only=True)


def _kept(item: Json) -> Json | None:
    return item if metadata(item).get("name") in _KNOWN else None


class VariantConfigs:
    """What they say together. `run` must be running."""

    def __init__(
        self,
        store: ObjectStore,
        home: str,
        over: Callable[[MainSettings], MainSettings] = lambda main: main,
        *,
        rhythm: Rhythm | None = None,
    ) -> None:
        """`home` is the controller's namespace; `over` gives the main settings with what flags say in their place."""
        self._store = store
        self._home = home
        self._over = over
        self._said = ControllerConfig()
        self.config = self._with_flags()
        """What they say, and the flags where these say something."""
        self._wanted: frozenset[str] = frozenset((home,))
        self._followed: dict[str, asyncio.Task[None]] = {}
        self._seen: dict[str, Mapping[str, Json]] = {}
        self._lost: dict[str, str] = {}
        self._excluded: frozenset[str] = frozenset()
        self._told: set[tuple[str, str, str]] = set()
        self._to_tell: dict[str, tuple[Json, Problem]] = {}
        self._events = Reconciler(self._record, rhythm=rhythm)
        self._group: asyncio.TaskGroup | None = None
        self._log = structlog.get_logger("vllm_chill.variants")
        self.on_change: Callable[[], None] | None = None
        """Called when they say something else."""
        self._news: set[asyncio.Future[None]] = set()

    @property
    def synced(self) -> bool:
        """Whether those of the controller's own namespace have been seen, or cannot be."""
        return self._home in self._seen or self._home in self._lost

    async def changed(self) -> None:
        """Return when they say something else, or are seen for the first time."""
        news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._news.add(news)
        try:
            await news
        finally:
            self._news.discard(news)

    async def run(self) -> None:
        """Follow them, until cancelled."""
        try:
            async with asyncio.TaskGroup() as self._group:
                self._group.create_task(self._events.run())
                self._group.create_task(self._store.watch(_NAMESPACES, _Namespaces(self._exclude)))
                self._adjust()
        finally:
            self._group = None
            self._followed.clear()

    def follow(self, namespaces: Iterable[str]) -> None:
        """Have those of these namespaces count, besides the controller's own."""
        wanted = frozenset((self._home, *namespaces))
        if wanted != self._wanted:
            self._wanted = wanted
            self._adjust()

    def _adjust(self) -> None:
        if self._group is None:
            return
        for namespace in self._followed.keys() - self._wanted:
            self._followed.pop(namespace).cancel()
            if self._seen.pop(namespace, None):
                self._read()
        for namespace in self._wanted - self._followed.keys():
            collection = Collection("v1", "ConfigMap", "configmaps", namespace, keep=_kept)
            watch = self._store.watch(collection, _Follower(self, namespace))
            self._followed[namespace] = self._group.create_task(watch)

    # What the store tells.

    def seen(self, namespace: str, objects: Mapping[str, Json]) -> None:
        """Take all ConfigMaps of a namespace that could matter."""
        before = self._seen.get(namespace)
        self._seen[namespace] = objects
        self._lost.pop(namespace, None)
        if before is None or _data(before) != _data(objects):
            self._read()

    def lost(self, namespace: str, cause: str) -> None:
        """Take that those of a namespace cannot be seen at present; what was seen of them stays so."""
        if self._lost.get(namespace) != cause:
            self._lost[namespace] = cause
            self._log.warning("ConfigMaps cannot be seen", namespace=namespace, cause=cause)
            if namespace == self._home:
                self._tell()

    def _exclude(self, namespaces: frozenset[str]) -> None:
        if namespaces != self._excluded:
            self._excluded = namespaces
            self._read()

    def _read(self) -> None:
        items = [
            item
            for namespace, objects in self._seen.items()
            if namespace == self._home or namespace not in self._excluded
            for item in objects.values()
        ]
        maps, doubles = by_place(items, self._home)
        self._said, problems = read_configs(maps, self._said)
        self.config = self._with_flags()
        for problem in (*doubles, *problems):
            item = maps.get(problem.place)
            if item is not None:
                self._complain(item, problem)
        self._tell()

    def _with_flags(self) -> ControllerConfig:
        return replace(self._said, main=self._over(self._said.main))

    def _tell(self) -> None:
        for news in self._news:
            if not news.done():
                news.set_result(None)
        if self.on_change is not None:
            self.on_change()

    def _complain(self, item: Json, problem: Problem) -> None:
        said = (str(metadata(item).get("uid")), problem.key, problem.text)
        if said in self._told:
            return
        self._told.add(said)
        of = metadata(item)
        self._log.warning(
            "ConfigMap is not as it should be", name=f"{of.get('namespace')}/{of['name']}", cause=str(problem)
        )
        key = "\0".join(said)
        self._to_tell[key] = {"apiVersion": "v1", "kind": "ConfigMap", **item}, problem
        self._events.add(key)

    async def _record(self, key: str) -> float:
        about, problem = self._to_tell.pop(key)
        with contextlib.suppress(BackendError):  # the log says it too
            await self._store.record(about, "InvalidConfiguration", str(problem), warning=not problem.warning)
        return float("inf")


class _Follower:
    """ports.ObjectsObserver of the ConfigMaps of one namespace."""

    def __init__(self, configs: VariantConfigs, namespace: str) -> None:
        self._configs = configs
        self._namespace = namespace

    def seen(self, objects: Mapping[str, Any]) -> None:
        self._configs.seen(self._namespace, objects)

    def lost(self, cause: str) -> None:
        self._configs.lost(self._namespace, cause)


class _Namespaces:
    """ports.ObjectsObserver of the namespaces: which of them are excluded. Without the right to see them none is."""

    def __init__(self, exclude: Callable[[frozenset[str]], None]) -> None:
        self._exclude = exclude

    def seen(self, objects: Mapping[str, Any]) -> None:
        excluded = (name for name, item in objects.items() if annotations_of(item).get(EXCLUDED) == "true")
        self._exclude(frozenset(excluded))

    def lost(self, cause: str) -> None:
        """What was seen of them stays so."""


def _data(objects: Mapping[str, Json]) -> dict[str, object]:
    return {name: (item.get("data"), item.get("binaryData")) for name, item in objects.items()}

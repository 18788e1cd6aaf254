"""The models of a catalogue, each served by a controller of its own for as long as it is there.

The rule: what a catalogue says is taken over at once, and what runs is never disturbed by it. A model that is gone is
no longer found by its name; who waits for it is told, and its leases end in peace before its controller does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import structlog

from vllm_chill.app.plan import Plan
from vllm_chill.app.targets import Made
from vllm_chill.control.controller import ScaleController
from vllm_chill.control.fleet import Fleet
from vllm_chill.core.catalogue import Catalogue, Clash, ModelEntry
from vllm_chill.core.switching import Claim
from vllm_chill.proxy.served import Directory


class ServedModels:
    """app.world.ModelsObserver that has the directory follow. `run` must be running.

    Invariant: each model of the catalogue has one that serves it, but for one that was taken out and came back while
    its leases had not yet ended.
    """

    def __init__(
        self,
        plan: Plan,
        directory: Directory,
        fleet: Fleet,
        make: Callable[[ModelEntry], Made],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """`changed` is called when other models are served than before, or as they are served now."""
        self._tell_change = changed
        self._plan = plan
        self._directory = directory
        self._fleet = fleet
        self._make = make
        self._made: dict[str, Made] = {}
        self._ending: dict[str, Made] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._entries: tuple[ModelEntry, ...] = ()
        self._told: frozenset[Clash] = frozenset()
        self._misses_default = False
        self._group: asyncio.TaskGroup | None = None
        self._log = structlog.get_logger("vllm_chill.models")

    async def run(self, tell: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have `tell` say which models there are, and their controllers run, until cancelled."""
        async with asyncio.TaskGroup() as self._group:
            self._group.create_task(self._fleet.run())
            self._group.create_task(tell())

    def catalogued(self, entries: Sequence[ModelEntry]) -> None:
        """Take which models there are."""
        self._entries = tuple(entries)
        catalogue = Catalogue(entries)
        self._tell_clashes(catalogue)
        there = {entry.name: entry for entry in catalogue}
        for name in self._made.keys() - there.keys():
            self._end(name)
        for name, entry in there.items():
            if name in self._made:
                self._change(name, entry)
            elif name not in self._ending:
                self._begin(name, entry)
        self._directory.replace(catalogue, [made.served for made in self._made.values()])
        self._look_for_default()
        self._tell_change()

    def _look_for_default(self) -> None:
        name = self._directory.default
        found = None if name is None else self._directory.find(name)
        if name is not None and found is None and not self._misses_default:
            known = self._directory.catalogue.names or "none"
            self._log.warning("there is no model for requests that name none", model_id=name, known=known)
        self._misses_default = name is not None and found is None
        if self._fleet.active is None and found is not None:
            self._fleet.active = found.name

    def take(self, plan: Plan) -> None:
        """Serve the models by this plan from now on."""
        self._plan = plan
        for made in (*self._made.values(), *self._ending.values()):
            assert made.served.entry is not None
            made.take(plan.of_model(made.served.entry))

    def lost(self, cause: str) -> None:
        """Take that the models cannot be seen at present; those that are known go on."""
        if self._directory.trouble != cause:
            self._directory.trouble = cause
            self._log.warning("models cannot be seen", cause=cause)

    def listen(self, changed: Callable[[str], None]) -> None:
        """Have this called with the name of each model whose controller has changed."""
        self._fleet.changed = changed

    def controller_of(self, name: str) -> ScaleController | None:
        """A model's controller, also while it ends."""
        made = self._made.get(name) or self._ending.get(name)
        return None if made is None else made.served.controller

    def _begin(self, name: str, entry: ModelEntry) -> None:
        made = self._made[name] = self._make(entry)
        assert self._group is not None
        self._tasks[name] = self._group.create_task(made.run())
        self._fleet.add(claim_of(entry), made.served.controller)
        self._log.info("model added", model=name, served_as=entry.served, group=entry.group)

    def _change(self, name: str, entry: ModelEntry) -> None:
        made = self._made[name]
        if made.served.entry == entry:
            return
        served = made.served
        made.take(self._plan.of_model(entry))
        self._made[name] = replace(made, served=replace(served, entry=entry))
        self._fleet.add(claim_of(entry), served.controller)
        self._log.info("model changed", model=name, served_as=entry.served, group=entry.group)

    def _end(self, name: str) -> None:
        made = self._ending[name] = self._made.pop(name)
        self._fleet.remove(name)
        made.served.controller.retire(f'The model "{name}" was deleted; GET /v1/models lists those there are.')
        self._log.info("model removed", model=name)
        assert self._group is not None
        self._group.create_task(self._see_out(name, made))

    async def _see_out(self, name: str, made: Made) -> None:
        await made.served.controller.at_rest()
        task = self._tasks.pop(name)
        task.cancel()
        await asyncio.wait([task])
        del self._ending[name]
        if any(entry.name == name for entry in self._entries):
            self.catalogued(self._entries)

    def _tell_clashes(self, catalogue: Catalogue) -> None:
        for clash in catalogue.clashes:
            if clash not in self._told:
                self._log.warning("name taken", name=clash.name, claimed_by=clash.claimed_by, owner=clash.owner)
        self._told = frozenset(catalogue.clashes)


def claim_of(entry: ModelEntry) -> Claim:
    """What a model needs to be awake."""
    return Claim(entry.name, entry.group, entry.gpus, entry.pool, kept=entry.min_replicas > 0)

"""Which target a request goes to: the one that there is, or the one of the model that it names.

The rule: a name leads to one target or to an error that lists those there are; nothing is guessed. Where the proxy
has but one target the name does not matter to it, and no request is looked into for it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

from vllm_chill.control.controller import ScaleController
from vllm_chill.control.knowledge import ModelKnowledge
from vllm_chill.control.lease import Lease
from vllm_chill.control.output_glance import OutputGlance
from vllm_chill.core.balancing import salt_of
from vllm_chill.core.catalogue import Adapter, Catalogue, ModelEntry
from vllm_chill.core.keys import Key
from vllm_chill.core.models import model_not_found
from vllm_chill.core.target import Endpoint
from vllm_chill.errors import BadRequest, CatalogueUnknown, ModelForbidden, ModelNotFound
from vllm_chill.proxy.affinity import Affinity, Asker
from vllm_chill.proxy.hold import Budget, HoldDesk
from vllm_chill.telemetry.start_record import StartRecord

if TYPE_CHECKING:
    from vllm_chill.telemetry.spans import WakeSpans

_SHOWN_CHARACTERS = 160


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """One scale target with all that its requests meet. `entry` is its model in the catalogue; None where the proxy
    has one target and no catalogue. `affinity` says which requests should meet at one replica, None if none need to.
    `wakes` has the spans of its wakes where there is tracing; `output` is what the engine writes, None where nothing
    tells that.
    """

    controller: ScaleController
    desk: HoldDesk
    starts: StartRecord
    knowledge: ModelKnowledge
    entry: ModelEntry | None = None
    affinity: Affinity | None = None
    wakes: WakeSpans | None = None
    output: OutputGlance | None = None

    @property
    def name(self) -> str:
        """What it is called in the API: the model's object name, else the target's."""
        return self.entry.name if self.entry is not None else str(self.controller.target.ref)

    @property
    def rewrites(self) -> bool:
        """Whether what it answers is not passed on byte for byte."""
        return self.entry is not None and self.entry.rewrites_tool_calls


class LeaseNow(Protocol):
    """ScaleController.lease_now."""

    def __call__(self, besides: Endpoint | None = None, key: int | None = None) -> Lease | None: ...


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """Where a request goes: its target, and the adapter that has to be loaded there before, if it asks for one.

    `salt` is that of the adapter, whether it has to be loaded or not. `lease_now` and `suspects` are the target's,
    `rewrites` as in Served, and `key_of` gives a request's key in core.balancing, None if no request has one: here as
    well, as each request asks for them.
    """

    served: Served
    adapter: Adapter | None = None
    salt: int = 0
    lease_now: LeaseNow = field(init=False)
    rewrites: bool = field(init=False)
    key_of: Callable[[Asker], int | None] | None = field(init=False)
    suspects: Collection[Endpoint] = field(init=False)

    def __post_init__(self) -> None:
        served, affinity = self.served, self.served.affinity
        object.__setattr__(self, "lease_now", served.controller.lease_now)
        object.__setattr__(self, "rewrites", served.rewrites)
        object.__setattr__(self, "key_of", None if affinity is None else partial(affinity.key, salt=self.salt))
        object.__setattr__(self, "suspects", served.controller.ejector.suspects)


class Directory:
    """The targets of one proxy. `only` is the one of a proxy without a catalogue, for all requests whatever they name.

    `budget` is that of held bodies, for all targets together. `default` is the name of the model for requests that
    name none. `trouble` says why the catalogue is not known, None once it is.
    """

    def __init__(self, budget: Budget, only: Served | None = None, *, default: str | None = None) -> None:
        self.budget = budget
        self.only = only
        self.default = default
        self.trouble: str | None = None if only is not None else "it has not been read yet"
        self.catalogue = Catalogue()
        self._served: dict[str, Served] = {}
        self._choices: dict[str, Choice] = {}
        self._only_one: Choice | None = None

    def __iter__(self) -> Iterator[Served]:
        return iter((self.only,) if self.only is not None else tuple(self._served.values()))

    def replace(self, catalogue: Catalogue, served: Sequence[Served]) -> None:
        """Serve these from now on; requests that are under way go on with what they have."""
        self.catalogue = catalogue
        self._served = {one.name: one for one in served}
        self._choices = {}
        for name, entry in catalogue.by_name():
            if (found := self._served.get(entry.name)) is not None:
                adapter = entry.adapter(name)
                salt = 0 if adapter is None else salt_of(adapter.name)
                self._choices[name] = Choice(found, adapter if entry.loads_adapters else None, salt)
        self._only_one = Choice(served[0]) if len(served) == 1 else None
        self.trouble = None

    def find(self, name: str) -> Served | None:
        """The target of a served name, an alias, an adapter or an object's own name."""
        if self.only is not None:
            return self.only
        choice = self._choices.get(name)
        return None if choice is None else choice.served

    def of_call(self, model: str | None) -> Served:
        """The target of a request that names this model, or none. Raises as `choose` does."""
        return self.only or self.choose(model).served

    def may_use(self, key: Key, served: Served, name: str | None = None) -> bool:
        """Whether a key may use a target's model by this name, or by any of its own. A name of a model stands for the
        others that it has, but none for its adapters, nor theirs for it.
        """
        entry = served.entry
        if entry is None:
            return key.may_use((name,) if name is not None else [model.id for model in served.knowledge.models.models])
        if name is not None and entry.adapter(name) is not None:
            return key.may_use((name,))
        return key.may_use((entry.served, *entry.aliases, entry.name))

    def choose(self, model: str | None, key: Key | None = None) -> Choice:
        """Where a request goes that names this model, or none, with this key. To be asked where there is a catalogue,
        and with a key that is for some models only.

        Raises ModelNotFound; BadRequest where a model has to be named; CatalogueUnknown while the models are unknown;
        ModelForbidden, which comes first and says nothing of models that the key may not use.
        """
        if key is None or key.models is None:
            return self._choose(model)
        if self.only is not None:
            if model is None or not self.may_use(key, self.only, model):
                raise refused(key, model)
            return self._only_choice()
        name = model or self.default
        if name is None and self._only_one is None:
            raise refused(key, None)
        found = self._only_one if name is None else self._choices.get(name)
        if found is None:
            self._complain_of_trouble()
            raise refused(key, name) if name is None or not key.may_use((name,)) else model_not_found(name, key.usable)
        if not self.may_use(key, found.served, name):
            raise refused(key, name)
        return found

    def _only_choice(self) -> Choice:
        if self._only_one is None:
            assert self.only is not None
            self._only_one = Choice(self.only)
        return self._only_one

    def _choose(self, model: str | None) -> Choice:
        name = model or self.default
        if name is None:
            if self._only_one is not None:
                return self._only_one
            self.refuse_early()
            raise BadRequest(f'the request names no model; say one in "model": {self.catalogue.names}')
        found = self._choices.get(name)
        if found is None:
            self._complain_of_trouble()
            raise self.not_found(name)
        return found

    def refuse_early(self) -> None:
        """Raise what every request is answered with, whatever it names: there is no model yet."""
        if not self._served and self.only is None:
            self._complain_of_trouble()
            raise ModelNotFound("there is no model yet; GET /v1/models lists those there are.")

    def not_found(self, name: str) -> ModelNotFound:
        """The error for a name that is nobody's."""
        return model_not_found(name, self.catalogue.names)

    @property
    def unread(self) -> str | None:
        """Why no model is known, if that is because the catalogue has not been read; one that was read stays good."""
        return None if len(self.catalogue) else self.trouble

    def require_read(self) -> None:
        """Raise CatalogueUnknown if no model is known, because the catalogue has not been read."""
        if self.unread is not None:
            self._complain_of_trouble()

    def _complain_of_trouble(self) -> None:
        if self.trouble is not None:
            raise CatalogueUnknown(f"the models are not known yet: {self.trouble}", retry_after_seconds=5)


def refused(key: Key, model: str | None) -> ModelForbidden:
    """The error for a key that is not for this model; None for a request that names none."""
    if model is None:
        return ModelForbidden(f'the key "{key.name}" is for some models only; say one in "model": {key.usable}')
    shown = model if len(model) <= _SHOWN_CHARACTERS else model[: _SHOWN_CHARACTERS - 1] + "…"
    return ModelForbidden(f'the key "{key.name}" may not use the model "{shown}"; it may use: {key.usable}')

"""The models that a proxy serves, each a scale target of its own, and whose a name is. Pure.

The rule: a name belongs to one model. Where two claim it the older has it, and of the younger the claim is told as a
clash; so what a new model says never takes a caller away from one that runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from vllm_chill.core.phrases import listed
from vllm_chill.core.target import TargetRef

SERVICE_PORT = 80
"""The port of the Service that a model's workload has."""

_SHOWN_MODELS = 20


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter: the name that requests call it by, and where its weights are, as vLLM's `lora_path`."""

    name: str
    path: str


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model of the catalogue, as far as requests and scaling have to know it.

    `name` is that of its object, `served` the name that requests say, `model` what the engine loads. `group`: at most
    one of a group is awake at a time. `gpus` are those of one replica, taken from `pool`. `loads_adapters`: an adapter
    is loaded when it is first asked for, rather than with the engine. `max_num_seqs` is how many requests one replica
    works on at a time. `created` orders the claims for a name, oldest first. None stands for what the proxy's own
    settings say; an `idle_seconds` of infinity never sleeps. `facts` are what else its object says and is only shown,
    under the object's own names: maxModelLen, toolCallParser, reasoningParser.
    """

    name: str
    ref: TargetRef
    served: str
    model: str
    aliases: tuple[str, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    loads_adapters: bool = False
    group: str | None = None
    gpus: int = 1
    pool: str = ""
    idle_seconds: float | None = None
    wake_seconds: float | None = None
    min_replicas: int = 0
    max_replicas: int = 1
    rewrites_tool_calls: bool = False
    max_num_seqs: int | None = None
    created: str = ""
    facts: Mapping[str, object] = field(default_factory=dict, hash=False)

    @property
    def names(self) -> tuple[str, ...]:
        """What requests may call it, its served name first."""
        return tuple(dict.fromkeys((self.served, *self.aliases, *(adapter.name for adapter in self.adapters))))

    def adapter(self, name: str) -> Adapter | None:
        """The adapter of this name."""
        return next((adapter for adapter in self.adapters if adapter.name == name), None)


@dataclass(frozen=True, slots=True)
class Clash:
    """A name that a model claims, and that an older model has."""

    name: str
    claimed_by: str
    owner: str


class Catalogue:
    """All models, oldest first. `clashes` are the claims that came too late."""

    __slots__ = ("_by_name", "clashes", "entries")

    def __init__(self, entries: Iterable[ModelEntry] = ()) -> None:
        self.entries = tuple(sorted(entries, key=lambda entry: (entry.created, entry.name)))
        self._by_name: dict[str, ModelEntry] = {}
        clashes = []
        for entry in self.entries:
            for name in entry.names:
                owner = self._by_name.setdefault(name, entry)
                if owner is not entry:
                    clashes.append(Clash(name, entry.name, owner.name))
        # An object's own name is good too, where no model is served under it.
        for entry in self.entries:
            self._by_name.setdefault(entry.name, entry)
        self.clashes = tuple(clashes)

    def __iter__(self) -> Iterator[ModelEntry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def find(self, name: str) -> ModelEntry | None:
        """Whose name this is: a served name, an alias, an adapter's, or else an object's own."""
        return self._by_name.get(name)

    def by_name(self) -> Iterable[tuple[str, ModelEntry]]:
        """Every name, and whose it is."""
        return self._by_name.items()

    def names_of(self, entry: ModelEntry) -> tuple[str, ...]:
        """The names that lead to this model, its served name first unless that is another's; its object's own last."""
        names = (*entry.names, entry.name)
        return tuple(dict.fromkeys(name for name in names if self._owner(name) == entry.name))

    def _owner(self, name: str) -> str | None:
        found = self._by_name.get(name)
        return None if found is None else found.name

    @property
    def names(self) -> str:
        """The served names, for a sentence."""
        return listed([entry.served for entry in self.entries], _SHOWN_MODELS)

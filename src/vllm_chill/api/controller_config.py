"""What the controller of variants is configured by, as one value, and asked by model.

The rule: layers. What an entry does not say is as the layer below it has it: the built-in defaults, `default`, the
entry of the model, that of the model in its namespace; and over all of these the same of the namespace's own
ConfigMap.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from vllm_chill.api.spec_parts import Part
from vllm_chill.api.variant_entries import (
    ClassEntry,
    MainSettings,
    ModelEntry,
    PriceEntry,
    SaturationEntry,
    ZeroEntry,
)
from vllm_chill.core.saturation.config import DEFAULT, Analyzer, Config
from vllm_chill.core.saturation.fleet import Zero
from vllm_chill.core.saturation.spec import VariantSpec

DEFAULT_COST = 10.0
"""What a replica costs that nothing is said of."""
DEFAULT_PRIORITY = 100
"""That of a model which is in no service class: after all that are, as llm-d's class Free."""
DEFAULT_KEY = "default"
"""The key of the entry that is about all models."""
Entry = TypeVar("Entry", bound=Part)
Model = TypeVar("Model", bound=ModelEntry)
Entries = Mapping[str, Mapping[str, Entry]]
"""Entries by the namespace whose own they are, "" for those of all, and by their key."""


@dataclass(frozen=True, slots=True)
class ControllerConfig:
    """What all ConfigMaps together say. `prices` and `classes` are by key; `saturation` and `zero` by the namespace
    whose own they are, "" for all, and by key.
    """

    main: MainSettings = field(default_factory=MainSettings)
    prices: Mapping[str, PriceEntry] = field(default_factory=dict)
    classes: Mapping[str, ClassEntry] = field(default_factory=dict)
    saturation: Entries[SaturationEntry] = field(default_factory=dict)
    zero: Entries[ZeroEntry] = field(default_factory=dict)

    @property
    def costs(self) -> Mapping[str, float]:
        """What one accelerator costs, by each of its names."""
        named = {price.device: price.cost for price in self.prices.values() if price.device is not None}
        return {**named, **{name: price.cost for name, price in self.prices.items()}}

    def config_for(self, namespace: str, model_id: str) -> Config:
        """What the variants of a model are scaled by."""
        return resolved(self, namespace, model_id)[0]

    def zero_for(self, namespace: str, model_id: str, *specs: VariantSpec) -> Zero:
        """Whether a model may have no replica. Its variants' own words come first: all that say something must allow
        it, and the longest period counts.
        """
        enabled, retention = self.main.scale_to_zero or False, Zero().retention_seconds
        for _, _, entry in _layers(self.zero, namespace, model_id):
            enabled = enabled if entry.enable_scale_to_zero is None else entry.enable_scale_to_zero
            retention = retention if entry.retention_period is None else entry.retention_period
        said = [spec.scale_to_zero for spec in specs if spec.scale_to_zero is not None]
        periods = [spec.retention_seconds for spec in specs if spec.retention_seconds is not None]
        return Zero(all(said) if said else enabled, max(periods, default=retention))

    def priority_of(self, namespace: str, model_id: str) -> int:
        """Whose turn it is for GPUs, lower first; service classes know models, whatever their namespace."""
        classes = (self.classes[key] for key in sorted(self.classes))
        found = (one.priority for one in classes if any(served.model == model_id for served in one.data))
        return next(found, DEFAULT_PRIORITY)

    def cost_of(self, spec: VariantSpec, accelerator: str, gpus: int = 1) -> float:
        """What one replica of a variant costs that has so many of this accelerator ("": it is not known)."""
        if spec.cost is not None:
            return spec.cost
        price = self.costs.get(accelerator)
        return DEFAULT_COST if price is None else price * max(1, gpus)


def _layers(entries: Entries[Model], namespace: str, model_id: str) -> Iterator[tuple[str, str, Model]]:
    """The entries that are about a model, with the namespace whose own they are and their key; the last one wins."""
    for owner in dict.fromkeys(("", namespace)):
        known = entries.get(owner, {})
        if DEFAULT_KEY in known:
            yield owner, DEFAULT_KEY, known[DEFAULT_KEY]
        own = [(key, entry) for key, entry in known.items() if key != DEFAULT_KEY and entry.model_id == model_id]
        yield from ((owner, key, entry) for key, entry in own if not entry.namespace)
        yield from ((owner, key, entry) for key, entry in own if entry.namespace and entry.namespace == namespace)


def resolved(made: ControllerConfig, namespace: str, model_id: str) -> tuple[Config, dict[tuple[str, str], str]]:
    """What a model is scaled by, and of each entry that does not fit what is below it, why; it is left out."""
    config, conflicts = replace(DEFAULT, enable_limiter=made.main.limited_mode or False), {}
    for owner, key, entry in _layers(made.saturation, namespace, model_id):
        over = entry.over(config)
        conflict = _conflict(over)
        if conflict is None:
            config = over
        else:
            conflicts[owner, key] = conflict
    return config, conflicts


def _conflict(config: Config) -> str | None:
    """What does not fit together; llm-d refuses the first and the last of these."""
    if config.kv_cache_threshold < config.kv_spare_trigger:
        return _less("kvCacheThreshold", config.kv_cache_threshold, "kvSpareTrigger", config.kv_spare_trigger)
    if config.queue_length_threshold < config.queue_spare_trigger:
        least = config.queue_spare_trigger
        return _less("queueLengthThreshold", config.queue_length_threshold, "queueSpareTrigger", least)
    if config.analyzer is Analyzer.SATURATION and config.scale_up_threshold <= config.scale_down_boundary:
        up, down = config.scale_up_threshold, config.scale_down_boundary
        return f"scaleUpThreshold: {up:g} is not more than the {down:g} of scaleDownBoundary; give more than that"
    return None


def _less(name: str, value: float, other: str, least: float) -> str:
    return f"{name}: {value:g} is less than the {least:g} of {other}; give at least that"


def everybody(made: ControllerConfig) -> Iterator[tuple[str, str]]:
    """A namespace and a model for each that an entry is about, and ("") one that none is about."""
    entries = [entry for known in made.saturation.values() for entry in known.values()]
    spaces = dict.fromkeys(("", *made.saturation, *(entry.namespace or "" for entry in entries)))
    models = dict.fromkeys(("", *(entry.model_id or "" for entry in entries)))
    return ((namespace, model_id) for namespace in spaces for model_id in models)

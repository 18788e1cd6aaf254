"""A model's variants as values: their objects, targets and pods, with what was measured of them, put together.

The rule: it is put together at one moment, from what is known at that moment. Only what no source tells again is
remembered: how much a replica of a variant takes on, since when a model is seen, and when it was woken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from vllm_chill.api.controller_config import ControllerConfig
from vllm_chill.control.loads import LoadCollector
from vllm_chill.control.variant_sources import VariantSource
from vllm_chill.core.saturation.fleet import Fleet, Variant
from vllm_chill.core.saturation.gpus import accelerator_name
from vllm_chill.core.saturation.places import PodPlace
from vllm_chill.core.saturation.spec import VariantSpec
from vllm_chill.core.saturation.targets import TargetFacts

Held = Callable[[str, VariantSpec], float | None]
"""How many requests wait for a target in this very process, by its namespace; None where it is not served here."""


@dataclass(frozen=True, slots=True)
class Member:
    """A variant of a model that is being looked at: its object, what that asks for, and its target, None if it is not
    there. `taken_by` is the variant that scales the target instead.
    """

    source: VariantSource
    spec: VariantSpec
    target: TargetFacts | None
    taken_by: str | None = None

    @property
    def ready(self) -> tuple[PodPlace, ...]:
        """Where the target's ready pods are."""
        return () if self.target is None else self.target.ready_places


@dataclass(slots=True)
class _Life:
    """What is remembered of a model: since when it is seen, when it was used last, and when it was woken."""

    seen_at: float
    active_at: float
    woken_at: float | None = None
    was_at_zero: bool = False


class Fleets:
    """The fleets of all models. `now` is in seconds on the clock of the loads."""

    def __init__(self, loads: LoadCollector, held_here: Held, now: Callable[[], float]) -> None:
        self._loads = loads
        self._held_here = held_here
        self._now = now
        self._lives: dict[str, _Life] = {}
        self._tokens: dict[str, float] = {}

    def forget(self, model: str) -> None:
        """Take that no variant serves a model any more."""
        self._lives.pop(model, None)

    def forget_variant(self, key: str) -> None:
        """Take that a variant is gone."""
        self._tokens.pop(key, None)

    def fleet(
        self, model: str, namespace: str, model_id: str, members: Sequence[Member], configs: ControllerConfig
    ) -> Fleet:
        """What is known of a model, of which these are the variants whose targets are there."""
        now = self._now()
        life = self._lives.setdefault(model, _Life(now, now))
        variants = self._weighed(members, [self._variant(member, configs) for member in members])
        at_zero = not any(variant.replicas for variant in variants)
        if life.was_at_zero and not at_zero:
            life.woken_at = now
        life.was_at_zero = at_zero
        held = self._held(namespace, model_id, members)
        if held:
            life.active_at = now
        active = [self._loads.active_at(namespace, member.ready) for member in members]
        # Of a pod that is gone nothing is known any more.
        life.active_at = max(life.active_at, *(at for at in active if at is not None), life.seen_at)
        return Fleet(
            namespace,
            model_id,
            variants,
            held=held,
            active_at=life.active_at,
            woken_at=life.seen_at if life.woken_at is None else life.woken_at,
            zero=configs.zero_for(namespace, model_id, *(member.spec for member in members)),
            priority=configs.priority_of(namespace, model_id),
        )

    def _variant(self, member: Member, configs: ControllerConfig) -> Variant:
        spec, target = member.spec, member.target
        assert target is not None
        accelerator = accelerator_of(spec, target)
        return Variant(
            key=spec.name,
            cost=configs.cost_of(
                spec, spec.accelerator if spec.accelerator in configs.costs else accelerator, target.gpus
            ),
            accelerator=accelerator,
            replicas=target.replicas,
            ready=len(member.ready),
            min_replicas=spec.min_replicas,
            max_replicas=spec.max_replicas,
            gpus=target.gpus,
            loads=self._loads.loads(spec.namespace, member.ready),
            unplaced=target.unplaced,
        )

    def _weighed(self, members: Sequence[Member], variants: Sequence[Variant]) -> tuple[Variant, ...]:
        """The variants with what a replica of each takes on: as many times what the smallest does as its KV cache has
        room for tokens, where that is known of all of them; one each where it is not.
        """
        for member, variant in zip(members, variants, strict=True):
            tokens = [load.cache_tokens for load in variant.loads if load.cache_tokens]
            if tokens:
                self._tokens[member.source.key] = median(tokens)
        known = [self._tokens[member.source.key] for member in members if member.source.key in self._tokens]
        if len(known) < len(members) or not known:
            return tuple(variants)
        least = min(known)
        return tuple(replace(variant, capacity=tokens / least) for variant, tokens in zip(variants, known, strict=True))

    def _held(self, namespace: str, model_id: str, members: Iterable[Member]) -> float | None:
        found = [self._loads.held(model_id)]
        for member in members:
            here = self._held_here(namespace, member.spec)
            found.append(self._loads.held_by_target(namespace, member.spec.target.name) if here is None else here)
        known = [held for held in found if held is not None]
        return sum(known) if known else None


def accelerator_of(spec: VariantSpec, target: TargetFacts) -> str:
    """What its replicas run on, by its short name: as its label says, else as their nodes do, else the first of its
    profile.
    """
    profile = spec.accelerators[0][0] if spec.accelerators else ""
    return accelerator_name(spec.accelerator) or target.accelerator or accelerator_name(profile)

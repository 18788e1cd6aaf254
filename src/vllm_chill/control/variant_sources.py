"""VariantAutoscaling objects, read: what each asks for, and what is wrong with it.

The rule: what cannot be used leaves the last version that could, and says everything that is wrong with it. An object
that was made anew has no earlier version, and one that is another controller's is not there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import structlog

from vllm_chill.api.kinds import VARIANT
from vllm_chill.api.variant import INSTANCE_LABEL, parse_variant, spec_of
from vllm_chill.core.objects import Collection, Json, labels_of, metadata
from vllm_chill.core.saturation.spec import VariantSpec
from vllm_chill.errors import InvalidVariant


def variants_of(namespace: str | None) -> Collection:
    """The collection of the variants in a namespace, or (None) in all."""
    absent = "install it: vllm-chill crd | kubectl apply -f -"
    return Collection(VARIANT.api_version, VARIANT.kind, VARIANT.plural, namespace, absent=absent)


@dataclass(slots=True)
class VariantSource:
    """One object. `good` is the last version that could be used, None if there was none; `problems` are those of the
    version that there is.
    """

    item: Json
    good: VariantSpec | None = None
    problems: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """NAMESPACE/NAME."""
        return f"{self.namespace}/{self.name}"

    @property
    def namespace(self) -> str:
        """The object's namespace."""
        return str(metadata(self.item).get("namespace") or "")

    @property
    def name(self) -> str:
        """The object's name."""
        return str(metadata(self.item)["name"])

    @property
    def created(self) -> str:
        """When the object was made; sorts by age."""
        return str(metadata(self.item).get("creationTimestamp") or "")

    @property
    def uid(self) -> str:
        """What no other object has, of this name or another."""
        return str(metadata(self.item).get("uid") or "")

    @property
    def about(self) -> Json:
        """The object as events are about it: what a server lists does not say its kind."""
        return {"apiVersion": VARIANT.api_version, "kind": VARIANT.kind, **self.item}

    @property
    def decided(self) -> int | None:
        """How many replicas were decided last, as the object's status says, by whomever; None if it does not."""
        told = ((self.item.get("status") or {}).get("desiredOptimizedAlloc") or {}).get("numReplicas")
        return told if isinstance(told, int) else None

    def is_as(self, other: VariantSource) -> bool:
        """Whether another version of it asks for the same: a status that is written changes nothing of it."""
        if self.item is other.item:
            return True
        return metadata(self.item).get("generation") == metadata(other.item).get("generation") and labels_of(
            self.item
        ) == labels_of(other.item)

    def read(self) -> None:
        """Take what the object asks for."""
        try:
            self.good, self.problems = spec_of(parse_variant(self.item)), ()
        except InvalidVariant as error:
            self.problems = error.problems


class VariantSources(Mapping[str, VariantSource]):
    """All variants that are this controller's, by NAMESPACE/NAME. `instance` is the controller's; "": all variants
    are.
    """

    def __init__(self, instance: str = "") -> None:
        self._instance = instance
        self._by_key: dict[str, VariantSource] = {}
        self._seen: Mapping[str, Json] = {}
        self._log = structlog.get_logger("vllm_chill.variants")

    def __getitem__(self, key: str) -> VariantSource:
        return self._by_key[key]

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._by_key))

    def __len__(self) -> int:
        return len(self._by_key)

    def take(self, objects: Mapping[str, Json]) -> frozenset[str]:
        """Take all objects that there are. The keys of those that came, went, or ask for something else than before."""
        before, self._seen = self._seen, dict(objects)
        # Nearly always it is one that has changed, of many.
        sources = [VariantSource(item) for place, item in objects.items() if before.get(place) is not item]
        changed = {source.key for source in sources if self._take_one(source.key, source)}
        for place in before.keys() - objects.keys():
            key = VariantSource(before[place]).key
            if self._by_key.pop(key, None) is not None:
                changed.add(key)
        return frozenset(changed)

    def _take_one(self, key: str, source: VariantSource) -> bool:
        """Take an object that may have changed; whether it came, went, or asks for something else than before."""
        if self._instance and labels_of(source.item).get(INSTANCE_LABEL) != self._instance:
            return self._by_key.pop(key, None) is not None
        known = self._by_key.get(key)
        if known is not None and known.uid == source.uid:
            if known.is_as(source):
                known.item = source.item
                return False
            source.good = known.good
        source.read()
        self._by_key[key] = source
        if source.problems:
            self._log.warning("variant is not accepted", variant=key, problems=list(source.problems))
        return True

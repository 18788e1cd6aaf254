"""Which variants are of which model, and which have which target: looked up, so that a look at a model costs what its
own variants do and not what all of them do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from vllm_chill.core.saturation.spec import VariantSpec


class _Target(NamedTuple):
    namespace: str
    kind: str
    name: str


class VariantIndex:
    """Variants by their keys, NAMESPACE/NAME. Invariant: under its model and its target there is each that was put and
    not dropped, and a model or a target without any is not there.
    """

    def __init__(self) -> None:
        self._placed: dict[str, tuple[str, _Target]] = {}
        self._by_model: dict[str, dict[str, None]] = {}
        self._by_target: dict[_Target, dict[str, None]] = {}

    @property
    def models(self) -> tuple[str, ...]:
        """All models that a variant is of."""
        return tuple(self._by_model)

    def put(self, key: str, model: str, spec: VariantSpec) -> None:
        """Take what a variant is of now."""
        self.drop(key)
        target = _Target(spec.namespace, spec.target.kind, spec.target.name)
        self._placed[key] = model, target
        self._by_model.setdefault(model, {})[key] = None
        self._by_target.setdefault(target, {})[key] = None

    def drop(self, key: str) -> None:
        """Take that a variant is of nothing any more."""
        if key not in self._placed:
            return
        model, target = self._placed.pop(key)
        del self._by_model[model][key]
        del self._by_target[target][key]
        if not self._by_model[model]:
            del self._by_model[model]
        if not self._by_target[target]:
            del self._by_target[target]

    def model_of(self, key: str) -> str | None:
        """The model that a variant is of; None for one that is of nothing."""
        placed = self._placed.get(key)
        return None if placed is None else placed[0]

    def of_model(self, model: str) -> Iterable[str]:
        """The variants of a model."""
        return tuple(self._by_model.get(model, ()))

    def of_target(self, namespace: str, kind: str, name: str) -> Iterable[str]:
        """The variants whose target is called so."""
        return tuple(self._by_target.get(_Target(namespace, kind, name), ()))

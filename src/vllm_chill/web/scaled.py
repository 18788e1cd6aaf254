"""The targets whose replicas are told of: those that requests go to, and those that are only scaled."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from vllm_chill.core.scaling.decision import Decision
from vllm_chill.core.scaling.figures import measured_replicas
from vllm_chill.core.scaling.override import Override
from vllm_chill.core.scaling.policy import Policy
from vllm_chill.core.scaling.signals import ReplicaReading, Sample, Signal
from vllm_chill.core.target import Replica, Target
from vllm_chill.errors import BadRequest
from vllm_chill.proxy.served import Directory, Served
from vllm_chill.web.targets import chosen, name_of


class Controlled(Protocol):
    """A target as its controller has it."""

    @property
    def target(self) -> Target: ...
    @property
    def observe_only(self) -> bool: ...
    def now(self) -> float: ...


class Measures(Protocol):
    """What is measured of one target (control.meter.Meter)."""

    def members(self, signals: Collection[Signal]) -> Sequence[ReplicaReading]: ...
    def of_target(self, signals: Collection[Signal]) -> Mapping[Signal, Sample]: ...


class Scaler(Protocol):
    """Whoever decides how many replicas one target has (control.autoscaler.Autoscaler)."""

    @property
    def controller(self) -> Controlled: ...
    @property
    def meter(self) -> Measures: ...
    @property
    def policy(self) -> Policy | None: ...
    @property
    def decision(self) -> Decision | None: ...
    @property
    def override(self) -> Override | None: ...
    @property
    def conflict(self) -> str | None: ...

    def adjust(self, replicas: int, by: str, ttl_seconds: float) -> Override:
        """Have so many replicas for so long. Raises BadRequest for a number outside of the bounds."""

    def release(self) -> None:
        """End what was set by hand."""


@dataclass(frozen=True, slots=True, eq=False)
class Scaled:
    """One target. `scaler` is None where nothing measures and scales it, `served` where no request goes to it through
    this proxy; `model` is what requests call it.
    """

    name: str
    controller: Controlled
    scaler: Scaler | None
    served: Served | None = None
    model: str | None = None

    @property
    def members(self) -> tuple[Replica, ...]:
        """Its replicas, one by one, as they are measured."""
        return measured_replicas(self.controller.target)

    @property
    def names(self) -> tuple[str, ...]:
        """What it is called in full: as it is told here, and as NAMESPACE/NAME."""
        return (self.name, str(self.controller.target.ref))


class ScaledTargets:
    """Every target of one proxy; `scalers` are by the name of their target."""

    def __init__(self, directory: Directory, scalers: Mapping[str, Scaler]) -> None:
        self._directory = directory
        self._scalers = scalers

    def __iter__(self) -> Iterator[Scaled]:
        served = {one.name: one for one in self._directory}
        for one in served.values():
            yield self._of(one)
        for name, scaler in self._scalers.items():
            if name not in served:
                yield Scaled(name, scaler.controller, scaler)

    def every(self) -> tuple[Scaled, ...]:
        """All of them. Raises CatalogueUnknown."""
        self._directory.require_read()
        return tuple(self)

    def meant(self, name: str | None) -> Scaled:
        """The target of a model's name, or of its own, in full or without its namespace; None: that of requests which
        name none.

        Raises BadRequest where one has to be named, or several are called so, ModelNotFound, and CatalogueUnknown.
        """
        served = None
        if name is not None and self._directory.only is None:
            served = self._directory.find(name)
        if name is not None and served is None and (found := self._called(name)) is not None:
            return found
        return self._of(served or chosen(self._directory, name, field="model"))

    def _called(self, name: str) -> Scaled | None:
        every = tuple(self)
        found = [one for one in every if name in one.names]
        found = found or [one for one in every if name == one.controller.target.ref.name]
        if len(found) > 1:
            which = ", ".join(str(one.controller.target.ref) for one in found)
            raise BadRequest(f'{len(found)} targets are called "{name}"; say which one is meant: {which}')
        return found[0] if found else None

    def _of(self, served: Served) -> Scaled:
        model = None if served.entry is None else name_of(self._directory, served)
        return Scaled(served.name, served.controller, self._scalers.get(served.name), served, model)

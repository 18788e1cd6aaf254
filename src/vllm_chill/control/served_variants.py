"""Variants whose targets a proxy serves: it holds their requests and wakes them, so zero is its own.

The rule: a target has one who decides on it. Where a scaling policy does, a variant only tells.
"""

from __future__ import annotations

from vllm_chill.control.autoscaler import Autoscaler, Autoscalers
from vllm_chill.control.variants import Actuator
from vllm_chill.core.saturation.spec import VariantSpec
from vllm_chill.core.target import TargetRef

_SOURCE = "variant"


class ServedVariants:
    """control.variants.Actuator of a proxy; `other` has the targets that it does not serve."""

    def __init__(self, autoscalers: Autoscalers, other: Actuator) -> None:
        self._autoscalers = autoscalers
        self._other = other

    def have(self, ref: TargetRef, replicas: int) -> str | None:
        """Have a target have so many. Why it is not done, as a clause; None if it is."""
        scaler = self._scaler(ref)
        if scaler is not None and scaler.policy is not None:
            self.leave(ref)
            return f"{scaler.source or scaler.policy.name} scales it"
        if scaler is None or not scaler.fronted:
            return self._other.have(ref, replicas)
        # Asleep it is until a request comes: to sleep and to wake is the proxy's.
        scaler.controller.recommend(_SOURCE, replicas or None)
        return None

    def leave(self, ref: TargetRef) -> None:
        """Scale a target no longer; it stays as it is."""
        scaler = self._scaler(ref)
        if scaler is not None and scaler.fronted:
            scaler.controller.recommend(_SOURCE, None)
        self._other.leave(ref)

    def held(self, namespace: str, spec: VariantSpec) -> float | None:
        """How many requests wait here for a variant's target; None where it is not served here."""
        for scaler in self._autoscalers.values():
            ref = scaler.controller.target.ref
            named = (ref.namespace, ref.resource.kind, ref.name) == (namespace, spec.target.kind, spec.target.name)
            if scaler.fronted and named:
                return float(scaler.controller.target.waiting)
        return None

    def _scaler(self, ref: TargetRef) -> Autoscaler | None:
        return next((one for one in self._autoscalers.values() if one.controller.target.ref == ref), None)

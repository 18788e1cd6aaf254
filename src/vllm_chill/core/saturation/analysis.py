"""What an analyzer says of a model: capacity that is lacking, and that could go. Values.

The rule: an analyzer never says replicas. Capacity is counted in `Variant.capacity`, where a plain replica has 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class VariantAnalysis:
    """One variant: `saturation` is the mean of its replicas', 0 to 1 (None: nothing is known), and `overloaded` and
    `underused` are the names of those above and below the thresholds.
    """

    saturation: float | None = None
    overloaded: tuple[str, ...] = ()
    underused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Analysis:
    """A model: `required` is the capacity that is to be added to what is there and on its way, and `spare` the one that
    could go; no more than one of them is above 0. `saturation` is the mean over all replicas.

    `reason` is a clause for people, with the figures. `measured`: anything is known at all; `complete`: every ready
    replica has told something that is fresh, as it must be before anything may shrink.
    """

    required: float
    spare: float
    reason: str
    saturation: float | None = None
    slack: float = 0.0
    """What the replicas could still take on before they are saturated, in capacity."""
    variants: Mapping[str, VariantAnalysis] = field(default_factory=dict)
    measured: bool = True
    complete: bool = True

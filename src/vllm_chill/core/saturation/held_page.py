"""A /metrics page, read for who waits before any replica has them: that of a vllm-chill proxy, or of an endpoint
picker. Pure.

The rule: what is not told is not there. Of a queue that is told in parts, such as one for each priority, the parts are
summed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from vllm_chill.core.engine_page import LABEL, number

_NAMES = (b"vllm_chill_requests_waiting", b"inference_extension_flow_control_queue_size")


@dataclass(frozen=True, slots=True)
class HeldSample:
    """How many requests wait: by model id, and by NAMESPACE/NAME of the target."""

    by_model: Mapping[str, float] = field(default_factory=dict)
    by_target: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def summed(cls, samples: Sequence[HeldSample]) -> HeldSample:
        """What several pages say together."""
        return cls(_sum(sample.by_model for sample in samples), _sum(sample.by_target for sample in samples))


def held_sample(page: bytes) -> HeldSample:
    """What a whole page says."""
    by_model: dict[str, float] = {}
    by_target: dict[str, float] = {}
    for line in page.split(b"\n"):
        if not line.startswith(_NAMES):
            continue
        name, _, rest = line.partition(b"{")
        labels, _, said = rest.rpartition(b"}")
        value = number(said)
        if value is None:
            continue
        told = {key: _text(text) for key, text in LABEL.findall(labels)}
        match name.rstrip():
            case b"vllm_chill_requests_waiting":
                _add(by_target, _target(told.get(b"target", "")), value)
            case b"inference_extension_flow_control_queue_size":
                # A request that no rewrite was made for says only what its caller asked for.
                _add(by_model, told.get(b"target_model_name") or told.get(b"model_name", ""), value)
    return HeldSample(by_model, by_target)


def _add(held: dict[str, float], key: str, value: float) -> None:
    if key:
        held[key] = held.get(key, 0.0) + value


def _sum(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    held: dict[str, float] = {}
    for part in parts:
        for key, value in part.items():
            _add(held, key, value)
    return held


def _target(said: str) -> str:
    """A target's NAMESPACE/NAME; before that of anything but a Deployment stands its kind."""
    return said.rpartition(" ")[2]


def _text(label: bytes) -> str:
    escaped = label.decode(errors="replace").split("\\\\")
    return "\\".join(part.replace('\\"', '"').replace("\\n", "\n") for part in escaped)

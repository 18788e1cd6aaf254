"""What of the settings is needed once they have been read: their values, and what the values of two of them mean.

The rule: no pydantic here. It reads settings well and takes 10 MB, so `serve` has them read by a process of their own,
which hands over plain values and ends.
"""

from __future__ import annotations

import os
import pickle
import re
from collections import namedtuple
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from vllm_chill.settings.serve import Settings

RELOADABLE = frozenset(
    {
        "idle_timeout",
        "wake_timeout",
        "start_timeout",
        "drain_timeout",
        "shutdown_delay",
        "max_waiting",
        "max_in_flight",
        "hold_body_budget",
        "hold_heartbeat_after",
        "hold_heartbeat",
        "hold_json",
        "fairness_header",
        "priority_keys",
        "wake_abandoned",
        "gpu_hour_price",
        "currency",
        "log_level",
    }
)
"""What may change while a proxy runs. What is added here is to be taken from app.reload.Reloads by who uses it."""

_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-_\[\]:]+")


def handed(settings: Settings, command: tuple[str, ...]) -> bytes:
    """What `serve` is asked to do as bytes, for `taken`."""
    names = (*type(settings).model_fields, "model_fields_set")
    return pickle.dumps(({name: getattr(settings, name) for name in names}, command))


def taken(text: bytes) -> tuple[Settings, tuple[str, ...]]:
    """What was handed over: the settings' values under their names, with which of them were given, and the command."""
    values, command = pickle.loads(text)  # noqa: S301 - our own, through a pipe that nobody else has
    return cast("Settings", namedtuple("Settings", values)(**values)), command  # noqa: PYI024 - it has those of Settings


def with_values(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """The settings with other values under some of their names."""
    replaced = getattr(settings, "_replace", None)  # of what was handed over
    return settings.model_copy(update=dict(values)) if replaced is None else cast("Settings", replaced(**values))


def differing(before: Settings, after: Settings, names: Iterable[str]) -> dict[str, Any]:
    """The values that are other ones than before, by name."""
    return {name: value for name in names if (value := getattr(after, name)) != getattr(before, name)}


def names_of(settings: Settings) -> tuple[str, ...]:
    """The names of all settings."""
    fields = getattr(settings, "_fields", None)
    names = type(settings).model_fields if fields is None else fields
    return tuple(name for name in names if name != "model_fields_set")


def service_link() -> str | None:
    """The value of VLLM_PORT where Kubernetes wrote it for a Service called `vllm` (`tcp://10.0.0.1:80`)."""
    value = os.environ.get("VLLM_PORT", "")
    return value if re.fullmatch(r"(tcp|udp|sctp)://.*", value) else None


def parse_controllers(value: str) -> frozenset[str]:
    """The names of the controllers in a setting. Raises ValueError for one that there is not."""
    names = frozenset(name.strip() for name in value.split(",") if name.strip())
    if names == {"none"}:
        return frozenset()
    if not names or not names <= {"policies", "variants"}:
        raise ValueError("not names of controllers")
    return names


def parse_origins(value: str) -> frozenset[str]:
    """The origins in a setting. Raises ValueError for what is none."""
    origins = frozenset(origin.strip() for origin in value.split(",") if origin.strip())
    if not origins or not all(origin == "*" or _ORIGIN.fullmatch(origin) for origin in origins):
        raise ValueError("not origins")
    return origins

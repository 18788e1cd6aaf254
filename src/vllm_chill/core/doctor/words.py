"""What the sentences of several checks have in common. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from vllm_chill.core.cold_start import duration
from vllm_chill.core.objects import Json, metadata


def names_of(items: Iterable[Json]) -> list[str]:
    """The objects' names, sorted."""
    return sorted(str(metadata(item).get("name") or "") for item in items)


def similar(name: str, names: Iterable[str]) -> list[str]:
    """The names that somebody may have meant: those like it, and those that it is a part of."""
    known = sorted(set(names))
    close = get_close_matches(name, known, n=3, cutoff=0.6)
    parts = [one for one in known if name in one or one in name]
    return list(dict.fromkeys([*close, *parts]))[:3]


def labels_text(labels: Mapping[str, str]) -> str:
    """Labels as a selector has them."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items())) or "no labels"


def span(seconds: float) -> str:
    """A time as a setting has it."""
    return duration(seconds)

"""The ConfigMaps of the controller of variants, read into a ControllerConfig.

The rule: what cannot be used is told, and what was last good in its place stays, so that nobody's mistake changes how
anything is scaled. What is not known is told and ignored, and everything else counts.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from vllm_chill.api.controller_config import (
    DEFAULT_KEY,
    ControllerConfig,
    Entry,
    Model,
    everybody,
    resolved,
)
from vllm_chill.api.resource import problems_of, unknown_fields, without_nulls
from vllm_chill.api.spec_parts import Part, fields_of
from vllm_chill.api.variant_entries import (
    ClassEntry,
    MainSettings,
    ModelEntry,
    PriceEntry,
    SaturationEntry,
    ZeroEntry,
)
from vllm_chill.api.vllm_values import nearest
from vllm_chill.api.yaml_text import plain_value
from vllm_chill.core.objects import Json, metadata

__all__ = ["NAMES", "ControllerConfig", "Problem", "Role", "by_place", "place_of", "read_configs"]

FILE_KEY = "config.yaml"
"""The one key of llm-d's main ConfigMap, which has all others in it."""


class Role(enum.StrEnum):
    """What a ConfigMap is for."""

    MAIN = "main"
    SATURATION = "saturation"
    ZERO = "zero"
    COSTS = "costs"
    CLASSES = "classes"


NAMES: Mapping[Role, tuple[str, ...]] = {
    Role.MAIN: ("wva-configmap", "wva-variantautoscaling-config"),
    Role.SATURATION: ("saturation-scaling-config", "wva-saturation-scaling-config", "capacity-scaling-config"),
    Role.ZERO: ("wva-model-scale-to-zero-config",),
    Role.COSTS: ("accelerator-costs",),
    Role.CLASSES: ("service-class-config", "service-classes-config"),
}
"""What the ConfigMap of each role is called; where several are there, the first of them counts."""
LOCAL = (Role.SATURATION, Role.ZERO)
"""The roles that a namespace can have a ConfigMap of its own for."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one key of a ConfigMap, in words that say what to give; `key` is "" for all of it.

    `place` is that of the ConfigMap in `read_configs`. A `warning` is about what is not known, and ignored; everything
    else about the key counts.
    """

    place: str
    key: str
    text: str
    warning: bool = False

    def __str__(self) -> str:
        return f"{self.key}: {self.text}" if self.key else self.text


def place_of(role: Role, namespace: str = "") -> str:
    """Where `read_configs` takes the ConfigMap of a role from: that of a namespace, or ("") the one for all."""
    return f"{role}/{namespace}" if namespace else str(role)


def by_place(
    items: Iterable[Json], home: str, names: Mapping[Role, Sequence[str]] = NAMES
) -> tuple[dict[str, Json], tuple[Problem, ...]]:
    """The ConfigMaps among `items` that play a role, by their place. Those in the namespace `home` are for all; those
    in other namespaces are these namespaces' own. A second one for the same place is told.
    """
    found: dict[str, Json] = {}
    problems = []
    named = {(metadata(item).get("namespace", ""), metadata(item).get("name", "")): item for item in items}
    for role, called in names.items():
        for name in called:
            for namespace in sorted({space for space, known in named if known == name}):
                if namespace != home and role not in LOCAL:
                    continue
                place = place_of(role, "" if namespace == home else namespace)
                item = named[namespace, name]
                first = found.setdefault(place, item)
                if first is not item:
                    text = f"{name} is ignored, as {metadata(first)['name']} is there too; delete one of them"
                    problems.append(Problem(place, "", text, warning=True))
    return found, tuple(problems)


def read_configs(
    maps: Mapping[str, Json], before: ControllerConfig | None = None
) -> tuple[ControllerConfig, tuple[Problem, ...]]:
    """What the ConfigMaps say, each at the place of its role (`place_of`), and all that is wrong with them.

    `before` is what was read last: a key that cannot be used has what it had there. A key that is gone is gone.
    """
    before = before or ControllerConfig()
    problems: list[Problem] = []
    saturation: dict[str, Mapping[str, SaturationEntry]] = {}
    zero: dict[str, Mapping[str, ZeroEntry]] = {}
    for place, item in maps.items():
        role, _, namespace = place.partition("/")
        data = item.get("data") or {}
        if role == Role.SATURATION:
            last = before.saturation.get(namespace, {})
            saturation[namespace] = _model_entries(place, data, SaturationEntry, last, problems)
        elif role == Role.ZERO:
            zero[namespace] = _model_entries(place, data, ZeroEntry, before.zero.get(namespace, {}), problems)
    made = ControllerConfig(
        main=_main(_data(maps, Role.MAIN), before.main, problems),
        prices=_entries(Role.COSTS, _data(maps, Role.COSTS), PriceEntry, before.prices, problems),
        classes=_entries(Role.CLASSES, _data(maps, Role.CLASSES), ClassEntry, before.classes, problems),
        saturation=saturation,
        zero=zero,
    )
    problems += _classed_twice(made.classes)
    return _without_conflicts(made, before, problems), tuple(problems)


def _data(maps: Mapping[str, Json], role: Role) -> Mapping[str, str]:
    return (maps.get(role) or {}).get("data") or {}


def _without_conflicts(made: ControllerConfig, before: ControllerConfig, problems: list[Problem]) -> ControllerConfig:
    """The configuration in which an entry that does not fit is what it last was; a first one is left as it is, and
    does not count for the models for which it does not fit.
    """
    conflicts: dict[tuple[str, str], str] = {}
    for namespace, model_id in everybody(made):
        for at, words in resolved(made, namespace, model_id)[1].items():
            conflicts.setdefault(at, words)
    saturation = {owner: dict(entries) for owner, entries in made.saturation.items()}
    for (owner, key), words in conflicts.items():
        entry = saturation[owner][key]
        last: SaturationEntry = before.saturation.get(owner, {}).get(key, entry)
        saturation[owner][key] = last
        problems.append(Problem(place_of(Role.SATURATION, owner), key, f"{words}; {_instead(last != entry)}"))
    return replace(made, saturation=saturation)


# --- one ConfigMap ---


def _model_entries(
    place: str, data: Mapping[str, str], kind: type[Model], before: Mapping[str, Model], problems: list[Problem]
) -> dict[str, Model]:
    entries = _entries(place, data, kind, before, problems)
    first: dict[tuple[str | None, str | None], str] = {}
    for key in sorted(entries.keys() - {DEFAULT_KEY}):
        one = entries[key].model_id, entries[key].namespace or None
        if first.setdefault(one, key) != key:
            problems.append(Problem(place, key, f"it is about the same as {first[one]}, which counts; delete one"))
            del entries[key]
    return entries


def _entries(
    place: str, data: Mapping[str, str], kind: type[Entry], before: Mapping[str, Entry], problems: list[Problem]
) -> dict[str, Entry]:
    """The entries of a ConfigMap; one that cannot be used is what it was before."""
    entries = {}
    for key, text in data.items():
        try:
            given = _given(key, text, kind)
            entries[key] = kind.model_validate(given)
        except ValidationError as error:
            words = "; ".join(dict.fromkeys(problems_of(error, kind, given)))
        except ValueError as error:
            words = str(error)
        else:
            words = _misplaced(place, key, entries[key])
            unknown = "; ".join((*unknown_fields(given, kind), *_ignored(key, entries[key])))
            if unknown:
                problems.append(Problem(place, key, unknown, warning=True))
        if words:
            entries.pop(key, None)
            if key in before:
                entries[key] = before[key]
            problems.append(Problem(place, key, f"{words}; {_instead(key in before)}"))
    return entries


def _instead(kept: bool) -> str:
    return "what it was before stays in force" if kept else "until then it does not count"


def _given(key: str, text: str, kind: type[Part]) -> Mapping[str, Any]:
    """What a key stands for: a mapping of the fields of `kind`. Raises ValueError with a clause."""
    match without_nulls(plain_value(text)):
        case None:
            return {}
        case dict() as given:
            return given
        case (int() | float() | str()) as cost if kind is PriceEntry:
            return {"cost": cost}
        case _ if key in fields_of(kind):
            raise ValueError(f"it stands by itself; put it into a key, as {DEFAULT_KEY}: '{key}: …'")
        case _:
            known = ", ".join(list(fields_of(kind))[:3])
            raise ValueError(f"it is no mapping; give {known} and so on with their values")


def _misplaced(place: str, key: str, entry: Part) -> str:
    """Why an entry cannot be where it is; empty if it can."""
    if not isinstance(entry, ModelEntry) or key == DEFAULT_KEY:
        return ""
    if not entry.model_id:
        return f"model_id: it is missing; give the model's name, or call the key {DEFAULT_KEY} for all models"
    own = place.partition("/")[2]
    if own and entry.namespace and entry.namespace != own:
        return f"namespace: {entry.namespace} is another than that of the ConfigMap; leave it out, or give {own}"
    return ""


def _ignored(key: str, entry: Part) -> Iterator[str]:
    if isinstance(entry, ModelEntry) and key == DEFAULT_KEY and (entry.model_id or entry.namespace):
        yield f"model_id, namespace: they are ignored, as {DEFAULT_KEY} is about all models; give it another key"


def _classed_twice(classes: Mapping[str, ClassEntry]) -> Iterator[Problem]:
    first: dict[str, str] = {}
    for key in sorted(classes):
        for served in classes[key].data:
            if first.setdefault(served.model, key) != key:
                text = f"data: {served.model} is in {first[served.model]} too, which counts; delete one"
                yield Problem(Role.CLASSES, key, text)


# --- the main ConfigMap ---

_SETTINGS = fields_of(MainSettings)
_FRESH, _GONE = "PROMETHEUS_METRICS_CACHE_FRESH_THRESHOLD", "PROMETHEUS_METRICS_CACHE_UNAVAILABLE_THRESHOLD"
_FRESH_SECONDS, _GONE_SECONDS = 60.0, 300.0  # where nothing is given


def _main(data: Mapping[str, str], before: MainSettings, problems: list[Problem]) -> MainSettings:
    """The settings of the main ConfigMap; each one that cannot be used is what it was before."""
    last = before.model_dump(by_alias=True, exclude_none=True)
    settings: dict[str, Any] = {}
    for key, value in {**_of_file(data, last, problems), **data}.items():
        if key == FILE_KEY:
            continue
        if key not in _SETTINGS:
            told = f"there is no such key, and it is ignored{nearest(key, tuple(_SETTINGS))}"
            problems.append(Problem(Role.MAIN, key, told, warning=True))
            continue
        given = {key: None if value == "" else value}
        try:
            checked = MainSettings.model_validate(given)
        except ValidationError as error:
            [words] = problems_of(error, MainSettings, given)
            problems.append(Problem(Role.MAIN, key, f"{words.removeprefix(f'{key}: ')}; {_instead(key in last)}"))
            settings |= {key: last[key]} if key in last else {}
        else:
            settings |= checked.model_dump(by_alias=True, exclude_none=True)
    return _in_order(MainSettings.model_validate(settings), before, problems)


def _of_file(data: Mapping[str, str], last: Mapping[str, Any], problems: list[Problem]) -> Mapping[str, Any]:
    if FILE_KEY not in data:
        return {}
    try:
        return _given(FILE_KEY, data[FILE_KEY], MainSettings)
    except ValueError as error:
        problems.append(Problem(Role.MAIN, FILE_KEY, f"{error}; {_instead(bool(last))}"))
        return last


def _in_order(made: MainSettings, before: MainSettings, problems: list[Problem]) -> MainSettings:
    fresh, gone = made.fresh_seconds or _FRESH_SECONDS, made.gone_seconds or _GONE_SECONDS
    if fresh <= gone:
        return made
    kept = {"fresh_seconds": before.fresh_seconds, "gone_seconds": before.gone_seconds}
    words = f"{fresh:g} seconds are more than the {gone:g} of {_GONE}; give at most that"
    problems.append(Problem(Role.MAIN, _FRESH, f"{words}; {_instead(kept=any(kept.values()))}"))
    return made.model_copy(update=kept)

"""An object of a custom resource, read from what the API server, a file or a person gives.

The rule: an object is taken whole, or refused with a sentence for each thing that is wrong with it. What the proxy
itself wrote into the status never makes an object unusable.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self, TypeVar, get_args, get_origin

from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from vllm_chill.api.spec_parts import Part, accepts_of, declared, fields_of, part_of
from vllm_chill.api.spec_types import ObjectName
from vllm_chill.api.vllm_values import nearest
from vllm_chill.errors import InvalidObject

_SHOWN_CHARACTERS = 100
_Location = tuple[int | str, ...]


class Metadata(Part):
    """The parts of Kubernetes' metadata that matter here; only the name must be there."""

    name: ObjectName = declared(..., "a name of lower-case letters, digits, - and .", "Name of the object.")
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None


class Condition(Part):
    """One thing that is so or not, as Kubernetes' conditions have it."""

    type: str = declared(..., "a word", "What it is about, such as Ready.")
    status: str = declared(..., "True, False or Unknown", "True, False or Unknown.")
    reason: str = declared("", "a word", "Why, in one word for programs.")
    message: str = declared("", "a text", "Why, in words.")
    last_transition_time: str | None = declared(None, "a time", "Since when its status is what it is.")
    observed_generation: int | None = declared(None, "a number", "The generation of the spec that it is about.")


class Conflict(NamedTuple):
    """What is wrong with `path`, in words, as long as the `fields` of the part are themselves good. The path goes on
    from the part's own; empty for the part as a whole.
    """

    path: str
    words: str
    fields: tuple[str, ...]

    def below(self, place: str) -> str:
        """The sentence, for a part that is at `place`."""
        return f"{_joined(place, self.path)}: {self.words}"


class Checked(Part):
    """A part whose fields, each good by itself, may not fit together."""

    STAND_INS: ClassVar[Mapping[str, Any]] = {}
    """Good values of the fields that must be there, so that the others can be checked without them."""

    def conflicts(self) -> Iterable[Conflict]:
        """Everything that no field can know by itself."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        found = tuple(self.conflicts())
        if found:
            raise PydanticCustomError("conflicts", "fields do not fit together", {"conflicts": found})
        return self


class Resource(Part):
    """An object with metadata, spec and status."""

    API_VERSION: ClassVar[str]
    KIND: ClassVar[str]
    INVALID: ClassVar[type[InvalidObject]]

    metadata: Metadata = declared(..., "at least {name: NAME}", "Kubernetes' metadata.")

    @property
    def name(self) -> str:
        """The name of the object."""
        return self.metadata.name


_Resource = TypeVar("_Resource", bound=Resource)


def read_resource(kind: type[_Resource], obj: Mapping[str, Any], also: Iterable[str] = ()) -> _Resource:
    """The resource of an object; `apiVersion` and `kind` may be left out, and fields that are not known are let go.
    `also` are problems that the kind knows of by itself.

    Raises the kind's own InvalidObject with a sentence for everything that is wrong with it.
    """
    problems = list(_other_kind(kind, obj))
    given = {key: value for key in ("metadata", "spec") if (value := without_nulls(obj.get(key))) is not None}
    try:
        resource = kind.model_validate(given)
    except ValidationError as error:
        problems += problems_of(error, kind, given)
    problems += also
    if problems:
        raise kind.INVALID(_name_of(obj), tuple(dict.fromkeys(problems)))
    return resource.model_copy(update={"status": _status(kind, obj.get("status"))})


def without_nulls(value: Any) -> Any:
    """The value without fields that are null, which are fields that are left out, as to the API server."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _name_of(obj: Mapping[str, Any]) -> str:
    metadata = obj.get("metadata")
    return str(metadata.get("name", "")) if isinstance(metadata, Mapping) else ""


def _other_kind(kind: type[Resource], obj: Mapping[str, Any]) -> Iterator[str]:
    for key, known in (("apiVersion", kind.API_VERSION), ("kind", kind.KIND)):
        if obj.get(key, known) != known:
            yield f"{key}: {shown(obj[key])} is not accepted; give {known}"


def _status(kind: type[Resource], value: object) -> Part:
    part = part_of(kind.model_fields["status"].annotation)
    assert part is not None
    try:
        return part.model_validate(without_nulls(value) or {})
    except ValidationError:
        return part()


# --- problems ---


def problems_of(error: ValidationError, part: type[Part], given: Any) -> Iterator[str]:
    """A sentence for everything that is wrong with `given`, which is no such part as the error says."""
    bad: dict[_Location, set[str]] = {}
    details = error.errors(include_url=False)
    for detail in details:
        location = detail["loc"]
        if detail["type"] == "too_short" and any(_is_below(location, other["loc"]) for other in details):
            continue  # pydantic counts good items only
        place, _ = _place(part, location)
        if detail["type"] == "conflicts":
            yield from (found.below(place) for found in detail["ctx"]["conflicts"])
        else:
            yield _sentence(part, detail)
        for outer in _checked_above(part, location):
            bad.setdefault(outer, set()).add(str(location[len(outer)]))
    for outer, fields in bad.items():
        place, _ = _place(part, outer)
        yield from (found.below(place) for found in _other_conflicts(*_at(part, given, outer), fields))


def _is_below(above: _Location, location: _Location) -> bool:
    return len(location) > len(above) and location[: len(above)] == above


def _checked_above(part: type[Part], location: _Location) -> Iterator[_Location]:
    """Where the parts are that have this location in them, and whose fields must fit together."""
    inner: type[Part] | None = part
    for index, step in enumerate(location):
        if isinstance(step, int):
            continue
        if inner is None:
            return
        if issubclass(inner, Checked):
            yield location[:index]
        field = fields_of(inner).get(step)
        inner = None if field is None else part_of(field.annotation)


def _at(part: type[Part], given: Any, location: _Location) -> tuple[type[Part], Any]:
    for step in location:
        given = given[step]
        if isinstance(step, str):
            inner = part_of(fields_of(part)[step].annotation)
            assert inner is not None
            part = inner
    return part, given


def _other_conflicts(part: type[Part], given: Mapping[str, Any], bad: set[str]) -> Iterator[Conflict]:
    """What does not fit together among the fields that are good by themselves."""
    assert issubclass(part, Checked)
    good = {key: value for key, value in given.items() if key not in bad}
    try:
        part.model_validate({**part.STAND_INS, **good})
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            if detail["type"] == "conflicts":
                found: Sequence[Conflict] = detail["ctx"]["conflicts"]
                yield from (one for one in found if not bad & set(one.fields))


def _sentence(part: type[Part], detail: ErrorDetails) -> str:
    path, accepts = _place(part, detail["loc"])
    if detail["type"] == "missing":
        return f"{path}: it is missing; give {accepts}"
    return f"{path}: {shown(detail['input'])} is not accepted; give {accepts}"


def _place(part: type[Part], location: _Location) -> tuple[str, str]:
    """Where it is, such as spec.env[0].name, and what is accepted there."""
    path, accepts = "", "another value"
    inner: type[Part] | None = part
    keyed = False
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
            continue
        if inner is None and not keyed:
            break  # pydantic's name for a type
        path = _joined(path, step)
        field = None if inner is None else fields_of(inner).get(step)
        if field is None:
            break  # a key of a mapping
        accepts, inner, keyed = accepts_of(field), part_of(field.annotation), _is_mapping(field.annotation)
    return path, accepts


def _is_mapping(annotation: Any) -> bool:
    return get_origin(annotation) is dict or any(map(_is_mapping, get_args(annotation)))


def _joined(place: str, path: str) -> str:
    return f"{place}.{path}" if place and path and not path.startswith("[") else place + path


def shown(value: object) -> str:
    """A value as a sentence has it."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


# --- warnings ---


def unknown_fields(given: object, part: type[Part], path: str = "") -> Iterator[str]:
    """A sentence for each field of an object that there is not."""
    if not isinstance(given, Mapping):
        return
    fields = fields_of(part)
    if issubclass(part, Resource):
        given = {key: given[key] for key in ("spec",) if key in given}
    for key, value in given.items():
        place = _joined(path, str(key))
        field = fields.get(key)
        if field is None:
            yield f"{place}: there is no such field, and it is ignored{nearest(str(key), tuple(fields))}"
            continue
        inner = part_of(field.annotation)
        if inner is None:
            continue
        if isinstance(value, list):
            for index, item in enumerate(value):
                yield from unknown_fields(item, inner, f"{place}[{index}]")
        else:
            yield from unknown_fields(value, inner, place)

"""The file of API keys, read once into keys.

The rule: a file is taken whole, or refused with a sentence for each thing that is wrong with it; and no sentence says
what stands where a key's hash is to be, as that may be the key itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from vllm_chill.core.admission import Priority
from vllm_chill.core.keys import HASHED, Key, Keys
from vllm_chill.core.rate import RateLimit
from vllm_chill.errors import InvalidKeys

_SHAPE = 'give "keys:" with a list, as `vllm-chill keys new NAME` prints it'
_HASH = "give sha256:HEX, which `printf %s KEY | sha256sum` prints the HEX of"
_PRIORITIES = {"high": Priority.HIGH, "normal": Priority.NORMAL, "low": Priority.LOW}


class KeyEntry(BaseModel):
    """One key, as the file has it."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, hide_input_in_errors=True)

    name: Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}$")] = Field(
        json_schema_extra={"accepts": "1 to 63 letters, digits, ., _, @ and -, of which the first is a letter or digit"}
    )
    key: Annotated[str, Field(strict=True, pattern=rf"^{HASHED.pattern}$")] = Field(
        json_schema_extra={"accepts": _HASH.removeprefix("give ")}
    )
    models: list[Annotated[str, Field(strict=True, min_length=1, max_length=256)]] | None = Field(
        None, json_schema_extra={"accepts": 'a list of names, in which * is any text, such as [qwen, "llama-*"]'}
    )
    priority: Literal["high", "normal", "low"] = Field("normal", json_schema_extra={"accepts": "high, normal or low"})
    requests_per_minute: Annotated[int, Field(strict=True, ge=1, le=10_000_000)] | None = Field(
        None, json_schema_extra={"accepts": "a number from 1 to 10000000"}
    )
    burst: Annotated[int, Field(strict=True, ge=1, le=10_000_000)] | None = Field(
        None, json_schema_extra={"accepts": "a number from 1 to 10000000"}
    )
    admin: bool = Field(False, strict=True, json_schema_extra={"accepts": "true or false"})


def read_keys(text: str) -> Keys:
    """The keys in the file. Raises InvalidKeys."""
    problems: list[str] = []
    keys: list[Key] = []
    for place, entry in enumerate(_entries(text), start=1):
        who = _who(entry, place)
        try:
            keys.append(_key(KeyEntry.model_validate(entry)))
        except ValidationError as error:
            problems += [f"{who}: {complaint}" for complaint in _complaints(error)]
        else:
            if entry.get("burst") is not None and keys[-1].rate is None:
                problems.append(f"{who}: burst: it is of no use alone; give requestsPerMinute too")
    problems += _doubles(keys)
    if problems:
        raise InvalidKeys(tuple(problems))
    return Keys(keys)


def _entries(text: str) -> Iterator[Mapping[str, Any]]:
    try:
        document = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        # Where, and not what: the message may quote the line.
        where = "" if error.problem_mark is None else f" (line {error.problem_mark.line + 1})"
        raise InvalidKeys((f"this is not YAML{where}; {_SHAPE}",)) from None
    except (yaml.YAMLError, RecursionError):
        raise InvalidKeys((f"this is not YAML; {_SHAPE}",)) from None
    found = document.get("keys") if isinstance(document, dict) and set(document) == {"keys"} else None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise InvalidKeys((_SHAPE,))
    yield from found


def _key(entry: KeyEntry) -> Key:
    per_minute = entry.requests_per_minute
    return Key(
        entry.name,
        bytes.fromhex(entry.key.partition(":")[2]),
        None if entry.models is None else tuple(entry.models),
        _PRIORITIES[entry.priority],
        None if per_minute is None else RateLimit(per_minute, entry.burst or per_minute),
        entry.admin,
    )


def _who(entry: Mapping[str, Any], place: int) -> str:
    name = entry.get("name")
    valid = isinstance(name, str) and len(name) <= 63 and name.isascii() and name.isprintable()
    return f'the key "{name}"' if valid else f"key number {place}"


def _complaints(error: ValidationError) -> Iterator[str]:
    fields = {field.alias or name: field for name, field in KeyEntry.model_fields.items()}
    said: set[str] = set()
    for one in error.errors(include_url=False, include_input=False, include_context=False):
        name = str(one["loc"][0])
        field = fields.get(name)
        if field is None:
            yield f"it has a field that is not known; known: {', '.join(fields)}"
        elif name not in said:
            said.add(name)
            assert isinstance(field.json_schema_extra, dict)
            missing = " is missing" if one["type"] == "missing" else ""
            plain = " is no hash" if name == "key" and not missing else ""
            yield f"{name}{missing or plain}: give {field.json_schema_extra['accepts']}"


def _doubles(keys: list[Key]) -> Iterator[str]:
    names: set[str] = set()
    digests: dict[bytes, str] = {}
    for key in keys:
        if key.name in names:
            yield f'there are two keys "{key.name}"; give each a name of its own'
        elif key.digest in digests:
            yield f'"{digests[key.digest]}" and "{key.name}" are the same key; make another one for either'
        names.add(key.name)
        digests.setdefault(key.digest, key.name)

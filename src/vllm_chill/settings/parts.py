"""What every settings class is made of: durations, sizes and names as people write them, and how they are read.

The rule: a flag wins over the environment, an empty variable is unset, and a value that cannot be used becomes
one sentence that names the setting, the value and what is accepted. The command line and the reference page
are made from these fields.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

import durationpy
from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from vllm_chill.errors import SettingError

_LONGEST = timedelta(days=365)


def _duration(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    try:
        duration: timedelta = durationpy.from_str(str(value).strip())
    except (ValueError, OverflowError):
        raise ValueError("not a duration") from None
    return duration


def _above_zero(value: timedelta) -> timedelta:
    if not timedelta(0) < value <= _LONGEST:
        raise ValueError("out of range")
    return value


def _zero_or_more(value: timedelta) -> timedelta:
    if not timedelta(0) <= value <= _LONGEST:
        raise ValueError("out of range")
    return value


_BYTES: TypeAdapter[ByteSize] = TypeAdapter(ByteSize)


def _size(value: object) -> int:
    text = str(value).strip()
    return int(_BYTES.validate_python(f"{text}B" if re.search(r"[kKMGT]i$", text) else text))


def matches(pattern: str) -> AfterValidator:
    """A text that this pattern matches as a whole."""
    compiled = re.compile(pattern)

    def check(value: str) -> str:
        if not compiled.fullmatch(value):
            raise ValueError("does not match")
        return value

    return AfterValidator(check)


_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"

PositiveDuration = Annotated[timedelta, BeforeValidator(_duration), AfterValidator(_above_zero)]
Duration = Annotated[timedelta, BeforeValidator(_duration), AfterValidator(_zero_or_more)]
Size = Annotated[int, BeforeValidator(_size), Field(ge=0, le=1 << 40)]
Label = Annotated[str, matches(_LABEL)]
Subdomain = Annotated[str, Field(max_length=253), matches(rf"{_LABEL}(?:\.{_LABEL})*")]
_NAME_OR_IPV4 = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9.])?"
_IPV6 = r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*"
Host = Annotated[str, Field(max_length=253), matches(rf"{_NAME_OR_IPV4}|{_IPV6}")]
Url = Annotated[str, matches(r"https?://[!-~]+")]
UrlPath = Annotated[str, matches(r"/[!-~]*")]

DURATION = "a duration above zero, such as 5m or 1h30m"
ANY_DURATION = "a duration of zero or more, such as 30s or 10m"
PORT = "a port from 1 to 65535"
HOST = "a host name or an IP address, without scheme and port"


def setting(default: Any, env: str, group: str, accepts: str, description: str) -> Any:
    """A field of a settings class: default, environment variable, the heading it is under, what it accepts and does."""
    return Field(
        default,
        validation_alias=env,
        description=description,
        json_schema_extra={"group": group, "accepts": accepts},
    )


# What every program has.
LOG_FORMAT = setting("console", "LOG_FORMAT", "Logging", "console or json", "How log lines look.")
LOG_LEVEL = setting("info", "LOG_LEVEL", "Logging", "debug, info, warning or error", "The least level that is logged.")


class Declared(BaseSettings):
    """Settings that are declared field by field with `setting`."""

    model_config = SettingsConfigDict(case_sensitive=True, env_ignore_empty=True, frozen=True, extra="ignore")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the base class's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the base class's signature
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is given, then the environment; nothing else."""
        return init_settings, cls.environment(settings_cls, env_settings)

    @classmethod
    def environment(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - for who overrides it
        found: PydanticBaseSettingsSource,
    ) -> PydanticBaseSettingsSource:
        """Where the environment's values come from."""
        return found


def flag_of(name: str) -> str:
    """The flag of a field: `idle_timeout` is `--idle-timeout`."""
    return "--" + name.replace("_", "-")


def env_of(field: FieldInfo) -> str:
    """The environment variable of a field."""
    assert isinstance(field.validation_alias, str)
    return field.validation_alias


def extra_of(field: FieldInfo, key: Literal["group", "accepts"]) -> str:
    """What a field says of itself besides its description."""
    assert isinstance(field.json_schema_extra, dict)
    return str(field.json_schema_extra[key])


def default_text(field: FieldInfo) -> str:
    """The default as a user would write it; empty if there is none."""
    match field.default:
        case None:
            return ""
        case bool():
            return str(field.default).lower()
        case timedelta():
            return str(durationpy.to_str(field.default))
        case int() if field.metadata and field.default and field.default % (1 << 20) == 0:
            return f"{field.default >> 20}Mi"
        case _:
            return str(field.default)


_Kind = TypeVar("_Kind", bound=Declared)


@dataclass(frozen=True, slots=True)
class Given:
    """A value that is given as text, and what its place is called, for a complaint."""

    text: str
    where: str


def load(
    kind: type[_Kind],
    flags: Mapping[str, str],
    file: Mapping[str, Given] = MappingProxyType({}),
    ignored: Collection[str] = (),
) -> _Kind:
    """The settings of a class from flags, the environment and a file, of which each wins over those after it; flags and
    file are by the names of the fields. Variables that are `ignored` are not there.

    Raises SettingError with one line for each value that cannot be used.
    """
    there = {name for name, field in kind.model_fields.items() if os.environ.get(env_of(field))}
    there -= {name for name in there if env_of(kind.model_fields[name]) in ignored}
    given = {name: one for name, one in file.items() if name not in there}
    given |= {name: Given(text, flag_of(name)) for name, text in flags.items()}
    try:
        values: dict[str, Any] = {env_of(kind.model_fields[name]): one.text for name, one in given.items()}
        return kind(**values)
    except ValidationError as error:
        raise SettingError("\n".join(_complaint(kind, dict(e), given) for e in error.errors())) from None


def _complaint(kind: type[Declared], error: dict[str, Any], given: Mapping[str, Given]) -> str:
    env = str(error["loc"][0])
    name, field = next((n, f) for n, f in kind.model_fields.items() if env_of(f) == env)
    setting = given[name].where if name in given else env
    return f"{setting}: {json.dumps(str(error['input']))} is not accepted; give {extra_of(field, 'accepts')}"

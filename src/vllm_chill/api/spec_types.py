"""The types of the fields of our resources: what each accepts, the same for pydantic and in a CRD's OpenAPI schema.

The rule: the schema is never stricter than the type, so that what the API server lets in can be refused here with a
sentence, and what is good here is never turned away there.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any

import durationpy
from pydantic import AfterValidator, Field, Strict, WithJsonSchema

_LONGEST = timedelta(days=365)
_MOST = 2**31 - 1
_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_LABEL_VALUE = r"[A-Za-z0-9]([-A-Za-z0-9._]{0,61}[A-Za-z0-9])?"


def seconds(duration: str) -> float:
    """A duration such as 90s or 1h30m in seconds."""
    return float(durationpy.from_str(duration).total_seconds())


def interval_seconds(interval: int | str) -> float:
    """A number of seconds, or a duration such as 90s, in seconds."""
    return float(interval) if isinstance(interval, int) else seconds(interval)


def _in_range(text: str) -> str:
    if not 0 < seconds(text) <= _LONGEST.total_seconds():
        raise ValueError("out of range")
    return text


def _never(pattern: str) -> tuple[Any, AfterValidator]:
    # OpenAPI knows no look-ahead, and `not` serves as well.
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        if compiled.search(text):
            raise ValueError("not allowed")
        return text

    return Field(json_schema_extra={"not": {"pattern": pattern}}), AfterValidator(check)


# Each of these flags has a field of its own, is what the proxy counts on, or is a secret that would be seen in the pod.
_TAKEN = r"^--(model|served[-_]model[-_]name|port|uds|api[-_]key|hf[-_]token)(=|$)"
# Two words in one item, which vLLM would take for one flag with a space in its name.
_TWO_WORDS = r"^--[A-Za-z][^=\s]*\s"
DURATION = r"^([0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h|d))+$"
_QUANTITY = r"^[0-9]+(\.[0-9]*)?([numkMGTPE]|[KMGTPE]i|[eE][0-9]{1,2})?$"

Count = Annotated[int, Strict(), Field(ge=1, le=_MOST)]
CountOrZero = Annotated[int, Strict(), Field(ge=0, le=_MOST)]
Number = Annotated[float, Strict()]
Switch = Annotated[bool, Strict()]
Name = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[^\s-]\S*$")]
Path = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\s-]\S*$")]
AbsolutePath = Annotated[str, Field(max_length=1024, pattern=r"^/\S*$")]
Word = Annotated[str, Field(max_length=100, pattern=r"^([A-Za-z0-9][A-Za-z0-9._+-]*)?$")]
Text = Annotated[str, Field(max_length=100_000, pattern=r"^($|[^-])")]
Argument = Annotated[str, Field(min_length=1, max_length=100_000), *_never(f"{_TAKEN}|{_TWO_WORDS}")]
Duration = Annotated[
    str,
    Field(max_length=40, pattern=DURATION),
    *_never(r"^[^1-9]*$"),  # no digit but 0
    AfterValidator(_in_range),
]
Size = Annotated[str, Field(max_length=40, pattern=r"^[1-9][0-9]{0,17}(\.[0-9]{1,9})?([kMGTP]|[KMGTP]i)?$")]
ObjectName = Annotated[str, Field(max_length=253, pattern=rf"^{_LABEL}(\.{_LABEL})*$")]
SecretKeyName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
LabelValue = Annotated[str, Field(max_length=63, pattern=rf"^({_LABEL_VALUE})?$")]
Group = Annotated[str, Field(min_length=1, max_length=63, pattern=rf"^{_LABEL_VALUE}$")]
ResourceName = Annotated[str, Field(min_length=1, max_length=253, pattern=rf"^([a-z0-9][-a-z0-9.]*/)?{_LABEL_VALUE}$")]
VariableName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$")]
Quantity = Annotated[
    Annotated[int, Strict(), Field(ge=0)] | Annotated[str, Field(max_length=40, pattern=_QUANTITY)],
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "minimum": 0,
            "maxLength": 40,
            "pattern": _QUANTITY,
        }
    ),
]
Interval = Annotated[
    Annotated[int, Strict(), Field(ge=1, le=int(_LONGEST.total_seconds()))] | Duration,
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "minimum": 1,
            "maximum": int(_LONGEST.total_seconds()),
            "maxLength": 40,
            "pattern": DURATION,
            "allOf": [{"pattern": "[1-9]"}],
        }
    ),
]
"""A number of seconds, or a duration."""
Shape = Annotated[
    dict[str, Any],
    Field(max_length=1000),
    WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
]
"""What Kubernetes has a shape for that is passed on as it is, and checked by the API server only."""

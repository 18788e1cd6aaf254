"""A short text of YAML, of which JSON is a part, as plain values.

The rule: whoever may write such a text may not stop who reads it: how long and how deep it may be is bounded, and it
has no references, by which a short text can stand for a very long one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

MOST_CHARACTERS = 64 * 1024
_DEEPEST = 20


def plain_value(text: str) -> Any:
    """What the text stands for: mappings with texts for keys, lists, texts, numbers, true, false and null.

    Raises ValueError with a clause that says what is wrong, and has no value of the text in it.
    """
    import yaml  # what never reads any need not have it in memory

    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"it is longer than {MOST_CHARACTERS >> 10} KiB")
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        trouble = _trouble(yaml.parse(text, Loader=loader))
        value = None if trouble else yaml.load(text, Loader=loader)  # noqa: S506 (both of them are safe)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        raise ValueError(f"it is not YAML{line}: {error.problem or error.context}") from None
    except yaml.YAMLError:
        raise ValueError("it is not YAML: it has characters that YAML does not know") from None
    except (ValueError, OverflowError):
        raise ValueError("it has a date that there is not, or a number that is too long; put it in quotes") from None
    if trouble:
        raise ValueError(trouble)
    return _plain(value)


def _trouble(events: Iterable[Any]) -> str | None:
    from yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

    depth = 0
    for event in events:
        if isinstance(event, AliasEvent):
            return "it has a reference such as *name; write out what it stands for"
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > _DEEPEST:
            return f"it is more than {_DEEPEST} levels deep"
    return None


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | set():
            return [_plain(item) for item in value]
        case None | bool() | int() | float() | str():
            return value
        case _:
            return str(value)  # a date

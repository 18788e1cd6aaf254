"""A file of settings: YAML, in which each has the name of its flag without the dashes in front, as vLLM's own has.

The rule: a file is taken whole, or refused with a sentence for each thing that is wrong in it, and with what was
probably meant. Values are read as they are written, as those of flags are: `on` is no truth value here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from vllm_chill.adapters.followed_file import FollowedFile
from vllm_chill.errors import SettingError
from vllm_chill.settings.parts import Declared, Given, flag_of

FLAG = "--config-file"
_SHAPE = "give settings with their values, such as idle-timeout: 10m"
_NULL = "tag:yaml.org,2002:null"
_SHOWN = 60


def read_config(path: Path, kind: type[Declared]) -> dict[str, Given]:
    """What a file gives, by the names of the fields. Raises SettingError with one line for each thing that is wrong."""
    file = FollowedFile(path, FLAG)
    found: dict[str, Given] = {}
    problems: list[str] = []
    names = {flag_of(name).removeprefix("--"): name for name in kind.model_fields if flag_of(name) != FLAG}
    for line, key, node in _settings(file):
        name = names.get(key)
        text = _text(node)
        if name is None:
            problems.append(f"{file.name}: line {line}: {_unknown(key, list(names))}")
        elif text is None:
            problems.append(f"{file.name}: line {line}: {key}: give one value, or a list of values")
        elif name in found:
            problems.append(f"{file.name}: line {line}: {key} is given twice; leave one of them out")
        elif node.tag != _NULL:
            found[name] = Given(text, f"{file.name}: {key}")
    if problems:
        raise SettingError("\n".join(problems))
    return found


def _settings(file: FollowedFile) -> Iterator[tuple[int, str, Any]]:
    """The keys, each with its line and the node of its value. Raises SettingError."""
    try:
        root = yaml.compose(file.read(), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        raise SettingError(f"{file.name}: it is not YAML{line}: {error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError):
        raise SettingError(f"{file.name}: it is not YAML; {_SHAPE}") from None
    if root is None or root.tag == _NULL:
        return
    if not isinstance(root, yaml.MappingNode):
        raise SettingError(f"{file.name}: {_SHAPE}")
    for key, value in root.value:
        yield key.start_mark.line + 1, str(key.value)[:_SHOWN] if isinstance(key, yaml.ScalarNode) else "", value


def _text(node: Any) -> str | None:
    """The value as a flag would have it, a list with commas; None for what is neither."""
    match node:
        case yaml.ScalarNode(value=str() as value):
            return value
        case yaml.SequenceNode(value=items) if all(isinstance(item, yaml.ScalarNode) for item in items):
            return ",".join(item.value for item in items)
        case _:
            return None


def _unknown(key: str, known: list[str]) -> str:
    meant = difflib.get_close_matches(key.replace("_", "-").lower().lstrip("-"), known, n=1)
    hint = f"did you mean {meant[0]}?" if meant else "docs/configuration.md has those there are"
    return f'"{key}" is no setting; {hint}'

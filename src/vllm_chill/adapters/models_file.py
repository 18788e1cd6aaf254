"""Models as commands of this machine, from a YAML file: VLLMModel's spec, and `command` where vLLM's own is not enough.

The rule: a file is taken whole, or refused with a sentence for each thing that is wrong in it; and what it says reads
the same as in a cluster, so that a model can move from the one to the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vllm_chill.api.engine_args import engine_args
from vllm_chill.api.vllm_model import KIND, VLLMModel, entry_of, parse_model, warnings
from vllm_chill.core.catalogue import ModelEntry
from vllm_chill.core.target import TargetRef
from vllm_chill.errors import InvalidModel, SettingError

_MOST_BYTES = 4 << 20
_PORT = "{port}"
_SHAPE = 'give "models:" with a mapping of names to what each is, such as modelName and command'


@dataclass(frozen=True, slots=True)
class FileModel:
    """One model: what requests know of it, the command that serves it with `{port}` for its port, and what is added
    to the command's environment.
    """

    entry: ModelEntry
    command: tuple[str, ...]
    environment: Mapping[str, str]


def read_models(
    path: Path, *, gpu_count: int, cpu_offload_gb: float, warn: Callable[[str], None] = lambda _: None
) -> list[FileModel]:
    """The models of a file; `warn` is told of what may be a mistake. The numbers are those of the settings, for models
    that do not say.

    Raises SettingError with one line for each thing that is wrong.
    """
    problems: list[str] = []
    models: list[FileModel] = []
    for order, (name, spec) in enumerate(_specs(path)):
        try:
            model, command = _parsed(name, spec)
        except InvalidModel as invalid:
            problems += [f"--models {path}: {invalid.name or name}: {problem}" for problem in invalid.problems]
            continue
        for warning in warnings(model, {"spec": {k: v for k, v in spec.items() if k != "command"}}):
            if not warning.startswith("spec.cache:"):  # what is downloaded stays on this machine anyway
                warn(f"--models {path}: {name}: {warning}")
        argv = command or _vllm(model, gpu_count=gpu_count, cpu_offload_gb=cpu_offload_gb)
        entry = entry_of(model, TargetRef("process", name), gpu_count=gpu_count, created=f"{order:06}")
        models.append(FileModel(entry, argv, {one.name: one.value or "" for one in model.spec.env}))
    problems += _doubles(path, models)
    if not models and not problems:
        problems = [f"--models {path}: there is no model in it; {_SHAPE}"]
    if problems:
        raise SettingError("\n".join(problems))
    return models


def _specs(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The specs by name, in the file's order: of `models:`, and of VLLMModel objects as kubectl takes them."""
    try:
        with path.expanduser().open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise SettingError(f"--models {path}: the file cannot be read: {error.strerror}") from error
    if len(text) > _MOST_BYTES:
        raise SettingError(f"--models {path}: the file is larger than {_MOST_BYTES >> 20} MiB")
    try:
        documents = list(yaml.safe_load_all(text))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingError(f"--models {path}: this is not YAML: {' '.join(str(error).split())}") from error
    for document in documents:
        if document is None:
            continue
        if isinstance(document, dict) and document.get("kind") == KIND:
            name, spec = (document.get("metadata") or {}).get("name"), document.get("spec")
            yield str(name or ""), spec if isinstance(spec, dict) else {}
            continue
        found = document.get("models") if isinstance(document, dict) else None
        if not isinstance(found, dict):
            raise SettingError(f"--models {path}: {_SHAPE}")
        for name, spec in found.items():
            yield str(name), spec if isinstance(spec, dict) else {}


def _parsed(name: str, spec: Mapping[str, Any]) -> tuple[VLLMModel, tuple[str, ...]]:
    own = {key: value for key, value in spec.items() if key != "command"}
    problems: list[str] = []
    command = spec.get("command")
    argv: tuple[str, ...] = ()
    if command is not None:
        if (
            not isinstance(command, list)
            or not command
            or not all(isinstance(one, str | int | float) for one in command)
        ):
            problems.append('spec.command: give a list of words, such as [vllm, serve, MODEL, --port, "{port}"]')
        else:
            argv = tuple(map(str, command))
            if not any(_PORT in word for word in argv):
                problems.append("spec.command: it does not say where its port goes; write {port} there, in quotes")
    try:
        model = parse_model({"metadata": {"name": name}, "spec": own})
    except InvalidModel as invalid:
        raise InvalidModel(name, (*invalid.problems, *problems)) from None
    problems += [
        f"spec.env: {one.name} has its value from a cluster; on this machine give its value, or set it for vllm-chill"
        for one in model.spec.env
        if one.value_from is not None
    ]
    if problems:
        raise InvalidModel(name, tuple(problems))
    return model, argv


def _vllm(model: VLLMModel, *, gpu_count: int, cpu_offload_gb: float) -> tuple[str, ...]:
    flag, weights, *rest = engine_args(model.spec, gpu_count=gpu_count, cpu_offload_gb=cpu_offload_gb, name=model.name)
    assert flag == "--model"
    return ("vllm", "serve", weights, "--host", "127.0.0.1", "--port", _PORT, *rest)


def _doubles(path: Path, models: list[FileModel]) -> Iterator[str]:
    owners: dict[str, str] = {}
    for model in models:
        for name in model.entry.names:
            owner = owners.setdefault(name, model.entry.name)
            if owner != model.entry.name:
                both = f"{owner} and {model.entry.name}"
                yield f'--models {path}: "{name}" is the name of both {both}; change one of them'

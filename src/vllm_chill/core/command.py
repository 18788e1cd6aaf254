"""The models that a command is going to serve, and the GPUs that it takes, read off its arguments. Pure.

The rule: only what the arguments say. What a configuration file or a variable has is not known, and then nothing is.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from functools import lru_cache

from vllm_chill.core.models import Model, Models

_SHELLS = frozenset({"sh", "bash", "dash", "ash", "zsh"})
_SHELL_SCRIPT = re.compile(r"-[a-z]*c[a-z]*")
_SEPARATORS = re.compile(r"[;&|()\n]+")
_SCRIPT_CHARACTERS = 64 * 1024
_NESTING = 3

_PARALLEL = (
    ("--tensor-parallel-size", "-tp"),
    ("--pipeline-parallel-size", "-pp"),
    ("--data-parallel-size", "-dp"),
)
"""What vLLM 0.32 multiplies (vllm/engine/arg_utils.py)."""
_SIZE = re.compile(r"[1-9][0-9]{0,3}")

_VLLM_MODULES = ("vllm.entrypoints.openai.api_server", "vllm.entrypoints.api_server")


def served_models(argv: Sequence[str]) -> Models | None:
    """The models that this command serves; None if it does not say.

    It knows vLLM's and llama.cpp's servers, behind a shell's -c too; of others it takes `--served-model-name` and
    `--model`, as what they do with another name is not known.
    """
    commands = list(_commands(argv, _NESTING))
    for read in (_vllm, _llama_cpp, _other):
        for command in commands:
            models = read(command)
            if models is not None:
                return models if models.models and not any("$" in model.id for model in models.models) else None
    return None


@lru_cache(maxsize=64)
def vllm_gpus(argv: tuple[str, ...]) -> int | None:
    """The GPUs that a vLLM which is started so takes, 1 if it does not say; None for what is no vLLM, or says it in a
    file or a variable.
    """
    for command in _commands(argv, _NESTING):
        args = _after_vllm(command)
        if args is not None:
            sizes = [_size(args, *names) for names in _PARALLEL]
            is_said = any(_flag(args, *names) for names in _PARALLEL)
            if None in sizes or (_has(args, "--config") and not is_said):
                return None
            return math.prod(size for size in sizes if size is not None)
    return None


def _size(args: Sequence[str], *names: str) -> int | None:
    """What a flag says, 1 if it is not there; None if that is no number."""
    said = _flag(args, *names)
    if not said:
        return 1
    return int(said[0]) if _SIZE.fullmatch(said[0]) else None


def _commands(argv: Sequence[str], nesting: int) -> Iterator[list[str]]:
    script = _script(argv)
    if script is None:
        yield list(argv)
    elif nesting > 0:
        for command in _split(script):
            yield from _commands(command, nesting - 1)


def _script(argv: Sequence[str]) -> str | None:
    """What a shell is told to run."""
    shell = next((at for at, word in enumerate(argv) if _base(word) in _SHELLS), None)
    if shell is None:
        return None
    for at in range(shell + 1, len(argv) - 1):
        if _SHELL_SCRIPT.fullmatch(argv[at]):
            return argv[at + 1]
    return None


def _split(script: str) -> Iterator[list[str]]:
    """The simple commands of a shell script, as far as they can be told without running it."""
    words = shlex.shlex(script[:_SCRIPT_CHARACTERS].replace("\\\n", " "), posix=True, punctuation_chars=";&|()\n")
    words.whitespace, words.whitespace_split, words.commenters = " \t\r", True, ""
    command: list[str] = []
    try:
        for word in words:
            if _SEPARATORS.fullmatch(word):
                yield command
                command = []
            else:
                command.append(word)
    except ValueError:  # a quotation that does not end
        return
    yield command


def _vllm(command: list[str]) -> Models | None:
    args = _after_vllm(command)
    if args is None:
        return None
    names = _flag(args, "--served-model-name")
    from_file = _has(args, "--config")
    if not names:
        model = [args[0]] if args and not args[0].startswith("-") else _flag(args, "--model")[:1]
        if not model or from_file:
            return Models()
        names = model
    adapters = [name for value in _flag(args, "--lora-modules") for name in _adapters(value)]
    models = tuple(Model(name) for name in dict.fromkeys(names + adapters))
    return Models(models, closed=not (from_file or _has(args, "--lora-modules") or _has(args, "--enable-lora")))


def _after_vllm(command: list[str]) -> list[str] | None:
    """The server's own arguments."""
    for at, word in enumerate(command):
        after = command[at + 1 :]
        if _base(word) == "vllm" and after[:1] == ["serve"]:
            return after[1:]
        if word == "-m" and after[:1] and after[0] in _VLLM_MODULES:
            return after[1:]
        if word.endswith("vllm/entrypoints/openai/api_server.py"):
            return after
    return None


def _adapters(value: str) -> list[str]:
    """The names in one value of --lora-modules: `name=path`, or JSON of one or several."""
    if not value.startswith(("{", "[")):
        return [value.partition("=")[0]]
    try:
        entries = json.loads(value)
    except (ValueError, RecursionError):
        return []
    entries = entries if isinstance(entries, list) else [entries]
    names = [entry.get("name") for entry in entries if isinstance(entry, dict)]
    return [name for name in names if isinstance(name, str) and name]


def _llama_cpp(command: list[str]) -> Models | None:
    at = next((at for at, word in enumerate(command) if _base(word) == "llama-server"), None)
    if at is None:
        return None
    args = command[at + 1 :]
    aliases = [name for value in _flag(args, "--alias", "-a")[:1] for name in value.split(",") if name]
    files = [_base(path) for path in _flag(args, "--model", "-m")[:1]]
    names = aliases or _flag(args, "--hf-repo", "-hf", "-hfr")[:1] or files
    return Models(tuple(Model(name) for name in names))


def _other(command: list[str]) -> Models | None:
    names = _flag(command, "--served-model-name") or _flag(command, "--model", "--model-path")[:1]
    return Models(tuple(Model(name) for name in names)) if names else None


def _flag(args: Sequence[str], *names: str) -> list[str]:
    """The values of the last of these flags, as `--flag a b` or `--flag=a`; none if it is not there."""
    values: list[str] = []
    taking = False
    for word in args:
        name, has_value, value = word.partition("=")
        if _dashed(name) in names:
            values, taking = ([value], False) if has_value else ([], True)
        elif word.startswith("-"):
            taking = False
        elif taking:
            values.append(word)
    return [value for value in values if value]


def _has(args: Sequence[str], name: str) -> bool:
    return any(_dashed(word.partition("=")[0]) == name for word in args)


def _dashed(name: str) -> str:
    """A flag as vLLM reads it, which takes underscores for dashes."""
    return name.replace("_", "-") if name.startswith("--") else name


def _base(word: str) -> str:
    return word.rpartition("/")[2]

"""A Dockerfile and its .dockerignore as values: what the tests and the run without an engine read of them.

It knows what this Dockerfile uses, and refuses what it does not know. It imports nothing but the standard library.
"""

from __future__ import annotations

import json
import re
import shlex
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_KNOWN = frozenset(
    ["FROM", "ARG", "ENV", "LABEL", "COPY", "RUN", "WORKDIR", "USER", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT", "CMD"]
)


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, its continued lines joined."""

    name: str
    value: str
    line: int

    def words(self, variables: Mapping[str, str] | None = None) -> list[str]:
        """Its words: of the exec form, or split as a shell would, without the options."""
        if self.value.startswith("["):
            return [str(word) for word in json.loads(self.value)]
        words = shlex.split(string.Template(self.value).safe_substitute(variables or {}))
        while words and words[0].startswith("--"):
            words.pop(0)
        return words

    def option(self, name: str) -> str | None:
        """The value of `--name=value`, if it is given."""
        for word in shlex.split(self.value):
            if not word.startswith("--"):
                return None
            if word.startswith(f"--{name}="):
                return word.partition("=")[2]
        return None

    def pairs(self, variables: Mapping[str, str] | None = None) -> dict[str, str]:
        """The `key=value` words of an ARG, ENV or LABEL; a key alone has no value and is left out."""
        return dict(word.split("=", 1) for word in self.words(variables) if "=" in word)


@dataclass(frozen=True, slots=True)
class Stage:
    """What one FROM begins."""

    name: str
    base: str
    instructions: tuple[Instruction, ...]

    def all_of(self, name: str) -> list[Instruction]:
        """Its instructions of one name."""
        return [instruction for instruction in self.instructions if instruction.name == name]

    def last(self, name: str) -> Instruction | None:
        """The one that counts, of those that replace each other."""
        return next(reversed(self.all_of(name)), None)


def instructions_of(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile's text."""
    found: list[Instruction] = []
    pending, began = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("#") or not (line.strip() or pending):
            continue
        began = began if pending else number
        if line.rstrip().endswith("\\"):
            pending += line.rstrip().removesuffix("\\").strip() + " "
            continue
        name, _, value = (pending + line.strip()).partition(" ")
        if name.upper() not in _KNOWN:
            raise ValueError(f"Dockerfile:{began}: {name} is not known here; known: {', '.join(sorted(_KNOWN))}")
        found.append(Instruction(name.upper(), value.strip(), began))
        pending = ""
    return found


def stages_of(text: str) -> list[Stage]:
    """The stages of a Dockerfile's text; one without a name has its number for one."""
    stages: list[Stage] = []
    for instruction in instructions_of(text):
        if instruction.name == "FROM":
            base, *rest = instruction.words()
            name = rest[1] if [word.lower() for word in rest[:1]] == ["as"] else str(len(stages))
            stages.append(Stage(name, base, ()))
        else:
            stage = stages.pop()
            stages.append(Stage(stage.name, stage.base, (*stage.instructions, instruction)))
    return stages


def _pattern(text: str) -> re.Pattern[str]:
    special = {"**/": r"(?:.*/)?", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]*\])", text.strip("/"))
    body = "".join(part if part.startswith("[") else special.get(part, re.escape(part)) for part in parts)
    return re.compile(f"{body}(?:/.*)?")


@dataclass(frozen=True, slots=True)
class Context:
    """The files that an image is built from: a folder, less what its .dockerignore leaves out."""

    root: Path
    ignore: str

    def holds(self, path: str) -> bool:
        """Whether the file is part of it. The last pattern that fits decides."""
        kept = True
        for line in self.ignore.splitlines():
            text = line.strip()
            if text and not text.startswith("#") and _pattern(text.removeprefix("!")).fullmatch(path):
                kept = text.startswith("!")
        return kept

    def files(self, source: str) -> list[str]:
        """The files of one COPY source, relative to the root."""
        start = self.root / source
        found = [start] if start.is_file() else [path for path in sorted(start.rglob("*")) if path.is_file()]
        return [name for path in found if self.holds(name := path.relative_to(self.root).as_posix())]

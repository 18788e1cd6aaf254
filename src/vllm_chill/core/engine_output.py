"""What engines write, as lines that may be shown to a person. Pure: text in, text out.

The rule: a line is text and nothing else. What a terminal would obey, or what would turn a line's letters round, is
taken out before anybody sees it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, and the cursor
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f]).*?(?:\x07|\x1b\\|\x9c|$)"  # titles, clipboards, and all that has a text
    r"|\x1b[ -/]*[0-~]"
)
# Controls but the tab; the marks that reorder text, which editors are fooled by; and those that break a line.
_CONTROLS = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\U000e0000-\U000e007f]")
_SECRET_VARIABLES = ("VLLM_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_KEY_FLAG = "--api-key"


@dataclass(frozen=True, slots=True)
class Line:
    """A line that a replica wrote. `part` says what of it, where that is not the engine as it runs now: an init
    container, or the run before.
    """

    replica: str
    text: str
    part: str = ""

    @property
    def source(self) -> str:
        """Who wrote it, in words."""
        return f"{self.replica}, {self.part}" if self.part else self.replica


def cleaned(text: str) -> str:
    """A line as text alone."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text)).rstrip()


def secrets_of(argv: Sequence[str], environment: Mapping[str, str]) -> tuple[str, ...]:
    """The secrets that a command is known to have: vLLM writes its arguments when it starts, its keys among them."""
    found = [environment[name] for name in _SECRET_VARIABLES if environment.get(name)]
    of_flag = False
    for argument in argv:
        if argument.startswith("-"):
            name, _, value = argument.partition("=")
            is_key = name.replace("_", "-") == _KEY_FLAG
            found += [value] if is_key and value else []
            of_flag = is_key and not value
        elif of_flag:
            found.append(argument)  # vLLM takes several
    return tuple(found)

"""What requests have in common that should meet at one replica: a session, or the beginning of their prompt.

The rule: a request without it is one like any other; nothing that is wrong with it is found here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from vllm_chill.core.balancing import key_of
from vllm_chill.core.prompt import prompt_start


class Asker(Protocol):
    """A request, as either lane has it. `opening` are the first bytes of its body, as far as they are here: what a
    prompt is looked for in, or more.
    """

    @property
    def opening(self) -> bytes: ...
    def field(self, name: str) -> str | None:
        """A field of its head."""


@dataclass(frozen=True, slots=True)
class Affinity:
    """What counts: the value of `header` if there is one (None: no header does), else the first `prefix_length`
    characters of the prompt (0: they do not).
    """

    header: str | None = None
    prefix_length: int = 0

    def key(self, asker: Asker, salt: int = 0) -> int | None:
        """A request's key in core.balancing, if it has one; `salt` is that of the adapter that it asks for."""
        if self.header is not None and (session := asker.field(self.header)):
            return key_of(session)
        start = prompt_start(asker.opening, self.prefix_length) if self.prefix_length else None
        return None if start is None else key_of(start, salt)

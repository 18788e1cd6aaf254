"""Secrets that must not be seen in what engines write."""

from __future__ import annotations

import re

_SHOWN = "***"


class Mask:
    """What hides secrets in a text. Invariant: what was a secret once stays one, as what was written stays written.

    What `besides` hides, now and later, this one hides too.
    """

    def __init__(self, *secrets: str, besides: Mask | None = None) -> None:
        self._besides = besides
        self._secrets: frozenset[str] = frozenset()
        self._pattern: re.Pattern[str] | None = None
        for secret in secrets:
            self.add(secret)

    def add(self, secret: str) -> None:
        """Hide this one too, from now on."""
        if not secret or secret in self._secrets:
            return
        self._secrets |= {secret}
        # The longest first: of two that begin alike the whole is to go.
        self._pattern = re.compile("|".join(map(re.escape, sorted(self._secrets, key=len, reverse=True))))

    @property
    def longest(self) -> int:
        """How many characters the longest of the secrets has."""
        own = max(map(len, self._secrets), default=0)
        return own if self._besides is None else max(own, self._besides.longest)

    def hide(self, text: str) -> str:
        """The text without the secrets."""
        if self._besides is not None:
            text = self._besides.hide(text)
        return text if self._pattern is None else self._pattern.sub(_SHOWN, text)

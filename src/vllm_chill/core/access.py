"""What is found when somebody with a token asks for something."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Granted:
    """Whose token it is may have it."""


@dataclass(frozen=True, slots=True)
class Unauthenticated:
    """Nobody knows whose token it is."""


@dataclass(frozen=True, slots=True)
class Denied:
    """It is the token of `user`, who may not have it."""

    user: str


Access = Granted | Unauthenticated | Denied

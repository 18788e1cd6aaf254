"""A bell: it tells whoever looks at the targets that now is a time to do so."""

from __future__ import annotations

from collections.abc import Callable

from vllm_chill.core.target import Endpoint, Target


class Bell:
    """ports.Recorder for all targets. `rings` is called when a phase has changed, or how far a start is; None while
    nobody looks.
    """

    def __init__(self) -> None:
        self.rings: Callable[[], None] | None = None

    def changed(self, before: Target, after: Target, now: float) -> None:
        """Ring."""
        if self.rings is not None:
            self.rings()

    def progressed(self, target: Target, now: float) -> None:
        """Ring."""
        if self.rings is not None:
            self.rings()

    def answered(self, now: float) -> None:
        """That is not worth a ring."""

    def departed(self, endpoint: Endpoint) -> None:
        """That is not worth a ring."""

    def held(self, seconds: float) -> None:
        """That is not worth a ring."""

    def scaled(self, target: Target, replicas: int, error: str | None) -> None:
        """That is not worth a ring."""

"""What is known of the target's models while it cannot be asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vllm_chill.core.command import served_models
from vllm_chill.core.models import Models, known_models, listed_models

Served = Callable[[], tuple[Sequence[str], str] | None]
"""The command that the next start runs, and a revision that is another one once its template has changed; None while
it is not known.
"""


class ModelKnowledge:
    """The models of one target. Invariant: a list that an engine gave is kept for as long as the template is the one
    that the engine was started from.
    """

    def __init__(self, served: Served = lambda: None) -> None:
        self._served = served
        self._listed: Models | None = None
        self._listed_at: str | None = None
        self._argv: tuple[str, ...] = ()
        self._started: Models | None = None

    def listed(self, body: bytes) -> None:
        """Take an engine's answer to GET /v1/models; what is no list of models is passed over."""
        models = listed_models(body)
        if models is not None and models.models:
            served = self._served()
            self._listed, self._listed_at = models, None if served is None else served[1]

    @property
    def models(self) -> Models:
        """What is known now."""
        served = self._served()
        if served is None:
            return known_models(self._listed, None)
        argv, revision = tuple(served[0]), served[1]
        if argv != self._argv:
            self._argv, self._started = argv, served_models(argv)
        if self._listed_at is None:  # a list that came before the first template was seen is of that template
            self._listed_at = revision
        if self._listed_at != revision:
            self._listed, self._listed_at = None, revision
        return known_models(self._listed, self._started)

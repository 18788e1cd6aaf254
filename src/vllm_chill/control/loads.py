"""What engines say of their load, collected: asked when it is wanted, kept with its age, shared by all who ask.

The rule: no pod is asked twice at a time, nor again within the time to live; a source that cannot be asked leaves what
it said before, which grows old. Nothing here runs by itself: a question ends with the last caller that waits for it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from vllm_chill.core.saturation.fleet import ReplicaLoad
from vllm_chill.core.saturation.freshness import (
    FRESH_SECONDS,
    GONE_SECONDS,
    Aged,
    Ages,
    Track,
    begun_anew,
    load_of,
    told,
)
from vllm_chill.core.saturation.places import LoadReading, PodPlace
from vllm_chill.core.target import Endpoint
from vllm_chill.errors import BackendUnavailable
from vllm_chill.ports import LoadSource

_RETRY_SECONDS = 5.0
_EARLY = 0.9  # so that whoever asks at the same pace does not find the answer before last
_HELD_SECONDS = 5.0


def _nobody(namespace: str, pod: str) -> None:
    """Nobody wants to know of pods that were not asked for."""


class _Question:
    """A question that is being asked, and how many wait for its answer."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.waiting = 0


class _Asked:
    """What is asked about: when it may be asked again, and when somebody wanted to know of it last."""

    def __init__(self) -> None:
        self.due = -math.inf
        self.wanted_at = 0.0
        self.question: _Question | None = None


class _Pod(_Asked):
    """One pod: what is known of it, where it was last asked, and why it said nothing then."""

    def __init__(self, endpoint: Endpoint | None) -> None:
        super().__init__()
        self.endpoint = endpoint
        self.track = Track()
        self.failure: str | None = None


class _Namespace(_Asked):
    """Who waits for a replica, as the last answer to a question about this namespace has it."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, Aged] = {}
        self.held_by_target: dict[str, Aged] = {}
        self.complete: Aged | None = None  # 0 as of when all who may hold requests were heard last


class LoadCollector:
    """What a source says, by namespace and pod.

    `unasked` is told of each pod that a source speaks of although nobody has asked for it, such as
    `VariantView.owner_of`, which counts those that are no target's.
    """

    def __init__(
        self,
        source: LoadSource,
        *,
        now: Callable[[], float],
        ttl_seconds: float = 30.0,
        held_seconds: float = _HELD_SECONDS,
        fresh_seconds: float = FRESH_SECONDS,
        gone_seconds: float = GONE_SECONDS,
        unasked: Callable[[str, str], object] = _nobody,
    ) -> None:
        """A pod is not asked again within `ttl_seconds`, nor who waits, where there is no pod to ask, within
        `held_seconds`. What was told is fresh for `fresh_seconds` and gone after `gone_seconds`, and so is a pod that
        nobody has wanted to know of for as long.
        """
        self._source = source
        self._now = now
        self._ttl = ttl_seconds
        self._held_seconds = min(held_seconds, ttl_seconds)
        self._ages = Ages(fresh_seconds, gone_seconds)
        self._unasked = unasked
        self._pods: dict[tuple[str, str], _Pod] = {}
        self._namespaces: dict[str, _Namespace] = {}
        self._swept_at = -math.inf
        self.failure: str | None = None
        """Why the source could not be asked last, a sentence without a full stop; None if it could."""

    async def collect(self, namespace: str, pods: Sequence[PodPlace]) -> None:
        """Ask about these pods, and about who waits; of what was asked a moment ago, wait for the answer or leave it.

        It does not raise when the source cannot be asked: that is in `failure`.
        """
        now = self._now()
        self._sweep(now)
        wanted = [self._wanted(namespace, place, now) for place in pods]
        where = self._namespaces.setdefault(namespace, _Namespace())
        where.wanted_at = now
        due = [place for place, pod in zip(pods, wanted, strict=True) if pod.question is None and pod.due <= now]
        if due or (where.question is None and where.due <= now):
            self._begin(namespace, due, now)
        questions = [pod.question for pod in wanted if pod.question is not None]
        if not questions and where.question is not None:
            questions = [where.question]
        await _answers(list(dict.fromkeys(questions)))

    def loads(self, namespace: str, pods: Sequence[PodPlace]) -> tuple[ReplicaLoad, ...]:
        """What is known of these pods; one of which nothing is known for too long is not there."""
        now = self._now()
        known = ((place.name, self._pods.get((namespace, place.name))) for place in pods)
        loads = (load_of(name, pod.track, self._ages, now) for name, pod in known if pod is not None)
        return tuple(load for load in loads if load is not None)

    def failures(self, namespace: str, pods: Sequence[PodPlace]) -> Mapping[str, str]:
        """Why each of these pods said nothing when it was asked last, by its name, as sentences without a full stop."""
        known = ((place.name, self._pods.get((namespace, place.name))) for place in pods)
        return {name: pod.failure for name, pod in known if pod is not None and pod.failure is not None}

    def active_at(self, namespace: str, pods: Sequence[PodPlace]) -> float | None:
        """When one of these pods was last known to run a request, to have one waiting, or to have answered one; None
        if that is not known of any. It is a moment too late rather than too early.
        """
        known = (self._pods.get((namespace, place.name)) for place in pods)
        moments = [pod.track.active_at for pod in known if pod is not None and pod.track.active_at is not None]
        return max(moments, default=None)

    def held(self, model_id: str) -> float | None:
        """How many requests wait for a model before any replica has them; None if that is not known.

        It is 0 where nobody speaks of any, and everybody who could was asked.
        """
        return self._newest(where.held.get(model_id) for where in self._namespaces.values())

    def held_by_target(self, namespace: str, name: str) -> float | None:
        """How many wait in a proxy for the target of this name, as for `held`."""
        key = f"{namespace}/{name}"
        return self._newest(where.held_by_target.get(key) for where in self._namespaces.values())

    def _newest(self, figures: Iterable[Aged | None]) -> float | None:
        known = [figure for figure in figures if figure is not None]
        if not known:
            known = [where.complete for where in self._namespaces.values() if where.complete is not None]
        return self._ages.fresh(max(known, key=lambda figure: figure.at, default=None), self._now())

    # Asking.

    def _wanted(self, namespace: str, place: PodPlace, now: float) -> _Pod:
        pod = self._pods.setdefault((namespace, place.name), _Pod(place.endpoint))
        pod.wanted_at = now
        if pod.endpoint != place.endpoint:
            # A StatefulSet calls the next pod as the one before; what that one still answers is no longer waited for.
            pod.endpoint, pod.track, pod.due, pod.question = place.endpoint, begun_anew(pod.track), now, None
        return pod

    def _begin(self, namespace: str, places: Sequence[PodPlace], now: float) -> None:
        asked: list[_Asked] = [self._pods[namespace, place.name] for place in places]
        asked.append(self._namespaces[namespace])
        question = _Question()
        for each in asked:
            each.question = each.question or question
        question.task = asyncio.create_task(self._ask(question, namespace, places, asked, now))

    async def _ask(
        self, question: _Question, namespace: str, places: Sequence[PodPlace], asked: Sequence[_Asked], begun: float
    ) -> None:
        pause = 0.0
        try:
            reading = await self._source.read(namespace, places)
        except BackendUnavailable as error:
            self.failure, pause = error.message, min(self._ttl, _RETRY_SECONDS)
        else:
            self.failure, pause = None, self._ttl
            self._take(namespace, places, reading)
        finally:
            for each in asked:
                if each.question is question:
                    each.question = None
                    each.due = begun + _EARLY * min(pause, self._pause(each))

    def _pause(self, asked: _Asked) -> float:
        if isinstance(asked, _Pod):
            return self._ttl if asked.failure is None else _RETRY_SECONDS
        return self._held_seconds

    def _take(self, namespace: str, places: Sequence[PodPlace], reading: LoadReading) -> None:
        now = self._now()
        for place in places:
            pod = self._pods[namespace, place.name]
            if pod.endpoint != place.endpoint:
                continue  # that was the pod before
            load = reading.loads.get(place.name)
            if load is not None:
                pod.track = told(pod.track, load, now)
            pod.failure = reading.failures.get(place.name)
        names = {place.name for place in places}
        for name in reading.loads.keys() - names:
            if (namespace, name) not in self._pods:
                self._unasked(namespace, name)
        where = self._namespaces[namespace]
        # Who is no longer spoken of waits no longer, unless it is that somebody could not be asked.
        complete = reading.failures.keys() <= names
        where.held = _held(where.held, reading.held, complete, now)
        where.held_by_target = _held(where.held_by_target, reading.held_by_target, complete, now)
        where.complete = Aged(0.0, now) if complete else where.complete

    def _sweep(self, now: float) -> None:
        """Forget what nobody has wanted to know of for long."""
        if now - self._swept_at < self._ttl:
            return
        self._swept_at, oldest = now, now - self._ages.gone_seconds
        for key in [key for key, pod in self._pods.items() if pod.question is None and pod.wanted_at <= oldest]:
            del self._pods[key]
        for name in [n for n, each in self._namespaces.items() if each.question is None and each.wanted_at <= oldest]:
            del self._namespaces[name]


def _held(before: Mapping[str, Aged], told: Mapping[str, float], complete: bool, now: float) -> dict[str, Aged]:
    return {**({} if complete else before), **{key: Aged(value, now) for key, value in told.items()}}


async def _answers(questions: Sequence[_Question]) -> None:
    """Wait for what is asked; a question that nobody waits for any more is given up."""
    asking = {question.task: question for question in questions if question.task is not None}
    if not asking:
        return
    for question in asking.values():
        question.waiting += 1
    try:
        await asyncio.wait(asking)
    finally:
        for task, question in asking.items():
            question.waiting -= 1
            if not question.waiting:
                task.cancel()
    for task in asking:
        if not task.cancelled():
            task.result()

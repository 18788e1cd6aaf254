"""Which pods are whose: targets, what lies between them and their pods, and the pods, looked up either way. Pure.

The rule: a pod belongs to whoever controls it, and to whoever controls that; where only a scale is known of a target,
to the one whose selector selects it, as for the HorizontalPodAutoscaler. Whatever changes says which targets are other
than before by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from vllm_chill.core.objects import Json, metadata
from vllm_chill.core.saturation.ownership import Owner, Ownership, controller_of
from vllm_chill.core.saturation.targets import PodSeen, WorkloadSeen
from vllm_chill.core.selectors import Selector, selector


class Key(NamedTuple):
    """A target by what it is called."""

    namespace: str
    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class SetSeen:
    """A ReplicaSet: what stands between a Deployment and its pods."""

    namespace: str
    uid: str
    owner: Owner | None


class _Owned(Protocol):
    @property
    def uid(self) -> str: ...
    @property
    def owner(self) -> Owner | None: ...


def set_seen(item: Json) -> SetSeen:
    """What is kept of a ReplicaSet."""
    of = metadata(item)
    return SetSeen(of.get("namespace", ""), of.get("uid", ""), controller_of(item))


def key_of(seen: WorkloadSeen) -> Key:
    """What a target is called."""
    return Key(seen.namespace, seen.kind, seen.name)


class TargetIndex:
    """Invariant: `_ownership` has every object that was taken and not let go; the rest is by the names in there."""

    def __init__(self) -> None:
        self._ownership = Ownership()
        self._targets: dict[Key, WorkloadSeen] = {}
        self._selectors: dict[Key, Selector] = {}
        self._pods: dict[str, PodSeen] = {}
        self._names: dict[tuple[str, str], str] = {}

    def take_set(self, was: SetSeen | None, now: SetSeen | None) -> Iterator[Key]:
        """Take a ReplicaSet as it is now, None if it is gone; yields the targets that are other than before."""
        self._own(was, now)
        for each in (was, now):
            if each is not None and each.owner is not None:
                key = Key(each.namespace, each.owner.kind, each.owner.name)
                if key in self._targets:
                    yield key

    def take_target(self, was: WorkloadSeen | None, now: WorkloadSeen | None) -> Iterator[Key]:
        """Take a target."""
        self._own(was, now)
        if was is not None:
            self._targets.pop(key_of(was), None)
            self._selectors.pop(key_of(was), None)
        if now is not None:
            self._targets[key_of(now)] = now
            chosen = None if now.selector is None else _selector(now.selector)
            if chosen is not None:
                self._selectors[key_of(now)] = chosen
        if (was and was.at_any_version) != (now and now.at_any_version):
            yield from {key_of(each) for each in (was, now) if each is not None}

    def take_pod(self, was: PodSeen | None, now: PodSeen | None) -> Iterator[Key]:
        """Take a pod."""
        if was is not None:
            yield from self.targets_of(was)
            self._pods.pop(was.uid, None)
            self._names.pop((was.namespace, was.name), None)
        self._own(was, now)
        if now is not None:
            self._pods[now.uid] = now
            self._names[now.namespace, now.name] = now.uid
            yield from self.targets_of(now)

    def target(self, key: Key) -> WorkloadSeen | None:
        """What was taken of a target."""
        return self._targets.get(key)

    def pod(self, namespace: str, name: str) -> PodSeen | None:
        """What was taken of a pod."""
        return self._pods.get(self._names.get((namespace, name), ""))

    def pods_of(self, key: Key) -> Iterator[PodSeen]:
        """The pods of a target that is there."""
        chosen = self._selectors.get(key)
        if chosen is not None:
            for pod in self._pods.values():
                if pod.namespace == key.namespace and chosen.selects(dict(pod.labels)):
                    yield pod
            return
        for uid in self._ownership.below(self._targets[key].uid):
            if uid in self._pods:
                yield self._pods[uid]

    def targets_of(self, pod: PodSeen) -> Iterator[Key]:
        """The targets that a pod belongs to, the nearest first."""
        for owner in self._ownership.above(pod.uid):
            key = Key(pod.namespace, owner.kind, owner.name)
            target = self._targets.get(key)
            if target is not None and target.uid == owner.uid and key not in self._selectors:
                yield key
        for key, chosen in self._selectors.items():
            if key.namespace == pod.namespace and chosen.selects(dict(pod.labels)):
                yield key

    def on_node(self, name: str) -> Iterator[Key]:
        """The targets that have a pod on a node."""
        for pod in self._pods.values():
            if pod.node == name:
                yield from self.targets_of(pod)

    def _own(self, was: _Owned | None, now: _Owned | None) -> None:
        if was is not None and (now is None or now.uid != was.uid):
            self._ownership.drop(was.uid)
        if now is not None:
            self._ownership.put(now.uid, now.owner)


def _selector(text: str) -> Selector | None:
    """The selector that a scale tells; None for a text that is none, and then owners count."""
    try:
        return selector(text)
    except ValueError:
        return None

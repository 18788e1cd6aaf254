"""Where policies come from: vLLMScalingPolicy objects, and the annotations of what is scaled.

The rule: what cannot be used leaves the last version that could, and says everything that is wrong with it. An object
that was made anew has no earlier version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from vllm_chill.api.kinds import AUTOSCALE, POLICY
from vllm_chill.core.objects import Collection, Json, annotations_of, digest, meant, metadata
from vllm_chill.core.scaling.claims import Rank
from vllm_chill.core.scaling.policy import Policy
from vllm_chill.core.target import DEPLOYMENTS, STATEFUL_SETS, Resource
from vllm_chill.errors import InvalidPolicy

if TYPE_CHECKING:
    from vllm_chill.api.scaling_spec import ScaleTarget

ANNOTATED = (DEPLOYMENTS, STATEFUL_SETS)
"""The kinds whose annotations are looked at."""


def policies_of(namespace: str) -> Collection:
    """The collection of the policies in a namespace."""
    absent = "install it: vllm-chill crd | kubectl apply -f -"
    return Collection(POLICY.api_version, POLICY.kind, POLICY.plural, namespace, absent=absent)


def objects_of(resource: Resource, namespace: str) -> Collection:
    """The collection of what is of a kind in a namespace."""
    return Collection(resource.api_version, resource.kind, resource.plural, namespace)


@dataclass(slots=True)
class Source:
    """An object of `collection` that asks for a target to be scaled; by itself, or (`rank`) by annotations.

    `good` is the last version that could be used: the policy, and what it is for. `problems` are those of the version
    that there is.
    """

    collection: Collection
    rank: Rank
    item: Json
    good: tuple[Policy, ScaleTarget] | None = None
    problems: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What no other source is called."""
        return f"{self.collection.kind}/{self.name}"

    @property
    def name(self) -> str:
        """The object's."""
        return str(metadata(self.item)["name"])

    @property
    def created(self) -> str:
        """When the object was made; sorts by age."""
        return str(metadata(self.item).get("creationTimestamp") or "")

    @property
    def said(self) -> str:
        """What it is, for a sentence."""
        named = self.collection.named(self.name)
        return named if self.rank is Rank.OBJECT else f"the annotations of {named}"

    @property
    def about(self) -> Json:
        """The object as events are about it: what a server lists does not say its kind."""
        return {"apiVersion": self.collection.api_version, "kind": self.collection.kind, **self.item}

    @property
    def _asked(self) -> str:
        """What it is read from."""
        return digest(meant(self.item) if self.rank is Rank.OBJECT else annotations_of(self.item))

    def is_as(self, other: Source) -> bool:
        """Whether another version of it asks for the same."""
        return self._asked == other._asked

    def read(self) -> None:
        """Take what the object asks for; one without annotations for it asks for nothing."""
        if self.rank is Rank.ANNOTATIONS and AUTOSCALE not in annotations_of(self.item):
            self.good, self.problems = None, ()
            return
        # Imported when there is a policy to read: what reads them is a thirtieth of the proxy's memory.
        from vllm_chill.api.scaling_policy import parse_policy, policy_of, policy_of_annotations

        try:
            if self.rank is Rank.OBJECT:
                parsed = parse_policy(self.item)
                self.good = policy_of(parsed), parsed.spec.scale_target_ref
            else:
                policy = policy_of_annotations(self.name, annotations_of(self.item))
                self.good = None if policy is None else (policy, self._itself)
            self.problems = ()
        except InvalidPolicy as error:
            self.problems = error.problems

    @property
    def _itself(self) -> ScaleTarget:
        from vllm_chill.api.scaling_spec import ScaleTarget  # what has read the annotations has it already

        return ScaleTarget(kind=self.collection.kind, name=self.name, api_version=self.collection.api_version)

    @property
    def asks(self) -> bool:
        """Whether it asks for anything, good or not."""
        return self.good is not None or bool(self.problems)


class Sources(Mapping[str, Source]):
    """All that ask for a target to be scaled, by their keys. `gone` is told the key of one that no longer is."""

    def __init__(self, gone: Callable[[str], None]) -> None:
        self._gone = gone
        self._by_key: dict[str, Source] = {}
        self._log = structlog.get_logger("vllm_chill.scaling")

    def __getitem__(self, key: str) -> Source:
        return self._by_key[key]

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._by_key))

    def __len__(self) -> int:
        return len(self._by_key)

    def take(self, collection: Collection, objects: Mapping[str, Json]) -> None:
        """Take all objects of a collection."""
        rank = Rank.OBJECT if collection.kind == POLICY.kind else Rank.ANNOTATIONS
        there = {source.key: source for source in (Source(collection, rank, item) for item in objects.values())}
        for key, known in tuple(self._by_key.items()):
            if known.collection == collection and (key not in there or _uid(there[key]) != _uid(known)):
                self._forget(key)
        for key, source in there.items():
            self._take_one(key, source)

    def _take_one(self, key: str, source: Source) -> None:
        known = self._by_key.get(key)
        if known is not None and known.is_as(source):
            known.item = source.item
            return
        source.good = None if known is None else known.good
        said = () if known is None else known.problems
        source.read()
        if source.problems and source.problems != said:
            self._log.warning("a policy is not accepted", policy=source.said, problems=list(source.problems))
        if source.asks:
            self._by_key[key] = source
        elif known is not None:
            self._forget(key)

    def _forget(self, key: str) -> None:
        del self._by_key[key]
        self._gone(key)


def _uid(source: Source) -> object:
    return metadata(source.item).get("uid")

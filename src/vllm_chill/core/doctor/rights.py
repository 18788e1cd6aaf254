"""The rights that a proxy needs in a cluster, and the rules that grant them. Pure.

The rule: those of one target are what deploy/rbac.yaml grants, which a test compares.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

LEASES = "coordination.k8s.io"


@dataclass(frozen=True, slots=True)
class Need:
    """A verb on a resource (`deployments/scale` is a part of one), in a namespace or (None) cluster-wide, of one object
    or ("") of all. `without` says what does not work without it, as a clause.
    """

    verb: str
    group: str
    resource: str
    namespace: str | None
    without: str
    name: str = ""
    optional: bool = False


def needs_of_target(
    namespace: str, deployment: str, *, scales: bool = True, elects: bool = True, lease: str = "vllm-chill"
) -> tuple[Need, ...]:
    """What the proxy of one Deployment needs; `scales` unless somebody else does, `elects` if it may have peers.
    `lease` is the name of the leader's Lease.
    """
    unseen = "the target's state is not known, and every request is answered 503"
    unready = "whether a pod is ready is not known, and nobody is ever let in"
    needs = [Need(verb, "apps", "deployments", namespace, unseen, deployment) for verb in ("list", "watch")]
    if scales:
        asleep = "the target is neither woken nor put to sleep"
        needs.append(Need("patch", "apps", "deployments/scale", namespace, asleep, deployment))
    needs += [Need(verb, "", "pods", namespace, unready) for verb in ("list", "watch")]
    if elects:
        untold = "the target is never put to sleep, as other proxies cannot be told who is served"
        verbs = ("get", "list", "watch", "create", "update", "delete")
        needs += [Need(verb, LEASES, "leases", namespace, untold) for verb in verbs]
    pulls = "callers are not told that an image is being pulled"
    needs += [Need(verb, "", "events", namespace, pulls, optional=True) for verb in ("list", "watch")]
    crashes = "nobody is told what the engine writes, not even when it crashes"
    needs.append(Need("get", "", "pods/log", namespace, crashes, optional=True))
    learns = "how long past starts took is forgotten when the proxy ends"
    needs.append(Need("patch", "apps", "deployments", namespace, learns, deployment, optional=True))
    forgets = "what was saved is forgotten when the proxy ends"
    needs += [
        Need(verb, "", "configmaps", namespace, forgets, f"{lease}-savings", optional=True) for verb in ("get", "patch")
    ]
    needs.append(Need("create", "", "configmaps", namespace, forgets, optional=True))
    chooses = "Kubernetes chooses which replica goes, and not the proxy the one with the fewest requests"
    needs.append(Need("patch", "", "pods", namespace, chooses, optional=True))
    return tuple(needs)


@dataclass(frozen=True, slots=True)
class Rule:
    """Rights on one resource that are missing for the same reason."""

    verbs: tuple[str, ...]
    group: str
    resource: str
    namespace: str | None
    name: str
    without: str
    optional: bool

    @property
    def named(self) -> str:
        """The rights for a sentence."""
        of = f" of {self.group}" if self.group else ""
        return f"to {', '.join(self.verbs)} {self.resource}{of}"

    @property
    def yaml(self) -> str:
        """The rule of a Role that grants them."""
        group = self.group or '""'
        lines = [f"- apiGroups: [{group}]", f"  resources: [{self.resource}]"]
        if self.name:
            lines.append(f"  resourceNames: [{self.name}]")
        return "\n".join([*lines, f"  verbs: [{', '.join(self.verbs)}]"])


def rules_of(needs: Iterable[Need]) -> Iterator[Rule]:
    """The rules that grant these, in the order of the first of each."""
    verbs: dict[tuple[str, str, str | None, str, str, bool], list[str]] = {}
    for need in needs:
        key = (need.group, need.resource, need.namespace, need.name, need.without, need.optional)
        verbs.setdefault(key, []).append(need.verb)
    for key, found in verbs.items():
        yield Rule(tuple(found), *key)

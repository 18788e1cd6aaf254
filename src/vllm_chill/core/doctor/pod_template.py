"""What a Deployment's pod template says: its containers, what they ask for, and what they need to be there. Pure.

The rule: anything may be missing, and what is of another shape than it should be is not there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm_chill.core.objects import Json

_QUANTITY = re.compile(r"([0-9.]+(?:[eE][+-]?[0-9]+)?)(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")
_POWERS = {"": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3}
_POWERS |= {letter: 1000.0 ** (at + 1) for at, letter in enumerate("kMGTPE")}
_POWERS |= {f"{letter}i": 1024.0 ** (at + 1) for at, letter in enumerate("KMGTPE")}
_PORT_FLAG = re.compile(r"(?:^|\s)--port[=\s]+['\"]?([0-9]{1,5})\b")


def quantity(text: object) -> float:
    """A quantity such as 500m, 16Gi or 1; 0 for what is none."""
    found = _QUANTITY.fullmatch(str(text))
    return 0.0 if found is None else float(found[1]) * _POWERS[found[2] or ""]


def spec_of(deployment: Json) -> Json:
    """A Deployment's spec."""
    return dict(deployment.get("spec") or {})


def template_of(deployment: Json) -> Json:
    """A Deployment's pod template."""
    return dict(spec_of(deployment).get("template") or {})


def pod_spec(deployment: Json) -> Json:
    """The spec of a Deployment's pods."""
    return dict(template_of(deployment).get("spec") or {})


def pod_labels(deployment: Json) -> Mapping[str, str]:
    """The labels of a Deployment's pods."""
    return dict((template_of(deployment).get("metadata") or {}).get("labels") or {})


def containers(spec: Json) -> list[Json]:
    """The containers of a pod that run side by side."""
    return list(spec.get("containers") or [])


def engine_of(spec: Json) -> Json:
    """The container that is the engine: the one that asks for a GPU, else the one with ports, else the first."""
    found = containers(spec)
    for holds in (_has_gpu, lambda container: bool(container.get("ports"))):
        for container in found:
            if holds(container):
                return container
    return found[0] if found else {}


def demand(spec: Json) -> dict[str, float]:
    """What a pod asks for of each resource: what its containers ask for together, or one of its init containers."""
    total: dict[str, float] = {}
    for container in containers(spec):
        for name, amount in _requests(container).items():
            total[name] = total.get(name, 0.0) + amount
    for container in spec.get("initContainers") or []:
        for name, amount in _requests(container).items():
            total[name] = max(total.get(name, 0.0), amount)
    return total


def devices(spec: Json) -> dict[str, float]:
    """What a pod asks for of what nodes have besides processors and memory: GPUs, mostly."""
    return {name: amount for name, amount in demand(spec).items() if "/" in name and amount}


def limits(spec: Json) -> dict[str, float]:
    """The limits of a pod's containers together."""
    total: dict[str, float] = {}
    for container in containers(spec):
        for name, text in ((container.get("resources") or {}).get("limits") or {}).items():
            total[name] = total.get(name, 0.0) + quantity(text)
    return total


def words_of(container: Json) -> list[str]:
    """A container's command and arguments."""
    return [str(word) for word in (*(container.get("command") or []), *(container.get("args") or []))]


def said_port(container: Json) -> int | None:
    """The port that an engine is told to listen on; None if nobody says."""
    found = _PORT_FLAG.findall(" ".join(words_of(container)))
    return int(found[-1]) if found else None


def image_name(container: Json) -> tuple[str, str]:
    """The last part of an image's name, and its tag or digest ("" without)."""
    last = str(container.get("image") or "").rpartition("/")[2]
    name, _, digest = last.partition("@")
    name, _, tag = name.partition(":")
    return name, digest or tag


@dataclass(slots=True)
class References:
    """The objects that a pod cannot start without: ConfigMaps with the keys that are needed of each, Secrets, Secrets
    to pull images with, and its ServiceAccount ("" for the usual one).
    """

    config_maps: dict[str, set[str]] = field(default_factory=dict)
    secrets: dict[str, set[str]] = field(default_factory=dict)
    pull_secrets: list[str] = field(default_factory=list)
    account: str = ""


def references(spec: Json) -> References:
    """What a pod refers to; what is optional is not needed."""
    found = References()
    account = str(spec.get("serviceAccountName") or "")
    found.account = "" if account == "default" else account
    found.pull_secrets = [str(one["name"]) for one in spec.get("imagePullSecrets") or [] if one.get("name")]
    for container in (*containers(spec), *(spec.get("initContainers") or [])):
        for one in container.get("env") or []:
            source = one.get("valueFrom") or {}
            _refer(found.config_maps, source.get("configMapKeyRef"), "name", "key")
            _refer(found.secrets, source.get("secretKeyRef"), "name", "key")
        for one in container.get("envFrom") or []:
            _refer(found.config_maps, one.get("configMapRef"), "name")
            _refer(found.secrets, one.get("secretRef"), "name")
    for volume in spec.get("volumes") or []:
        for source in (volume, *((volume.get("projected") or {}).get("sources") or [])):
            _refer(found.config_maps, source.get("configMap"), "name", items=True)
            secret = source.get("secret") or {}
            _refer(found.secrets, secret, "secretName" if "secretName" in secret else "name", items=True)
    return found


def claim_names(spec: Json) -> list[str]:
    """The PersistentVolumeClaims that a pod mounts."""
    claims = (volume.get("persistentVolumeClaim") or {} for volume in spec.get("volumes") or [])
    return list(dict.fromkeys(str(claim["claimName"]) for claim in claims if claim.get("claimName")))


def tolerates(spec: Json, taint: Json) -> bool:
    """Whether a pod may run in spite of a node's taint."""
    if taint.get("effect") not in ("NoSchedule", "NoExecute"):
        return True
    return any(_tolerates(one, taint) for one in spec.get("tolerations") or [])


def wants_node(spec: Json, labels: Mapping[str, str]) -> bool:
    """Whether a node's labels are what a pod's nodeSelector and required affinity ask for."""
    if any(labels.get(key) != value for key, value in (spec.get("nodeSelector") or {}).items()):
        return False
    affinity = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or {}
    terms = affinity.get("nodeSelectorTerms") or []
    return not terms or any(_term_holds(term, labels) for term in terms)


def _has_gpu(container: Json) -> bool:
    return any("/" in name for name in _requests(container))


def _requests(container: Json) -> dict[str, float]:
    resources = container.get("resources") or {}
    # What has a limit and no request asks for its limit.
    both = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {str(name): quantity(text) for name, text in both.items()}


def _refer(to: dict[str, set[str]], source: Any, name_field: str, key_field: str = "", *, items: bool = False) -> None:
    if not isinstance(source, dict) or source.get("optional") or not source.get(name_field):
        return
    keys = to.setdefault(str(source[name_field]), set())
    if key_field and source.get(key_field):
        keys.add(str(source[key_field]))
    if items:
        keys.update(str(one["key"]) for one in source.get("items") or [] if one.get("key"))


def _tolerates(toleration: Json, taint: Json) -> bool:
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint.get("key"))
    same_value = (toleration.get("value") or "") == (taint.get("value") or "")
    return toleration.get("key") == taint.get("key") and same_value


def _term_holds(term: Json, labels: Mapping[str, str]) -> bool:
    return all(_expression_holds(one, labels) for one in term.get("matchExpressions") or [])


def _expression_holds(one: Json, labels: Mapping[str, str]) -> bool:
    value, values = labels.get(str(one.get("key"))), [str(each) for each in one.get("values") or []]
    match one.get("operator"):
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt":
            return value is not None and value.isdecimal() and bool(values) and int(value) > int(values[0])
        case "Lt":
            return value is not None and value.isdecimal() and bool(values) and int(value) < int(values[0])
        case _:
            return True


def selector_holds(selector: Json | None, labels: Mapping[str, str]) -> bool:
    """Whether a selector as policies have it (matchLabels, matchExpressions) selects these labels. None selects none,
    and an empty one all.
    """
    if selector is None:
        return False
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(_expression_holds(one, labels) for one in selector.get("matchExpressions") or [])


def selects(service: Json, labels: Mapping[str, str]) -> bool:
    """Whether a Service selects pods with these labels."""
    wanted = (service.get("spec") or {}).get("selector") or {}
    return bool(wanted) and all(labels.get(key) == value for key, value in wanted.items())


def declared_ports(spec: Json) -> Iterator[tuple[str, int]]:
    """The ports that a pod's containers declare: name ("" without) and number."""
    for container in containers(spec):
        for port in container.get("ports") or []:
            if port.get("containerPort"):
                yield str(port.get("name") or ""), int(port["containerPort"])

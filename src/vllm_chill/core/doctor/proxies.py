"""The proxies that run in the cluster, as their Deployments tell: how they are set, and whether they agree. Pure.

The rule: only what stands in a Deployment counts: flags, and variables with a value there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from vllm_chill.core.doctor.finding import Check, Finding, Objects, failure, ok, seen, warning
from vllm_chill.core.doctor.paste import of_pods
from vllm_chill.core.doctor.picture import Asked, Picture
from vllm_chill.core.doctor.pod_template import containers, image_name, pod_labels, pod_spec, spec_of, words_of
from vllm_chill.core.doctor.words import span
from vllm_chill.core.objects import Json, labels_of, metadata

_NAME = "vllm-chill"
_LABEL = "app.kubernetes.io/name"
_GRACE_SECONDS = 30
_VARIABLE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")
_TO_AGREE_ON = (
    *("target-host", "target-port", "idle-timeout", "wake-timeout", "start-timeout", "drain-timeout"),
    *("mode", "lease-name", "lease-duration", "leader-elect", "max-in-flight", "models"),
)


@dataclass(frozen=True, slots=True)
class Proxy:
    """One Deployment of proxies. `flags` are those that it gives, by name without dashes before, and `variables` those
    that have a value in it.
    """

    name: str
    replicas: int
    labels: Mapping[str, str]
    account: str
    grace_seconds: float
    flags: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)

    def says(self, flag: str, variable: str, otherwise: str) -> str:
        """What it is told of a setting."""
        return self.flags.get(flag) or self.variables.get(variable) or otherwise


def proxies_of(deployments: Objects) -> list[Proxy]:
    """The proxies among the Deployments. Raises CouldNotLook."""
    found = (_proxy(item) for item in seen(deployments))
    return [proxy for proxy in found if proxy is not None]


def serving(asked: Asked, deployments: Objects) -> list[Proxy]:
    """Those of them that serve this target."""
    return [
        proxy
        for proxy in proxies_of(deployments)
        if proxy.says("deployment", "VLLM_DEPLOYMENT", "vllm") == asked.deployment
        or (asked.of_models and proxy.says("models", "VLLM_CHILL_MODELS", "") == "crd")
    ]


def find_agreement(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether proxies of the same target know of one another, and are set alike."""
    found = serving(asked, picture.deployments)
    replicas = sum(proxy.replicas for proxy in found)
    if replicas < 2:
        if found:
            yield ok(f"one proxy serves it: {found[0].name}")
        return
    alone = [proxy for proxy in found if proxy.says("leader-elect", "LEADER_ELECT", "on") == "off"]
    if alone:
        yield failure(
            f"{replicas} proxies serve it, and {alone[0].name} has --leader-elect off: it puts the model to sleep "
            "under the callers of the others",
            f"take --leader-elect=off out of the arguments of {alone[0].name}",
            f"kubectl -n {asked.namespace} edit deployment {alone[0].name}",
        )
        return
    for flag in _TO_AGREE_ON:
        apart = flag == "lease-name"
        # Who does not say has the default, which may be what another one says; a Lease without a name is another one.
        said = {proxy.name: proxy.flags.get(flag, "") for proxy in found if apart or flag in proxy.flags}
        if len(set(said.values())) > 1:
            each = ", ".join(f"{name} has {value or 'none'}" for name, value in sorted(said.items()))
            make = failure if apart else warning
            harm = "neither knows whom the other serves" if apart else "what happens depends on which one is asked"
            yield make(
                f"proxies of the same target differ in --{flag} ({each}): {harm}",
                f"give all of them the same --{flag}",
                f"kubectl -n {asked.namespace} edit deployment {min(said)}",
            )
            return
    yield ok(f"{replicas} proxies serve it, and agree on who puts it to sleep")


def find_proxy_grace(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether a proxy that is told to end may finish its answers."""
    needed = asked.drain_seconds + asked.shutdown_delay_seconds
    for proxy in serving(asked, picture.deployments):
        if proxy.grace_seconds >= needed:
            yield ok(f"{proxy.name} has {span(proxy.grace_seconds)} to finish its answers")
            continue
        yield warning(
            f"terminationGracePeriodSeconds of {proxy.name} is {proxy.grace_seconds:g}, and --drain-timeout with "
            f"--shutdown-delay {needed:g}: each update cuts the streams that are longer",
            "let it live for as long as it drains",
            of_pods(asked.namespace, proxy.name, {"terminationGracePeriodSeconds": int(needed) + 25}),
        )


def _proxy(deployment: Json) -> Proxy | None:
    spec = pod_spec(deployment)
    container = next((one for one in containers(spec) if image_name(one)[0] == _NAME), None)
    if container is None and labels_of(deployment).get(_LABEL) == _NAME:
        container = next(iter(containers(spec)), None)
    if container is None or "controller" in words_of(container):
        return None
    own = metadata(deployment)
    variables = _variables(container, str(own.get("namespace") or ""))
    return Proxy(
        str(own["name"]),
        int(spec_of(deployment).get("replicas", 1)),
        pod_labels(deployment),
        str(spec.get("serviceAccountName") or "default"),
        float(spec.get("terminationGracePeriodSeconds", _GRACE_SECONDS)),
        _flags([_expanded(word, variables) for word in words_of(container)]),
        variables,
    )


def _variables(container: Json, namespace: str) -> dict[str, str]:
    found = {}
    for one in container.get("env") or []:
        path = ((one.get("valueFrom") or {}).get("fieldRef") or {}).get("fieldPath")
        if one.get("value"):
            found[str(one["name"])] = str(one["value"])
        elif path == "metadata.namespace":
            found[str(one["name"])] = namespace
    return found


def _expanded(word: str, variables: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda found: variables.get(found[1], found[0]), word)


def _flags(words: list[str]) -> dict[str, str]:
    """The flags with a value that is known: as --flag=value, and as --flag value."""
    found = {}
    for at, word in enumerate(words):
        if word == "--":
            break
        if not word.startswith("--"):
            continue
        name, has_value, value = word[2:].partition("=")
        follows = words[at + 1] if at + 1 < len(words) and not words[at + 1].startswith("--") else "true"
        value = value if has_value else follows
        if "$(" not in value:
            found[name] = value
    return found


PROXIES = Check(
    "proxies",
    "the proxies of the same target in the namespace: `--leader-elect`, and settings that differ",
    "one puts the model to sleep under the callers of another, or it depends on which one is asked",
    "the same settings for all, and `--leader-elect on`",
    find_agreement,
    of_target=False,
)
PROXY_GRACE = Check(
    "proxy-grace-period",
    "their `terminationGracePeriodSeconds`, against `--drain-timeout` and `--shutdown-delay`",
    "each update of the proxy cuts the streams that are longer",
    "the sum of both and a little",
    find_proxy_grace,
    of_target=False,
)

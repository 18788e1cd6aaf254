"""The probes of the engine: which let callers in too early, or kill a model while it loads. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vllm_chill.core.doctor.finding import Check, Finding, failure, ok, warning
from vllm_chill.core.doctor.paste import of_container
from vllm_chill.core.doctor.picture import Asked, Picture
from vllm_chill.core.doctor.pod_template import declared_ports, engine_of, pod_spec, said_port
from vllm_chill.core.doctor.words import span
from vllm_chill.core.objects import Json
from vllm_chill.core.past_starts import PastStarts

_PERIOD_SECONDS = 10
_FAILURES = 3
_USUAL_SECONDS = 120.0
"""What a model takes to load that nothing is known of, at the least: a small one, from a cache."""


def allows_seconds(probe: Json) -> float:
    """For how long a container may fail a probe from its start on."""
    period = float(probe.get("periodSeconds") or _PERIOD_SECONDS)
    return float(probe.get("initialDelaySeconds") or 0) + period * float(probe.get("failureThreshold") or _FAILURES)


def find_readiness(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether a pod is Ready only once its engine is."""
    container = _engine(picture)
    if container.get("readinessProbe"):
        yield ok("a readinessProbe says when the engine is ready")
    elif container.get("startupProbe"):
        yield ok("a startupProbe says when the engine is ready; a readinessProbe would say when it no longer is")
    else:
        probe = {**_asks(asked, container), "periodSeconds": 2, "timeoutSeconds": 5}
        yield failure(
            "there is no readinessProbe: a pod counts as ready while its model still loads, and callers are let in "
            "to be refused",
            "have the kubelet ask the engine",
            of_container(asked.namespace, asked.deployment, str(container.get("name")), {"readinessProbe": probe}),
        )


def find_startup(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether the startupProbe gives up on a model that loads."""
    container = _engine(picture)
    probe = container.get("startupProbe")
    if not probe:
        if not container.get("livenessProbe"):
            yield ok("no probe ends an engine that loads")
        return
    allowed, usual = allows_seconds(probe), PastStarts.parse(picture.history).whole
    if allowed >= asked.start_seconds:
        yield ok(f"the startupProbe lets a model load for {span(allowed)}")
        return
    says = f"the startupProbe allows {span(allowed)}"
    period = probe.get("periodSeconds") or _PERIOD_SECONDS
    paste = of_container(
        asked.namespace,
        asked.deployment,
        str(container.get("name")),
        {"startupProbe": {"failureThreshold": math.ceil(asked.start_seconds / period)}},
    )
    remedy = f"let it ask for as long as --start-timeout, which is {span(asked.start_seconds)}"
    if allowed < (usual or _USUAL_SECONDS):
        took = f"starts took {span(usual)}" if usual is not None else "most models take longer to load"
        yield failure(f"{says}, and {took}: the kubelet ends the engine again and again", remedy, paste)
    else:
        yield warning(f"{says}: the kubelet ends an engine whose model takes longer", remedy, paste)


def find_liveness(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether a livenessProbe kills an engine whose model loads."""
    container = _engine(picture)
    probe = container.get("livenessProbe")
    if not probe:
        yield ok("no livenessProbe ends an engine that loads")
        return
    if container.get("startupProbe"):
        yield ok("the livenessProbe begins after the startupProbe")
        return
    allowed = allows_seconds(probe)
    if allowed >= asked.start_seconds:
        yield ok(f"the livenessProbe lets a model load for {span(allowed)}")
        return
    asks = {key: value for key, value in probe.items() if key in ("httpGet", "tcpSocket", "exec", "grpc")}
    startup = {**asks, "periodSeconds": 2, "timeoutSeconds": 5, "failureThreshold": math.ceil(asked.start_seconds / 2)}
    yield failure(
        f"the livenessProbe ends an engine that is not healthy {span(allowed)} after its start, and there is no "
        "startupProbe: a model that loads for longer never comes up",
        f"add a startupProbe that allows {span(asked.start_seconds)}; the livenessProbe then begins after it",
        of_container(asked.namespace, asked.deployment, str(container.get("name")), {"startupProbe": startup}),
    )


def _engine(picture: Picture) -> Json:
    assert isinstance(picture.target, dict)
    return engine_of(pod_spec(picture.target))


def _asks(asked: Asked, container: Json) -> Json:
    ports = list(declared_ports({"containers": [container]}))
    named = next((name for name, _ in ports if name == "http"), None)
    port = named or said_port(container) or next((number for _, number in ports), 8000)
    return {"httpGet": {"path": asked.health_path, "port": port}}


READINESS = Check(
    "readiness-probe",
    "a `readinessProbe` (or `startupProbe`) of the engine",
    "a pod is Ready as soon as it runs: callers are let in to an engine that still loads",
    "a `readinessProbe` on `/health`",
    find_readiness,
)
STARTUP = Check(
    "startup-probe",
    "how long the `startupProbe` allows, against `--start-timeout` and the starts before",
    "the kubelet ends an engine that still loads, and begins anew",
    "a `failureThreshold` of `--start-timeout` divided by `periodSeconds`",
    find_startup,
)
LIVENESS = Check(
    "liveness-probe",
    "how long the `livenessProbe` allows where there is no `startupProbe`",
    "the kubelet ends an engine that still loads, for ever",
    "a `startupProbe`, which the livenessProbe waits for",
    find_liveness,
)

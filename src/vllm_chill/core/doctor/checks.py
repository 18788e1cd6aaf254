"""All checks, in the order in which they are told, and what they come to. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from vllm_chill.core.doctor import (
    access,
    engine,
    ingress,
    models,
    network,
    placement,
    probes,
    proxies,
    references,
    rivals,
    service,
    target,
    timing,
)
from vllm_chill.core.doctor.finding import Check, CouldNotLook, Finding, Outcome, unknown
from vllm_chill.core.doctor.picture import Asked, Picture

OF_A_CLUSTER: Sequence[Check] = (
    access.CREDENTIALS,
    access.SERVER,
    access.CLOCK,
    access.RIGHTS,
    access.OPTIONAL_RIGHTS,
    target.DEPLOYMENT,
    models.MODELS,
    target.STRATEGY,
    target.GRACE,
    target.IMAGE,
    probes.READINESS,
    probes.STARTUP,
    probes.LIVENESS,
    service.SERVICE,
    service.SELECTOR,
    service.SERVICE_PORT,
    service.ENGINE_PORT,
    service.SERVICE_LINKS,
    placement.GPUS,
    placement.NODE,
    placement.QUOTA,
    references.VOLUMES,
    references.CONFIG_MAPS,
    references.SECRETS,
    references.PULL_SECRETS,
    references.ACCOUNT,
    rivals.AUTOSCALERS,
    rivals.GITOPS,
    timing.IDLE_TIMEOUT,
    timing.WAKE_TIMEOUT,
    timing.START_TIMEOUT,
    proxies.PROXIES,
    proxies.PROXY_GRACE,
    ingress.TIMEOUTS,
    ingress.BUFFERING,
    ingress.OPERATORS,
    ingress.BYPASS,
    network.NETWORK,
    network.BUDGET,
    engine.ENGINE,
)


def examine(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """What the checks of a cluster find, in their order."""
    checks = (check for check in OF_A_CLUSTER if isinstance(picture.target, dict) or not check.of_target)
    return found_by(checks, asked, picture)


def found_by(checks: Iterable[Check], *given: Any) -> Iterator[Finding]:
    """What these checks find in what they are given, each under its name; what could not be looked at is said once for
    each check.
    """
    for check in checks:
        try:
            for finding in check.find(*given):
                yield replace(finding, check=check.name)
        except CouldNotLook as error:
            yield replace(unknown(str(error)), check=check.name)


def count(findings: Iterable[Finding]) -> Counter[Outcome]:
    """How many there are of each outcome."""
    return Counter(finding.outcome for finding in findings)


def exit_status(findings: Iterable[Finding], *, strict: bool) -> int:
    """0, or 1 with a failure, and of warnings if those are to count."""
    bad = {Outcome.FAILURE, Outcome.WARNING} if strict else {Outcome.FAILURE}
    return int(any(finding.outcome in bad for finding in findings))

"""The way to the API server: credentials, its answer, its clock, and the rights that a proxy needs. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_chill.core.doctor.finding import Check, Finding, failure, ok, seen, warning
from vllm_chill.core.doctor.picture import Asked, Picture, Rights
from vllm_chill.core.doctor.rights import Rule, rules_of
from vllm_chill.core.doctor.words import span

_SKEW_SECONDS = 30.0
_ROLE_FILE = "deploy/rbac.yaml"


def no_credentials(cause: str) -> Finding:
    """There is no way to an API server, or none that can be used."""
    said, _, advice = cause.replace(": correct ", "; correct ").partition("; ")
    return failure(
        said, advice or "name a kubeconfig that can be read", "vllm-chill doctor --kubeconfig ~/.kube/config"
    )


def no_answer(cause: str) -> Finding:
    """The API server could not be asked."""
    small = cause.lower()
    if "certificate" in small or "ssl" in small:
        remedy = (
            "give the kubeconfig the authority that signed the server's certificate (certificate-authority), or the "
            "server's name in it (tls-server-name)"
        )
        return failure(cause, remedy, "kubectl config view --minify")
    if "refuse" in small:
        remedy = "see that the cluster runs, and that the kubeconfig names its address"
        return failure(cause, remedy, "kubectl cluster-info")
    if "did not answer" in small or "took no connection" in small:
        return failure(cause, "see that no firewall, VPN or proxy (HTTPS_PROXY) is between", "kubectl cluster-info")
    return failure(cause, "see that the kubeconfig names the cluster's address", "kubectl config view --minify")


def refused(status: int, said: str) -> Finding:
    """The API server has answered with an error."""
    if status == 401:
        return failure(
            f"the API server does not accept the credentials: {said.rstrip('.')}",
            "log in again, or renew the certificate or token",
            "kubectl config view --minify",
        )
    return failure(f"the API server answers {status}: {said.rstrip('.')}", "see how it is", "kubectl get --raw /readyz")


def find_server(_: Asked, picture: Picture) -> Iterator[Finding]:
    """That it answers."""
    yield ok(f"{picture.server.url} answers, version {picture.server.version or 'unknown'}")


def find_clock(_: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether the clocks of this machine and of the API server agree."""
    ahead = picture.server.ahead_seconds
    if ahead is None:
        return
    if abs(ahead) <= _SKEW_SECONDS:
        yield ok("this machine's clock is the API server's")
        return
    yield warning(
        f"this machine's clock is {span(abs(ahead))} {'behind' if ahead > 0 else 'ahead of'} the API server's: tokens "
        "and certificates seem to be expired or not yet valid, and times in logs do not fit",
        "have it set by NTP",
        "timedatectl set-ntp true",
    )


def find_rights(_: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether the rights are granted that nothing works without."""
    yield from _rights(seen(picture.rights), optional=False)


def find_optional_rights(_: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether the rights are granted that some things need."""
    yield from _rights(seen(picture.rights), optional=True)


def _rights(rights: Rights, *, optional: bool) -> Iterator[Finding]:
    asked = [need for need in rights.asked if need.optional is optional]
    missing = [need for need in asked if need in rights.missing]
    for rule in rules_of(missing):
        make = warning if optional else failure
        where = "cluster-wide" if rule.namespace is None else f"in {rule.namespace}"
        yield make(f"{rights.subject} may not {rule.named.removeprefix('to ')} {where}: {rule.without}", *_grant(rule))
    if asked and not missing:
        yield ok(f"{rights.subject} has all {len(asked)} {'optional' if optional else 'necessary'} rights")


def _grant(rule: Rule) -> tuple[str, str]:
    kind = "ClusterRole" if rule.namespace is None else "Role"
    return f"add this to the rules of its {kind}; {_ROLE_FILE} has all of them", rule.yaml


CREDENTIALS = Check(
    "credentials",
    "a kubeconfig (`--kubeconfig`, `KUBECONFIG`, `~/.kube/config`) or a pod's service account that can be read",
    "the proxy does not start",
    "a kubeconfig that is there and whole",
    lambda *_: (),
    of_target=False,
)
SERVER = Check(
    "api-server",
    "that the API server answers: refused, silent, its TLS, 401; its version",
    "the target's state is not known, and every request is answered 503",
    "the address, the authority, the way there, a new login: as it says",
    find_server,
    of_target=False,
)
CLOCK = Check(
    "clock",
    "this machine's clock, against the API server's `Date`",
    "tokens and certificates seem to be expired or not yet valid",
    "NTP",
    find_clock,
    of_target=False,
)
RIGHTS = Check(
    "rights",
    "every right in deploy/rbac.yaml that nothing works without, asked as a SelfSubjectAccessReview",
    "it does not wake, or does not sleep",
    "the rule to add to the Role",
    find_rights,
    of_target=False,
)
OPTIONAL_RIGHTS = Check(
    "optional-rights",
    "those that are optional there: events, logs, annotations",
    "callers are told less, and what was learned of starts is lost",
    "the rule to add to the Role",
    find_optional_rights,
    of_target=False,
)

from __future__ import annotations

import pytest
import yaml

from tests.core.doctor.world import DEPLOY, NEEDS, found, is_fine, only, sound
from vllm_chill.core.doctor.access import CLOCK, OPTIONAL_RIGHTS, RIGHTS, SERVER, no_answer, no_credentials, refused
from vllm_chill.core.doctor.finding import Outcome, Unseen
from vllm_chill.core.doctor.picture import Picture, Rights, Server
from vllm_chill.core.doctor.rights import Need, needs_of_target, rules_of

ROLE, _ = yaml.safe_load_all((DEPLOY / "rbac.yaml").read_text())


def lacking(*missing: tuple[str, str]) -> Picture:
    return sound(
        rights=Rights("whoever asks", frozenset(one for one in NEEDS if (one.verb, one.resource) in missing), NEEDS)
    )


def test_what_is_needed_is_what_deploy_grants() -> None:
    granted = {
        (verb, group, resource, (rule.get("resourceNames") or [""])[0])
        for rule in ROLE["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert granted == {(need.verb, need.group, need.resource, need.name) for need in NEEDS}


def test_who_scales_nothing_or_is_alone_needs_less() -> None:
    less = needs_of_target("ai-apps", "vllm", scales=False, elects=False)
    resources = {need.resource for need in less}
    assert "deployments/scale" not in resources
    assert "leases" not in resources
    assert "pods" in resources


def test_rights_that_are_missing_are_told_with_the_rule_that_grants_them() -> None:
    finding = only(RIGHTS, lacking(("list", "pods"), ("watch", "pods")))
    assert finding.outcome is Outcome.FAILURE
    assert finding.says.startswith("whoever asks may not list, watch pods in ai-apps: whether a pod is ready")
    assert yaml.safe_load(finding.paste) == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}]
    assert is_fine(found(RIGHTS, sound()))
    assert is_fine(found(RIGHTS, lacking(("get", "pods/log"))))


def test_optional_rights_are_a_warning() -> None:
    finding = only(OPTIONAL_RIGHTS, lacking(("patch", "deployments")))
    assert finding.outcome is Outcome.WARNING
    assert yaml.safe_load(finding.paste)[0]["resourceNames"] == ["vllm"]
    assert only(OPTIONAL_RIGHTS, sound(rights=Unseen("no"))).outcome is Outcome.UNKNOWN


def test_cluster_wide_rights_are_those_of_a_cluster_role() -> None:
    need = Need("list", "vllm.sir-alfred.io", "models", None, "no model is served")
    finding = only(RIGHTS, sound(rights=Rights("whoever asks", frozenset({need}), (need,))))
    assert "may not list models of vllm.sir-alfred.io cluster-wide" in finding.says
    assert "ClusterRole" in finding.remedy


def test_rights_for_other_reasons_are_other_rules() -> None:
    assert len(list(rules_of(NEEDS))) == 10


@pytest.mark.parametrize(("ahead", "outcome"), [(0.0, Outcome.OK), (31.0, Outcome.WARNING), (-300.0, Outcome.WARNING)])
def test_clocks_that_differ_are_a_warning(ahead: float, outcome: Outcome) -> None:
    finding = only(CLOCK, sound(server=Server("https://c", "v1", ahead)))
    assert finding.outcome is outcome
    if ahead < 0:
        assert "clock is 5m ahead of" in finding.says
    assert found(CLOCK, sound(server=Server("https://c"))) == []


def test_the_server_is_told_with_its_version() -> None:
    assert only(SERVER, sound()).says == "https://cluster:6443 answers, version v1.33.1"


@pytest.mark.parametrize(
    ("cause", "remedy"),
    [
        ("the API server https://c cannot be reached: Connection refused", "cluster runs"),
        ("the API server https://c cannot be reached: [SSL: CERTIFICATE_VERIFY_FAILED]", "certificate-authority"),
        ("the API server https://c did not answer within 10 s", "firewall"),
        ("the API server https://c cannot be reached: it took no connection within 5 s", "firewall"),
        ("the API server https://c cannot be reached: Name or service not known", "address"),
    ],
)
def test_why_the_server_does_not_answer_says_what_to_do(cause: str, remedy: str) -> None:
    finding = no_answer(cause)
    assert (finding.outcome, finding.says) == (Outcome.FAILURE, cause)
    assert remedy in finding.remedy


def test_what_the_server_refuses_says_what_to_do() -> None:
    assert "log in again" in refused(401, "Unauthorized").remedy
    assert refused(503, "apiserver not ready.").says == "the API server answers 503: apiserver not ready"


def test_without_credentials_the_way_on_is_told() -> None:
    finding = no_credentials("kubeconfig 'x' does not exist; correct --kubeconfig")
    assert (finding.says, finding.remedy) == ("kubeconfig 'x' does not exist", "correct --kubeconfig")
    assert no_credentials("it is broken").remedy

"""What `vllm-chill doctor` looks at: which settings it takes, and from where."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.adapters.kubernetes.scripted_api import REVIEWS, Scripted, of
from tests.core.doctor.world import manifest, proxy
from vllm_chill.app.doctor import Diagnosis, diagnose
from vllm_chill.core.doctor.finding import Outcome


class Looking:
    """A cluster with deploy/ in it, and looks at it with flags."""

    def __init__(self, scripted: Scripted, kubeconfig: Path) -> None:
        self.scripted = scripted
        self._kubeconfig = kubeconfig
        self.install("vllm-chill")

    def install(self, name: str, *args: str) -> None:
        """Have a proxy of this name, with arguments besides."""
        items = [manifest("example/deployment.yaml"), proxy(name, *args)]
        self.scripted.objects[of("deployments")] = {"items": items}

    async def __call__(self, account: str | None = None, **flags: str) -> Diagnosis:
        return await diagnose({"kubeconfig": str(self._kubeconfig), **flags}, (), account)


@pytest.fixture
async def looking(tmp_path: Path) -> AsyncIterator[Looking]:
    scripted = Scripted()
    async with scripted.listening():
        scripted.objects |= {
            of("services", "v1"): {"items": [manifest("service.yaml"), manifest("example/service.yaml")]},
            of("ingresses", "networking.k8s.io/v1"): {"items": [manifest("ingress.yaml")]},
        }
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts: [{name: a, context: {cluster: a, user: a}}]\n"
            f"clusters: [{{name: a, cluster: {{server: '{scripted.url}'}}}}]\nusers: [{{name: a, user: {{}}}}]\n"
        )
        yield Looking(scripted, kubeconfig)


def failing(found: Diagnosis, check: str) -> list[str]:
    return [one.says for one in found.findings if one.check == check and one.outcome is Outcome.FAILURE]


async def test_settings_that_are_not_given_are_those_of_the_proxy(looking: Looking) -> None:
    looking.install("vllm-chill", "--wake-timeout=1h")
    found = await looking()
    assert found.settings_of == "vllm-chill"
    [says] = failing(found, "ingress-timeouts")
    assert "callers are held for 1h" in says


async def test_what_is_given_counts_before_the_proxys(looking: Looking, monkeypatch: pytest.MonkeyPatch) -> None:
    looking.install("vllm-chill", "--wake-timeout=1h")
    assert failing(await looking(wake_timeout="3m"), "ingress-timeouts") == []
    monkeypatch.setenv("WAKE_TIMEOUT", "4m")
    assert failing(await looking(), "ingress-timeouts") == []


async def test_a_proxy_of_another_target_lends_no_settings(looking: Looking) -> None:
    found = await looking(deployment="llama")
    assert found.settings_of is None
    assert failing(found, "deployment")
    looking.install("vllm-chill", "--deployment=llama")
    assert (await looking()).about.startswith("Deployment llama in ai-apps, http")


async def test_a_proxy_with_settings_that_are_not_known_lends_none(looking: Looking) -> None:
    looking.install("vllm-chill", "--wake-timeout=soon")
    assert (await looking()).settings_of is None


async def test_files_of_the_proxys_pod_are_not_looked_for_here(looking: Looking, tmp_path: Path) -> None:
    looking.install("vllm-chill", "--api-keys-file=/keys/keys.yaml", "--admin-auth=keys")
    found = await looking()
    assert (found.settings_of, failing(found, "files")) == ("vllm-chill", [])
    assert failing(await looking(api_keys_file=str(tmp_path / "none")), "files")


async def test_the_rights_are_those_of_the_proxys_account(looking: Looking) -> None:
    def users() -> set[str]:
        return {review["spec"].get("user", "") for review in looking.scripted.reviews}

    await looking()
    assert users() == {"system:serviceaccount:ai-apps:vllm-chill"}
    looking.scripted.reviews.clear()
    await looking("other/chill")
    assert users() == {"system:serviceaccount:other:chill"}


async def test_a_server_that_refuses_is_one_finding(looking: Looking) -> None:
    looking.scripted.statuses["/version"] = 401
    [finding] = (await looking()).findings
    assert (finding.check, finding.outcome) == ("api-server", Outcome.FAILURE)
    assert "log in again" in finding.remedy


async def test_rights_that_nobody_tells_stop_nothing(looking: Looking) -> None:
    looking.scripted.statuses |= {f"{REVIEWS}/{kind}subjectaccessreviews": 403 for kind in ("", "self")}
    found = await looking()
    assert {one.outcome for one in found.findings if one.check == "rights"} == {Outcome.UNKNOWN}
    assert len(found.findings) > 20


async def test_with_models_no_deployment_is_looked_for(looking: Looking) -> None:
    found = await looking(models="crd")
    checks = {one.check for one in found.findings}
    assert found.about.startswith("VLLMModel objects in ai-apps")
    assert failing(found, "models")
    assert "deployment" not in checks
    assert "service" not in checks

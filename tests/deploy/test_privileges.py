"""What the pods of deploy/ may do on their nodes: ours what Kubernetes' strictest standard lets them, and less."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.deploy.kustomized import MANIFESTS

PODS = {
    f"{file.parent.name}-{item['metadata']['name']}": item["spec"]["template"]["spec"]
    for file in MANIFESTS
    for item in yaml.safe_load_all(file.read_text())
    if isinstance(item, dict) and item.get("kind") == "Deployment" and "selector" in item["spec"]  # else it is a patch
}
OURS = {name: pod for name, pod in PODS.items() if pod["containers"][0]["image"].startswith("vllm-chill:")}


@pytest.mark.parametrize("pod", OURS.values(), ids=OURS)
def test_ours_meets_the_restricted_standard_and_writes_nowhere(pod: dict[str, Any]) -> None:
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & pod.keys()
    assert not any("hostPath" in volume for volume in pod.get("volumes", ()))
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
        assert not any("hostPort" in port for port in container["ports"])


@pytest.mark.parametrize("pod", OURS.values(), ids=OURS)
def test_ours_is_run_and_probed_without_a_shell(pod: dict[str, Any]) -> None:
    for container in pod["containers"]:
        assert not {"command", "lifecycle"} & container.keys()
        assert all("exec" not in container[probe] for probe in ("livenessProbe", "readinessProbe"))


@pytest.mark.parametrize("name", PODS)
def test_only_who_calls_the_api_server_has_a_token(name: str) -> None:
    assert PODS[name]["automountServiceAccountToken"] is (name in OURS)


def test_the_proxy_and_the_controller_are_ours() -> None:
    assert set(OURS) == {"deploy-vllm-chill", "controller-vllm-chill-controller"}

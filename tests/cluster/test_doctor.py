"""What is planted into a sound installation on a real cluster is found, and what is told to do about it helps."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from tests.cluster.account import NAME, ROLE, mount
from tests.cluster.clinic import Clinic, clinic_of
from tests.cluster.cluster import Cluster
from tests.cluster.forwarder import address_of
from vllm_chill.adapters.kubernetes.start_history import ANNOTATION
from vllm_chill.cli import cli
from vllm_chill.core.doctor.finding import Outcome

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, which users paste commands for")

BY_SERVICE = {"route": "service"}
ARGO = "argocd-controller"


@pytest.fixture
async def clinic(cluster: Cluster) -> AsyncIterator[Clinic]:
    async with clinic_of(cluster) as clinic:
        yield clinic


@dataclass(frozen=True)
class Planted:
    """A mistake, by which check it is found with what words, and what is told to do.

    `flags` are those of the look at it, and `then` those of the one after the remedy. `pasted`: the remedy is a
    command, which is run as it is.
    """

    plant: Callable[[Clinic], Awaitable[None]]
    check: str
    says: str
    remedy: str
    outcome: Outcome = Outcome.FAILURE
    flags: Mapping[str, str] = field(default_factory=dict)
    then: Mapping[str, str] | None = None
    pasted: bool = True


def planted(name: str, check: str, says: str, remedy: str, **more: Any) -> Callable[[Any], Any]:
    def take(plant: Callable[[Clinic], Awaitable[None]]) -> Callable[[Clinic], Awaitable[None]]:
        MISTAKES.append(pytest.param(Planted(plant, check, says, remedy, **more), id=name))
        return plant

    return take


MISTAKES: list[Any] = []
WARNING = {"outcome": Outcome.WARNING}


async def test_a_sound_installation_has_no_failure_and_no_warning(clinic: Clinic) -> None:
    found = await clinic.diagnosis()
    assert [one for one in found.findings if one.outcome is not Outcome.OK] == []
    assert found.settings_of == "vllm-chill"
    assert {one.check for one in found.findings} >= {
        "rights",
        "service-selector",
        "gpus",
        "volumes",
        "ingress-timeouts",
    }


@planted(
    "a Deployment of another name", "deployment", "there is no Deployment vlm", "give --deployment vllm",
    flags={"deployment": "vlm"}, then={"deployment": "vllm"}, pasted=False,
)  # fmt: skip
async def _(clinic: Clinic) -> None:
    pass


@planted("no Service", "service", "there is no Service vllm-svc", "kind: Service", flags=BY_SERVICE)
async def _(clinic: Clinic) -> None:
    await clinic.delete("Service", "v1", "vllm-svc")


@planted(
    "a Service that selects others", "service-selector", "selects app=other,tier=gpu, and vllm's pods have app=vllm",
    "kubectl -n", flags=BY_SERVICE,
)  # fmt: skip
async def _(clinic: Clinic) -> None:
    await clinic.patch("Service", "v1", "vllm-svc", {"spec": {"selector": {"app": "other", "tier": "gpu"}}})


@planted(
    "another port than the Service's", "service-port", "Service vllm-svc has no port 8000; it has 80",
    "give --target-port 80", flags={**BY_SERVICE, "target_port": "8000"}, then={**BY_SERVICE, "target_port": "80"},
    pasted=False,
)  # fmt: skip
async def _(clinic: Clinic) -> None:
    pass


@planted(
    "a Service to a port that the pods do not have", "service-port", "which have no port called web, but http",
    "have it lead to the engine's", flags=BY_SERVICE,
)  # fmt: skip
async def _(clinic: Clinic) -> None:
    body = {"spec": {"ports": [{"name": "http", "port": 80, "targetPort": "web"}]}}
    await clinic.patch("Service", "v1", "vllm-svc", body, "strategic-merge")


@planted(
    "an engine that listens elsewhere", "engine-port", "the engine listens on port 9000, and requests go to port 8000",
    "declare the engine's port",
)  # fmt: skip
async def _(clinic: Clinic) -> None:
    await clinic.patch_engine(args=["--model=Qwen/Qwen3-0.6B", "--port=9000"])


@planted("a Service called vllm", "service-links", "sets VLLM_PORT=tcp://", "enableServiceLinks")
async def _(clinic: Clinic) -> None:
    await clinic.patch_pods({"enableServiceLinks": None})
    await clinic.cluster.create_service("vllm")


@planted("no readiness probe", "readiness-probe", "there is no readinessProbe", "have the kubelet ask the engine")
async def _(clinic: Clinic) -> None:
    await clinic.patch_engine(readinessProbe=None, startupProbe=None, livenessProbe=None)


@planted("a startup probe that gives up", "startup-probe", "the startupProbe allows 10s", '"failureThreshold":900')
async def _(clinic: Clinic) -> None:
    await clinic.patch_engine(startupProbe={"failureThreshold": 5})


@planted("a liveness probe alone", "liveness-probe", "not healthy 1m after its start", "add a startupProbe")
async def _(clinic: Clinic) -> None:
    await clinic.patch_engine(startupProbe=None)


@planted("a rollout that waits for a GPU", "strategy", "strategy RollingUpdate starts a new pod", "Recreate", **WARNING)
async def _(clinic: Clinic) -> None:
    await clinic.patch("Deployment", "apps/v1", "vllm", {"spec": {"strategy": {"type": "RollingUpdate"}}})


@planted("an end without grace", "grace-period", "terminationGracePeriodSeconds is 1", "give it time", **WARNING)
async def _(clinic: Clinic) -> None:
    await clinic.patch_pods({"terminationGracePeriodSeconds": 1})


@planted("an image without a version", "image", "has no fixed version", "name a version", **WARNING)
async def _(clinic: Clinic) -> None:
    await clinic.patch_engine(image="vllm/vllm-openai:latest")


@planted("a registry that is asked each time", "image", "imagePullPolicy is Always", "IfNotPresent", **WARNING)
async def _(clinic: Clinic) -> None:
    await clinic.patch_engine(imagePullPolicy="Always")


@planted("a GPU of another make", "gpus", "no node offers amd.com/gpu; nodes offer nvidia.com/gpu", "device plugin")
async def _(clinic: Clinic) -> None:
    await clinic.patch_engine(resources={"limits": {"nvidia.com/gpu": None, "amd.com/gpu": "1"}})


@planted("more GPUs than a node has", "gpus", "asks for 16 nvidia.com/gpu, and no node has more than 8", "ask for 8")
async def _(clinic: Clinic) -> None:
    await clinic.patch_engine(resources={"limits": {"nvidia.com/gpu": "16"}})


@planted(
    "no node with the label", "node", "nodeSelector doctor-test=h200", "kubectl label node node-0 doctor-test=h200"
)
async def _(clinic: Clinic) -> None:
    await clinic.patch_pods({"nodeSelector": {"doctor-test": "h200"}})


@planted(
    "a quota that forbids GPUs", "quota", "ResourceQuota gpus allows 0 of requests.nvidia.com/gpu", "raise the quota"
)
async def _(clinic: Clinic) -> None:
    await clinic.create("ResourceQuota", "v1", "gpus", spec={"hard": {"requests.nvidia.com/gpu": "0"}})


@planted("no Secret to pull with", "pull-secrets", "there is no Secret registry-login", "create secret docker-registry")
async def _(clinic: Clinic) -> None:
    await clinic.patch_pods({"imagePullSecrets": [{"name": "registry-login"}]})


@planted("no volume", "volumes", "there is no PersistentVolumeClaim vllm-cache", "kind: PersistentVolumeClaim")
async def _(clinic: Clinic) -> None:
    await clinic.delete("PersistentVolumeClaim", "v1", "vllm-cache")


@planted(
    "no such StorageClass", "volumes", "StorageClass fast is not there", "StorageClass that there is", pasted=False
)
async def _(clinic: Clinic) -> None:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "fast"}
    await clinic.create("PersistentVolumeClaim", "v1", "fast", spec=spec)
    await clinic.patch_pods({"volumes": [{"name": "cache", "persistentVolumeClaim": {"claimName": "fast"}}]})


@planted("no ConfigMap", "config-maps", "there is no ConfigMap templates", "create configmap templates")
async def _(clinic: Clinic) -> None:
    await clinic.patch_engine(envFrom=[{"configMapRef": {"name": "templates"}}])


@planted("no Secret", "secrets", "there is no Secret hf-token", "--from-literal=token=VALUE")
async def _(clinic: Clinic) -> None:
    token = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf-token", "key": "token", "optional": False}}}
    await clinic.patch_engine(env=[token])


@planted("no ServiceAccount", "service-account", "there is no ServiceAccount engine", "create serviceaccount engine")
async def _(clinic: Clinic) -> None:
    await clinic.patch_pods({"serviceAccountName": "engine"})


@planted("an HPA", "autoscalers", "HorizontalPodAutoscaler vllm scales vllm too", "--mode recommend")
async def _(clinic: Clinic) -> None:
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "vllm"}
    spec = {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": 2}
    await clinic.create("HorizontalPodAutoscaler", "autoscaling/v1", "vllm", spec=spec)


@planted(
    "Argo CD that applies replicas", "gitops", f"Argo CD ({ARGO}) applies spec.replicas", "/spec/replicas", pasted=False
)
async def _(clinic: Clinic) -> None:
    path = f"/apis/apps/v1/namespaces/{clinic.namespace}/deployments/vllm"
    body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "vllm"}, "spec": {"replicas": 1}}
    query = {"fieldManager": ARGO, "force": "true"}
    await clinic.cluster.api.call("PATCH", path, query=query, body=body, patch="apply")


async def learn(clinic: Clinic, seconds: float) -> None:
    text = f'{{"version":1,"whole":{seconds},"stages":{{}}}}'
    await clinic.patch("Deployment", "apps/v1", "vllm", {"metadata": {"annotations": {ANNOTATION: text}}})


@planted(
    "a pause that is shorter than a start", "idle-timeout", "--idle-timeout is 1m, and a start takes 3m20s",
    "give --idle-timeout 7m", flags={"idle_timeout": "1m"}, then={"idle_timeout": "7m"}, pasted=False, **WARNING,
)  # fmt: skip
async def _(clinic: Clinic) -> None:
    await learn(clinic, 200)


@planted(
    "callers who are held too briefly", "wake-timeout", "--wake-timeout is 2m, and a start takes 3m20s",
    "give --wake-timeout 5m", then={"wake_timeout": "5m"}, pasted=False, **WARNING,
)  # fmt: skip
async def _(clinic: Clinic) -> None:
    await learn(clinic, 200)


@planted("an ingress that gives up", "ingress-timeouts", "gives up after 1m of silence", "proxy-read-timeout=1800")
async def _(clinic: Clinic) -> None:
    await clinic.annotate_ingress("proxy-read-timeout", "60")


@planted("an ingress that buffers", "ingress-limits", "buffers answers", "proxy-buffering=off", **WARNING)
async def _(clinic: Clinic) -> None:
    await clinic.annotate_ingress("proxy-buffering", "on")


@planted(
    "an ingress that refuses images", "ingress-limits", "refuses bodies above 1m", "proxy-body-size=64m", **WARNING
)
async def _(clinic: Clinic) -> None:
    await clinic.annotate_ingress("proxy-body-size", "1m")


@planted("an ingress for operators", "ingress-operators", "lets / through", "--admin-auth keys")
async def _(clinic: Clinic) -> None:
    await clinic.patch_ingress("path", "/")


@planted(
    "an ingress past the proxy", "ingress-bypass", "leads /v1 to Service vllm-svc", "lead it to the proxy's Service"
)
async def _(clinic: Clinic) -> None:
    await clinic.patch_ingress("backend", {"service": {"name": "vllm-svc", "port": {"number": 80}}})


@planted("proxies that do not agree", "proxies", "2 proxies serve it", "take --leader-elect=off out", pasted=False)
async def _(clinic: Clinic) -> None:
    change = [{"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": "--leader-elect=off"}]
    await clinic.patch("Deployment", "apps/v1", "vllm-chill", change, "json")
    await clinic.patch("Deployment", "apps/v1", "vllm-chill", {"spec": {"replicas": 2}})


@planted(
    "a proxy that ends too soon", "proxy-grace-period", "of vllm-chill is 30", "for as long as it drains", **WARNING
)
async def _(clinic: Clinic) -> None:
    await clinic.patch_pods({"terminationGracePeriodSeconds": 30}, "vllm-chill")


@planted("a network that lets nobody in", "network-policies", "keeps the proxy from port 8000", "kind: NetworkPolicy")
async def _(clinic: Clinic) -> None:
    spec = {"podSelector": {}, "policyTypes": ["Ingress"]}
    await clinic.create("NetworkPolicy", "networking.k8s.io/v1", "deny", spec=spec)


@planted("a network without the API server", "network-policies", "out to the API server", "port: 6443")
async def _(clinic: Clinic) -> None:
    chill = {"matchLabels": {"app.kubernetes.io/name": "vllm-chill"}}
    egress = [{"to": [{"podSelector": {"matchLabels": {"app": "vllm"}}}]}]
    spec = {"podSelector": chill, "policyTypes": ["Egress"], "egress": egress}
    await clinic.create("NetworkPolicy", "networking.k8s.io/v1", "chill", spec=spec)


@planted(
    "a budget that lets no pod go",
    "disruption-budget",
    "PodDisruptionBudget vllm has minAvailable 1",
    "let one",
    **WARNING,
)
async def _(clinic: Clinic) -> None:
    spec = {"minAvailable": 1, "selector": {"matchLabels": {"app": "vllm"}}}
    await clinic.create("PodDisruptionBudget", "policy/v1beta1", "vllm", spec=spec)


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_a_mistake_is_found_and_its_remedy_helps(mistake: Planted, clinic: Clinic) -> None:
    await mistake.plant(clinic)
    found = await clinic.found(mistake.check, mistake.flags)
    finding = next((one for one in found if mistake.says in one.says), None)
    assert finding is not None, found
    assert finding.outcome is mistake.outcome
    assert mistake.remedy in f"{finding.remedy}\n{finding.paste}"
    if mistake.pasted:
        await clinic.run(finding.paste)
    if mistake.pasted or mistake.then is not None:
        left = await clinic.found(mistake.check, mistake.flags if mistake.then is None else mistake.then)
        assert [one for one in left if mistake.says in one.says] == []


@pytest.mark.parametrize(
    ("resource", "verb", "check", "harm"),
    [
        pytest.param("deployments/scale", "patch", "rights", "neither woken nor put to sleep", id="a right"),
        pytest.param("events", "watch", "optional-rights", "that an image is being pulled", id="an optional one"),
    ],
)
async def test_a_right_that_is_missing_is_found_and_the_rule_that_is_told_grants_it(
    resource: str, verb: str, check: str, harm: str, clinic: Clinic
) -> None:
    rules = [rule for rule in ROLE["rules"] if resource not in rule["resources"]]
    role = {"rules": rules}
    await clinic.patch("Role", "rbac.authorization.k8s.io/v1", NAME, role)
    [finding] = await until(lambda: clinic.found(check), bool)
    assert f"ServiceAccount {clinic.namespace}/{NAME} may not" in finding.says
    assert verb in finding.says
    assert harm in finding.says
    rule = {"rules": [*rules, *yaml.safe_load(finding.paste)]}
    await clinic.patch("Role", "rbac.authorization.k8s.io/v1", NAME, rule)
    assert await until(lambda: clinic.found(check), lambda found: not found) == []


async def until(ask: Callable[[], Awaitable[list[Any]]], holds: Callable[[list[Any]], bool]) -> list[Any]:
    """What it says once that holds: an API server honours a Role a moment after it was written."""
    async with asyncio.timeout(20):
        while not holds(found := await ask()):  # noqa: ASYNC110 - as any client would
            await asyncio.sleep(0.05)
    return found


async def test_a_deployment_of_another_namespace_is_told(clinic: Clinic) -> None:
    await clinic.delete("Deployment", "apps/v1", "vllm")
    name = f"{clinic.namespace}-other"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    api = clinic.cluster.api
    await api.call("POST", "/api/v1/namespaces", body=body)
    other = Cluster(api, clinic.cluster.kubeconfig, name)
    try:
        await other.create_deployment()
        [finding] = await clinic.found("deployment")
    finally:
        await other.delete(f"/api/v1/namespaces/{name}")
    assert ", and there is one in chill-test-" in finding.says
    assert "give --namespace chill-test-" in finding.remedy


async def test_an_engine_that_is_awake_is_asked(clinic: Clinic) -> None:
    await clinic.cluster.scale(1)
    await clinic.cluster.until_pods(lambda pods: any(_is_ready(pod) for pod in pods))
    [finding] = [one for one in (await clinic.diagnosis()).findings if one.check == "engine"]
    assert finding.outcome is Outcome.OK, finding
    assert "is healthy and serves Qwen/Qwen3-0.6B" in finding.says
    [finding] = await clinic.found("engine", {"health_path": "/nothing"})
    assert "/nothing answers 404" in finding.says
    assert "--health-path" in finding.remedy


def _is_ready(pod: Any) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


async def test_who_has_the_proxys_rights_alone_is_told_what_it_may_not_look_at(clinic: Clinic, tmp_path: Path) -> None:
    kubeconfig = await of_the_account(clinic, tmp_path)
    found = (await clinic.diagnosis({"kubeconfig": str(kubeconfig)})).findings
    assert [one for one in found if one.outcome in (Outcome.FAILURE, Outcome.WARNING)] == []
    unseen = {one.check: one.says for one in found if one.outcome is Outcome.UNKNOWN}
    assert unseen["service"] == "could not look: needs the right to list services"
    assert unseen["gpus"] == "could not look: needs the right to list nodes cluster-wide"
    assert not any("scaledobjects" in one.says for one in found), "KEDA is not there"
    fine = {one.check: one.says for one in found if one.outcome is Outcome.OK}
    assert fine["deployment"].endswith("is there, asleep")
    assert fine["rights"] == "whoever asks has all 11 necessary rights"


async def of_the_account(clinic: Clinic, folder: Path) -> Path:
    """A kubeconfig of the proxy's ServiceAccount."""
    await mount(clinic.cluster, folder)
    return edited(clinic, folder, {"token": (folder / "token").read_text()})


def edited(clinic: Clinic, folder: Path, user: dict[str, str] | None = None, **cluster: Any) -> Path:
    """A copy of the kubeconfig with another user, or with something else of the cluster; None takes it away."""
    config = yaml.safe_load(clinic.cluster.kubeconfig.read_text())
    config["clusters"][0]["cluster"].update(cluster)
    if user is not None:
        config["users"][0]["user"] = user
    copy = folder / "kubeconfig"
    copy.write_text(yaml.safe_dump(config))
    return copy


async def test_credentials_that_are_not_accepted_are_told(clinic: Clinic, tmp_path: Path) -> None:
    kubeconfig = edited(clinic, tmp_path, {"token": "worn-out"})
    [finding] = (await clinic.diagnosis({"kubeconfig": str(kubeconfig)})).findings
    assert (finding.check, finding.outcome) == ("api-server", Outcome.FAILURE)
    assert "does not accept the credentials" in finding.says
    assert "log in again" in finding.remedy


async def test_an_api_server_that_nobody_vouches_for_is_told(clinic: Clinic, tmp_path: Path) -> None:
    config = yaml.safe_load(clinic.cluster.kubeconfig.read_text())
    del config["clusters"][0]["cluster"]["certificate-authority-data"]
    copy = tmp_path / "kubeconfig"
    copy.write_text(yaml.safe_dump(config))
    [finding] = (await clinic.diagnosis({"kubeconfig": str(copy)})).findings
    assert finding.check == "api-server"
    assert "certificate" in finding.says
    assert "certificate-authority" in finding.remedy


async def test_an_api_server_that_is_not_there_is_told(clinic: Clinic, tmp_path: Path) -> None:
    host, _ = address_of(clinic.cluster.kubeconfig)
    kubeconfig = edited(clinic, tmp_path, server=f"https://{host}:1")
    [finding] = (await clinic.diagnosis({"kubeconfig": str(kubeconfig)})).findings
    assert "refused" in finding.says
    assert "cluster runs" in finding.remedy


async def test_the_command_says_it_and_ends_with_1_if_something_has_failed(clinic: Clinic) -> None:
    words = ["doctor", "--namespace", clinic.namespace, "--kubeconfig", str(clinic.cluster.kubeconfig)]
    sound = await asyncio.to_thread(CliRunner().invoke, cli, words)
    assert sound.exit_code == 0, sound.output
    assert "\x1b" not in sound.output
    await clinic.patch_engine(startupProbe=None)
    sick = await asyncio.to_thread(CliRunner().invoke, cli, words)
    assert sick.exit_code == 1
    assert "failure  liveness-probe" in sick.output
    assert f"kubectl -n {clinic.namespace} patch deployment/vllm" in sick.output

"""The manifests' structure, without a cluster. tests/cluster/test_manifests.py has a real API server take them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import durationpy
import pytest
import yaml
from jsonschema import Draft4Validator

from tests.deploy.kustomized import build_with, needs_kubectl
from vllm_chill.adapters.kubernetes.savings_map import map_name
from vllm_chill.api.crd import DEFINITIONS, POLICIES, crd
from vllm_chill.api.scaling_policy import parse_policy, policy_warnings
from vllm_chill.api.vllm_model import parse_model, warnings
from vllm_chill.cli.crd import crd_yaml
from vllm_chill.settings.parts import env_of
from vllm_chill.settings.plain import parse_controllers
from vllm_chill.settings.serve import Settings, load_settings

DEPLOY = Path(__file__).parents[2] / "deploy"
FOLDERS = [DEPLOY, DEPLOY / "example"]
# What is in no namespace, or in whichever it is applied to.
CLUSTER_FOLDERS = [DEPLOY / "crds", DEPLOY / "example" / "models", DEPLOY / "example" / "scaling"]


def objects(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text()))


def only(file: str, kind: str) -> dict[str, Any]:
    [found] = [item for item in objects(DEPLOY / file) if item["kind"] == kind]
    return found


def pod_of(file: str) -> dict[str, Any]:
    spec: dict[str, Any] = only(file, "Deployment")["spec"]["template"]["spec"]
    return spec


def arguments(file: str) -> dict[str, str]:
    [container] = pod_of(file)["containers"]
    return dict(argument.removeprefix("--").split("=", 1) for argument in container["args"] if "=" in argument)


@pytest.mark.parametrize("folder", [*FOLDERS, *CLUSTER_FOLDERS], ids=lambda folder: folder.name)
def test_every_manifest_is_in_its_kustomization(folder: Path) -> None:
    [kustomization] = objects(folder / "kustomization.yaml")
    files = {name for name in kustomization["resources"] if not (folder / name).is_dir()}
    assert files == {f.name for f in folder.glob("*.yaml")} - {"kustomization.yaml"}


def test_the_proxy_comes_with_what_lets_a_cluster_have_models_and_scaling_policies() -> None:
    [kustomization] = objects(DEPLOY / "kustomization.yaml")
    assert [name for name in kustomization["resources"] if (DEPLOY / name).is_dir()] == ["crds"]
    for of in DEFINITIONS:
        assert (DEPLOY / f"crds/{of.name}.yaml").read_text() == crd_yaml(crd(of))


@pytest.mark.parametrize("folder", CLUSTER_FOLDERS, ids=lambda folder: folder.name)
def test_what_belongs_to_no_namespace_names_none(folder: Path) -> None:
    [kustomization] = objects(folder / "kustomization.yaml")
    assert "namespace" not in kustomization
    for file in kustomization["resources"]:
        assert all("namespace" not in item["metadata"] for item in objects(folder / file))


MODELS = sorted(path for path in (DEPLOY / "example/models").glob("*.yaml") if path.name != "kustomization.yaml")


@pytest.mark.parametrize("file", MODELS, ids=lambda file: file.stem)
def test_the_example_models_are_good_in_every_field(file: Path) -> None:
    [given] = objects(file)
    model = parse_model(given)
    assert model.name == file.stem
    assert warnings(model, given) == ()
    Draft4Validator(crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]).validate(given)


def test_the_example_policy_is_good_in_every_field() -> None:
    [given] = objects(DEPLOY / "example/scaling/policy.yaml")
    assert policy_warnings(parse_policy(given), given) == ()
    Draft4Validator(crd(POLICIES)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]).validate(given)


def test_the_example_models_share_their_gpus_and_the_examples_cache() -> None:
    specs = [parse_model(item).spec for file in MODELS for item in objects(file)]
    assert len(specs) == 2
    assert len({(spec.group, spec.gpu_count) for spec in specs}) == 1
    claim = only("example/cache.yaml", "PersistentVolumeClaim")["metadata"]["name"]
    for spec in specs:
        assert spec.cache is not None
        assert spec.cache.pvc is not None
        assert spec.cache.pvc.claim_name == claim


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_everything_is_in_the_kustomizations_namespace(folder: Path) -> None:
    [kustomization] = objects(folder / "kustomization.yaml")
    for file in kustomization["resources"]:
        for item in objects(folder / file) if (folder / file).is_file() else ():
            named = item["metadata"]["name"] if item["kind"] == "Namespace" else item["metadata"]["namespace"]
            assert named == kustomization["namespace"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_image_is_pinned_and_can_be_overridden(folder: Path) -> None:
    [kustomization] = objects(folder / "kustomization.yaml")
    pinned = {f"{image['name']}:{image['newTag']}" for image in kustomization["images"]}
    used = {container["image"] for container in pod_of(str(folder / "deployment.yaml"))["containers"]}
    assert used == pinned


def test_the_proxy_takes_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {name.replace("-", "_"): value for name, value in arguments("deployment.yaml").items()}
    for field in Settings.model_fields.values():
        monkeypatch.delenv(env_of(field), raising=False)
    settings = load_settings(given | {"namespace": "ai-apps"})
    assert settings.model_fields_set == set(given)
    assert settings.backend == "kubernetes"


def test_the_proxy_runs_without_any_privilege() -> None:
    pod = pod_of("deployment.yaml")
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    [container] = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_proxy_asks_for_little() -> None:
    [container] = pod_of("deployment.yaml")["containers"]
    assert container["resources"] == {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}}


def test_the_proxy_is_probed_where_it_answers_itself() -> None:
    [container] = pod_of("deployment.yaml")["containers"]
    assert container["livenessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}


def test_a_proxy_that_stops_has_the_time_to_drain() -> None:
    drain = durationpy.from_str(arguments("deployment.yaml")["drain-timeout"]).total_seconds()
    assert pod_of("deployment.yaml")["terminationGracePeriodSeconds"] >= drain + 10


@pytest.mark.parametrize("file", ["deployment.yaml", "example/deployment.yaml"])
def test_no_service_sets_variables_in(file: str) -> None:
    assert pod_of(file)["enableServiceLinks"] is False


def test_the_role_names_the_deployment_that_the_proxy_scales() -> None:
    arg = arguments("deployment.yaml")["deployment"]
    rules = only("rbac.yaml", "Role")["rules"]
    named = {(rule["apiGroups"][0], name) for rule in rules for name in rule.get("resourceNames", [])}
    assert named == {("apps", arg), ("", map_name("vllm-chill"))}
    assert only("example/deployment.yaml", "Deployment")["metadata"]["name"] == arg


def test_the_role_is_the_proxys() -> None:
    account = only("serviceaccount.yaml", "ServiceAccount")["metadata"]["name"]
    [subject] = only("rbac.yaml", "RoleBinding")["subjects"]
    assert subject["name"] == account == pod_of("deployment.yaml")["serviceAccountName"]
    assert only("rbac.yaml", "RoleBinding")["roleRef"]["name"] == only("rbac.yaml", "Role")["metadata"]["name"]


def test_the_services_lead_from_the_ingress_to_the_model() -> None:
    ingress = only("ingress.yaml", "Ingress")["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    proxy, model = only("service.yaml", "Service"), only("example/service.yaml", "Service")
    assert ingress["name"] == proxy["metadata"]["name"] == "vllm-chill-svc"
    assert arguments("deployment.yaml")["target-host"] == model["metadata"]["name"]
    assert arguments("deployment.yaml")["target-port"] == str(model["spec"]["ports"][0]["port"])
    for service, file in ((proxy, "deployment.yaml"), (model, "example/deployment.yaml")):
        labels = only(file, "Deployment")["spec"]["template"]["metadata"]["labels"]
        assert service["spec"]["selector"].items() <= labels.items()


def test_the_ingress_waits_for_a_cold_start_and_streams() -> None:
    prefix = "nginx.ingress.kubernetes.io/"
    annotations = only("ingress.yaml", "Ingress")["metadata"]["annotations"]
    start = durationpy.from_str(arguments("deployment.yaml")["start-timeout"]).total_seconds()
    assert int(annotations[prefix + "proxy-read-timeout"]) >= start
    assert int(annotations[prefix + "proxy-send-timeout"]) >= start
    assert annotations[prefix + "proxy-buffering"] == "off"


def test_the_example_sleeps_until_it_is_woken_and_may_load_for_as_long_as_the_proxy_waits() -> None:
    vllm = only("example/deployment.yaml", "Deployment")["spec"]
    assert vllm["replicas"] == 0
    assert vllm["strategy"] == {"type": "Recreate"}
    [container] = vllm["template"]["spec"]["containers"]
    start = durationpy.from_str(arguments("deployment.yaml")["start-timeout"]).total_seconds()
    assert container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"] >= start
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    volumes = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert volumes == {"cache": "/cache", "shm": "/dev/shm"}


def test_the_component_for_models_has_all_of_its_manifests() -> None:
    [component] = objects(DEPLOY / "models/kustomization.yaml")
    files = {*component["resources"], *(patch["path"] for patch in component["patches"])}
    assert files == {f.name for f in (DEPLOY / "models").glob("*.yaml")} - {"kustomization.yaml"}
    [target] = [patch["target"] for patch in component["patches"]]
    assert (target["kind"], target["name"]) == ("Deployment", only("deployment.yaml", "Deployment")["metadata"]["name"])


def test_with_models_the_proxy_takes_its_arguments_and_differs_in_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    [patch] = yaml.safe_load((DEPLOY / "models/arguments.yaml").read_text())
    assert (patch["op"], patch["path"]) == ("replace", "/spec/template/spec/containers/0/args")
    pairs = [argument.removeprefix("--").partition("=") for argument in map(str, patch["value"]) if "=" in argument]
    given = {name: value for name, _, value in pairs}
    alone = arguments("deployment.yaml")
    assert given.items() - alone.items() == {("models", "crd")}
    assert alone.keys() - given.keys() == {"deployment", "target-host", "target-port"}
    for field in Settings.model_fields.values():
        monkeypatch.delenv(env_of(field), raising=False)
    fields = {name.replace("-", "_"): value for name, value in given.items()}
    assert load_settings(fields | {"namespace": "ai-apps"}).models == "crd"


@pytest.mark.parametrize("part", ["policies", "variants"])
def test_the_rights_for_policies_and_variants_are_the_proxys(part: str) -> None:
    account = only("serviceaccount.yaml", "ServiceAccount")["metadata"]
    role, binding = objects(DEPLOY / part / "rbac.yaml")
    assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == (role["kind"], role["metadata"]["name"])
    [subject] = binding["subjects"]
    assert (subject["name"], subject["namespace"]) == (account["name"], account["namespace"])


def test_the_rights_for_models_are_the_proxys() -> None:
    account = only("serviceaccount.yaml", "ServiceAccount")["metadata"]
    roles = {(item["kind"], item["metadata"]["name"]): item for item in objects(DEPLOY / "models/rbac.yaml")}
    for kind in ("ClusterRole", "Role"):
        binding = roles[f"{kind}Binding", "vllm-chill-models"]
        assert binding["roleRef"]["kind"] == kind
        assert binding["roleRef"]["name"] == roles[kind, "vllm-chill-models"]["metadata"]["name"]
        [subject] = binding["subjects"]
        assert (subject["name"], subject["namespace"]) == (account["name"], account["namespace"])


def test_the_component_for_two_proxies_has_all_of_its_manifests() -> None:
    folder = DEPLOY / "overlays/ha"
    [component] = objects(folder / "kustomization.yaml")
    files = {*component["resources"], *(patch["path"] for patch in component["patches"])}
    assert files == {f.name for f in folder.glob("*.yaml")} - {"kustomization.yaml"}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, which has kustomize in it")
def test_kustomize_builds_the_proxy_with_its_components_in_any_namespace(tmp_path: Path) -> None:
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    (tmp_path / "mine").mkdir()
    components = ["../deploy/models", "../deploy/policies", "../deploy/variants"]
    kustomization = {"namespace": "mine", "resources": ["../deploy"], "components": components}
    (tmp_path / "mine/kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    built = subprocess.run(["kubectl", "kustomize", "mine"], cwd=tmp_path, capture_output=True, check=True)
    items = {(item["kind"], item["metadata"]["name"]): item for item in yaml.safe_load_all(built.stdout)}
    [container] = items["Deployment", "vllm-chill"]["spec"]["template"]["spec"]["containers"]
    assert "--models=crd" in container["args"]
    for kind in ("RoleBinding", "ClusterRoleBinding"):
        assert items[kind, "vllm-chill-models"]["subjects"][0]["namespace"] == "mine"
    assert parse_controllers({one["name"]: one.get("value") for one in container["env"]}["CONTROLLERS"]) == {
        "policies",
        "variants",
    }
    for part in ("models", "policies", "variants"):
        assert items["Role", f"vllm-chill-{part}"]["metadata"]["namespace"] == "mine"
        assert items["RoleBinding", f"vllm-chill-{part}"]["subjects"][0]["namespace"] == "mine"


@needs_kubectl
def test_two_proxies_are_kept_apart_and_not_taken_away_at_once(tmp_path: Path) -> None:
    built = build_with(DEPLOY, ["overlays/ha"], tmp_path, namespace="mine")
    deployment, budget = built.of("Deployment", "vllm-chill"), built.of("PodDisruptionBudget", "vllm-chill")
    assert deployment["spec"]["replicas"] == 2
    pod = deployment["spec"]["template"]
    labels = {"matchLabels": deployment["spec"]["selector"]["matchLabels"]}
    [near] = pod["spec"]["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert near["podAffinityTerm"] == {"topologyKey": "kubernetes.io/hostname", "labelSelector": labels}
    [spread] = pod["spec"]["topologySpreadConstraints"]
    # Where there is one zone, or one node, both are there all the same.
    assert (spread["whenUnsatisfiable"], spread["labelSelector"]) == ("ScheduleAnyway", labels)
    assert budget["metadata"]["namespace"] == "mine"
    assert budget["spec"] == {"minAvailable": 1, "selector": labels}


@needs_kubectl
def test_two_proxies_differ_from_one_in_nothing_else_and_go_with_any_other_component(tmp_path: Path) -> None:
    components = ["models", "policies", "variants"]
    one = build_with(DEPLOY, components, tmp_path / "one")
    two = build_with(DEPLOY, [*components, "overlays/ha"], tmp_path / "two")
    deployment = two.of("Deployment", "vllm-chill")
    deployment["spec"]["replicas"] = 1
    for added in ("affinity", "topologySpreadConstraints"):
        del deployment["spec"]["template"]["spec"][added]
    assert [item for item in two.items if item["kind"] != "PodDisruptionBudget"] == one.items


@needs_kubectl
def test_there_can_be_more_than_two(tmp_path: Path) -> None:
    more = [{"name": "vllm-chill", "count": 3}]
    built = build_with(DEPLOY, ["overlays/ha"], tmp_path, replicas=more)
    assert built.of("Deployment", "vllm-chill")["spec"]["replicas"] == 3


def test_a_new_proxy_comes_before_an_old_one_goes() -> None:
    strategy = only("deployment.yaml", "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxSurge": 1, "maxUnavailable": 0}

"""deploy/controller, as kustomize renders it. tests/cluster has a real API server take it, and honour its rights."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import click
import durationpy
import pytest
import yaml

from tests.deploy.kustomized import DEPLOY, Built, build, build_with, needs_kubectl
from vllm_chill.api.variant_config import by_place, read_configs
from vllm_chill.cli import cli
from vllm_chill.core.saturation.config import DEFAULT

CONTROLLER = DEPLOY / "controller"
COMPONENTS = ["direct", "monitor", "namespaced"]
NAME = "vllm-chill-controller"
# llm-d's, which stand in its users' ConfigMaps.
MAIN_KEYS = {
    "PROMETHEUS_BASE_URL", "PROMETHEUS_BEARER_TOKEN", "PROMETHEUS_TOKEN_PATH", "PROMETHEUS_TLS_INSECURE_SKIP_VERIFY",
    "PROMETHEUS_CA_CERT_PATH", "PROMETHEUS_CLIENT_CERT_PATH", "PROMETHEUS_CLIENT_KEY_PATH", "PROMETHEUS_SERVER_NAME",
    "GLOBAL_OPT_INTERVAL", "WVA_SCALE_TO_ZERO", "WVA_LIMITED_MODE", "WVA_NODE_SELECTOR",
    "SCALE_FROM_ZERO_ENGINE_MAX_CONCURRENCY", "EPP_METRIC_READER_BEARER_TOKEN", "PROMETHEUS_METRICS_CACHE_TTL",
    "PROMETHEUS_METRICS_CACHE_CLEANUP_INTERVAL", "PROMETHEUS_METRICS_CACHE_FETCH_INTERVAL",
    "PROMETHEUS_METRICS_CACHE_FRESH_THRESHOLD", "PROMETHEUS_METRICS_CACHE_STALE_THRESHOLD",
    "PROMETHEUS_METRICS_CACHE_UNAVAILABLE_THRESHOLD",
}  # fmt: skip

pytestmark = needs_kubectl


@pytest.fixture(scope="module")
def plain() -> Built:
    return build(CONTROLLER)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build_with(CONTROLLER, COMPONENTS, tmp_path_factory.mktemp("whole"), namespace="mine")


def container_of(built: Built) -> dict[str, Any]:
    [container] = built.of("Deployment", NAME)["spec"]["template"]["spec"]["containers"]
    return dict(container)


def rights(role: dict[str, Any]) -> set[tuple[str, str]]:
    """(verb, resource) for each right."""
    return {
        (verb, resource) for rule in role["rules"] for resource in rule.get("resources", []) for verb in rule["verbs"]
    }


def binding_of(built: Built, kind: str, role: str) -> dict[str, Any]:
    [found] = [binding for binding in built.all(f"{kind}Binding") if binding["roleRef"]["name"] == role]
    assert found["roleRef"]["kind"] == kind
    return found


@pytest.mark.parametrize("folder", [".", *COMPONENTS])
def test_every_manifest_is_in_its_kustomization(folder: str) -> None:
    kustomization = yaml.safe_load((CONTROLLER / folder / "kustomization.yaml").read_text())
    named = {*kustomization.get("resources", []), *kustomization.get("configurations", [])}
    assert named == {f.name for f in (CONTROLLER / folder).glob("*.yaml")} - {"kustomization.yaml"}


def test_it_runs_without_any_privilege(plain: Built) -> None:
    pod = plain.of("Deployment", NAME)["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container_of(plain)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_two_of_them_ask_for_little(plain: Built) -> None:
    assert plain.of("Deployment", NAME)["spec"]["replicas"] == 2
    assert "--leader-elect" in container_of(plain)["args"]
    resources = container_of(plain)["resources"]
    assert resources["requests"] == {"cpu": "10m", "memory": "64Mi"}
    assert resources["limits"] == {"cpu": "500m", "memory": "256Mi"}


def test_it_is_probed_and_scraped_where_it_listens(plain: Built) -> None:
    container = container_of(plain)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    flags = dict(arg.removeprefix("--").split("=", 1) for arg in container["args"] if "=" in arg)
    assert flags["metrics-bind-address"] == f":{ports['https']}"
    assert flags["health-probe-bind-address"] == f":{ports['health']}"
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "health"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "health"}
    service = plain.of("Service", "vllm-chill-controller-metrics")["spec"]
    assert service["ports"] == [{"name": "https", "port": ports["https"], "targetPort": "https"}]
    labels = plain.of("Deployment", NAME)["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()


def test_its_image_is_pinned_and_is_the_proxys(plain: Built) -> None:
    proxy = yaml.safe_load((DEPLOY / "deployment.yaml").read_text())["spec"]["template"]["spec"]["containers"][0]
    assert container_of(plain)["image"] == proxy["image"]


def test_it_takes_its_arguments(whole: Built) -> None:
    command = cli.get_command(click.Context(cli), "controller")
    assert command is not None
    known = {option for param in command.params for option in param.opts}
    word, *flags = container_of(whole)["args"]
    assert word == command.name
    assert {flag.partition("=")[0] for flag in flags} <= known


# --- rights ---


def test_it_may_read_what_it_decides_by_and_write_nothing_but_status_and_events(plain: Built) -> None:
    assert rights(plain.of("ClusterRole", NAME)) == {
        *((verb, of) for verb in ("get", "list", "watch") for of in (
            "variantautoscalings", "deployments", "statefulsets", "replicasets", "pods", "configmaps")),
        ("patch", "variantautoscalings/status"),
        *((verb, "events") for verb in ("get", "create", "patch")),
    }  # fmt: skip
    cluster = rights(plain.of("ClusterRole", f"{NAME}-cluster"))
    assert cluster == {(verb, of) for verb in ("get", "list", "watch") for of in ("nodes", "namespaces")}
    reviews = rights(plain.of("ClusterRole", f"{NAME}-reviews"))
    assert reviews == {("create", "tokenreviews"), ("create", "subjectaccessreviews")}
    assert {of for _, of in rights(plain.of("Role", f"{NAME}-lease"))} == {"leases"}


def test_every_right_is_its_accounts_and_nobody_elses(plain: Built) -> None:
    for kind, suffix in (("ClusterRole", ""), ("ClusterRole", "-cluster"), ("ClusterRole", "-reviews"),
                         ("Role", "-lease")):  # fmt: skip
        [subject] = binding_of(plain, kind, NAME + suffix)["subjects"]
        account = plain.of("ServiceAccount", subject["name"])["metadata"]
        assert (subject["namespace"], account["namespace"]) == ("vllm-chill-system",) * 2
        assert plain.of("Deployment", NAME)["spec"]["template"]["spec"]["serviceAccountName"] == subject["name"]
    assert len(plain.all("ClusterRoleBinding")) == 3
    assert len(plain.all("RoleBinding")) == 1


def test_only_the_component_direct_lets_it_scale(plain: Built, tmp_path: Path) -> None:
    def scaling(built: Built) -> set[tuple[str, str]]:
        return {
            (verb, of)
            for role in built.all("ClusterRole")
            for verb, of in rights(role)
            if of.partition("/")[2] == "scale"
        }

    assert scaling(plain) == set()
    direct = build_with(CONTROLLER, ["direct"], tmp_path)
    assert scaling(direct) == {("patch", "deployments/scale"), ("patch", "statefulsets/scale")}
    assert binding_of(direct, "ClusterRole", f"{NAME}-direct")["subjects"][0]["name"] == NAME


def test_the_roles_for_people_are_of_the_group_that_there_is(plain: Built) -> None:
    for who in ("admin", "editor", "viewer"):
        role = plain.of("ClusterRole", f"vllm-chill-variants-{who}")
        assert {group for rule in role["rules"] for group in rule["apiGroups"]} == {"llmd.ai"}
        assert ("get", "variantautoscalings/status") in rights(role)
    viewer = rights(plain.of("ClusterRole", "vllm-chill-variants-viewer"))
    assert {verb for verb, _ in viewer} == {"get", "list", "watch"}
    reader = plain.of("ClusterRole", "vllm-chill-metrics-reader")
    assert reader["rules"] == [{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]


def test_in_one_namespace_it_has_roles_there_and_only_asks_the_cluster_who_scrapes(whole: Built) -> None:
    assert "--watch-namespace=$(POD_NAMESPACE)" in container_of(whole)["args"]
    for name in (NAME, f"{NAME}-direct", f"{NAME}-lease"):
        assert whole.of("Role", name)["metadata"]["namespace"] == "mine"
        binding = binding_of(whole, "Role", name)
        assert binding["metadata"]["namespace"] == "mine"
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": NAME, "namespace": "mine"}]
    assert f"{NAME}-cluster" not in whole.names("ClusterRole") | whole.names("Role")
    theirs = {
        binding["roleRef"]["name"]
        for binding in whole.all("ClusterRoleBinding")
        if binding["subjects"][0]["name"] == NAME
    }
    assert theirs == {f"{NAME}-reviews"}


def test_in_one_namespace_it_has_the_rights_that_it_has_in_all(plain: Built, whole: Built) -> None:
    assert rights(whole.of("Role", NAME)) == rights(plain.of("ClusterRole", NAME))


def test_one_in_each_namespace_shares_nothing_that_differs(tmp_path: Path) -> None:
    text = (CONTROLLER / "namespaced/kustomization.yaml").read_text()
    [shown] = re.findall(r"^#   transformers:\n((?:#     .*\n)+)", text, re.MULTILINE)
    [transformer] = yaml.safe_load(re.sub(r"^# {5}", "", shown, flags=re.MULTILINE))

    def one(namespace: str) -> dict[tuple[str, str, str], dict[str, Any]]:
        own = transformer.replace("-my-namespace", f"-{namespace}")
        built = build_with(CONTROLLER, COMPONENTS, tmp_path, namespace=namespace, transformers=[own])
        return {
            (item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]): item
            for item in built.items
        }

    red, blue = one("red"), one("blue")
    both = red.keys() & blue.keys()
    assert {kind for kind, _, _ in both} == {"ClusterRole"}
    assert all(red[key] == blue[key] for key in both)


# --- the scrape ---


def test_the_monitor_scrapes_each_pod_as_somebody_who_may(whole: Built) -> None:
    [endpoint] = whole.of("ServiceMonitor", NAME)["spec"]["endpoints"]
    service = whole.of("Service", "vllm-chill-controller-metrics")
    assert endpoint["port"] == service["spec"]["ports"][0]["name"]
    selector = whole.of("ServiceMonitor", NAME)["spec"]["selector"]["matchLabels"]
    assert selector.items() <= service["metadata"]["labels"].items()
    secret = whole.of("Secret", endpoint["authorization"]["credentials"]["name"])
    account = secret["metadata"]["annotations"]["kubernetes.io/service-account.name"]
    [subject] = binding_of(whole, "ClusterRole", "vllm-chill-metrics-reader")["subjects"]
    assert (subject["name"], subject["namespace"]) == (account, "mine")
    assert account in whole.names("ServiceAccount")


def test_a_suffix_on_all_names_breaks_no_reference_of_the_monitor(tmp_path: Path) -> None:
    built = build_with(CONTROLLER, ["monitor"], tmp_path, nameSuffix="-b")
    [endpoint] = built.of("ServiceMonitor", f"{NAME}-b")["spec"]["endpoints"]
    secret = built.of("Secret", endpoint["authorization"]["credentials"]["name"])
    assert secret["metadata"]["annotations"]["kubernetes.io/service-account.name"] in built.names("ServiceAccount")


# --- the ConfigMaps ---


def config_map(name: str) -> dict[str, Any]:
    [found] = [
        item
        for item in yaml.safe_load_all((CONTROLLER / "configmaps.yaml").read_text())
        if item["metadata"]["name"] == name
    ]
    data: dict[str, Any] = found.get("data", {})
    return data


def shown_in(text: str) -> dict[str, Any]:
    """The keys with their values that an entry shows in comments."""
    found: dict[str, Any] = yaml.safe_load("\n".join(re.findall(r"^# (\w+: \S+)$", text, re.MULTILINE)))
    return found


def snake(key: str) -> str:
    return re.sub(r"[A-Z]", lambda letter: f"_{letter[0].lower()}", key)


def test_the_main_config_map_shows_every_key() -> None:
    main = (CONTROLLER / "configmaps.yaml").read_text().partition("\n---\n")[0]
    shown = yaml.safe_load(re.sub("^# ?", "", main.partition("# data:\n")[2], flags=re.MULTILINE))
    assert shown.keys() == MAIN_KEYS
    assert all(isinstance(value, str) for value in shown.values())


def test_the_thresholds_shown_are_the_defaults() -> None:
    shown = shown_in(config_map("saturation-scaling-config")["default"])
    fields = {field.name: getattr(DEFAULT, field.name) for field in dataclasses.fields(DEFAULT)}
    assert (shown.pop("compat"), fields.pop("upstream")) == ("none", False)

    def value(text: Any) -> Any:
        is_duration = isinstance(text, str) and text[0].isdigit()
        return durationpy.from_str(text).total_seconds() if is_duration else text

    assert {snake(key): value(text) for key, text in shown.items()} == fields


def test_nothing_is_set_so_that_flags_and_variables_count() -> None:
    zero = config_map("wva-model-scale-to-zero-config")["default"]
    assert shown_in(zero) == {"enable_scale_to_zero": False, "retention_period": "10m"}
    for entry in (zero, config_map("saturation-scaling-config")["default"]):
        assert yaml.safe_load(entry) is None
    for name in ("wva-configmap", "accelerator-costs", "service-class-config"):
        assert config_map(name) == {}


def shown_as_set(manifest: str) -> dict[str, Any]:
    """A ConfigMap with everything set that it shows in comments."""
    bare, of_data, data = manifest.partition("# data:\n")
    if of_data:
        manifest = bare + "data:\n" + re.sub("^#", "", data, flags=re.MULTILINE)
    else:
        head, default, entry = manifest.partition("  default: |\n")
        _, _, example = head.partition("  #\n")
        entry = re.sub(r"^    # (\w+: \S+)$", r"    \1", entry, flags=re.MULTILINE)
        manifest = head + re.sub("^  # ", "  ", example, flags=re.MULTILINE) + default + entry
    item: dict[str, Any] = yaml.safe_load(manifest)
    return item


def test_everything_that_is_shown_is_understood_and_changes_no_default() -> None:
    items = [shown_as_set(text) for text in (CONTROLLER / "configmaps.yaml").read_text().split("\n---\n")]
    maps, doubles = by_place(items, "vllm-chill-system")
    assert len(maps) == len(items)
    config, problems = read_configs(maps)
    assert (doubles, problems) == ((), ())
    assert config.config_for("any", "any") == DEFAULT
    shown = config.config_for("prod", "meta-llama/Llama-3.1-70B-Instruct")
    assert shown == dataclasses.replace(DEFAULT, kv_cache_threshold=0.85)
    assert config.zero_for("any", "meta-llama/Llama-3.1-8B-Instruct").retention_seconds == 900
    assert config.costs == {"NVIDIA-L4": 10, "NVIDIA-H100-80GB-HBM3": 60}
    assert config.priority_of("any", "meta-llama/Llama-3.1-70B-Instruct") == 1

"""The Helm chart is what kustomize makes of deploy/, and refuses what it does not understand.

tests/cluster/test_chart.py has a real API server take it.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from tests.deploy.charted import CHART, by_name, needs_helm, notes, refusal, render, run, values_of
from tests.deploy.kustomized import DEPLOY, build_with, needs_kubectl
from vllm_chill.core.routing import DEFAULT_WAKE_PATHS
from vllm_chill.settings.parts import env_of
from vllm_chill.settings.serve import Settings, load_settings

Values = dict[str, Any]
ON = {"enabled": True}
MONITORED = dict.fromkeys(("serviceMonitor", "prometheusRule", "grafanaDashboard"), ON)

# What of deploy/ and of deploy/controller (None: not at all) the chart's values stand for.
SAME: dict[str, tuple[Values, list[str], list[str] | None]] = {
    "as it is": ({}, [], None),
    "models": ({"models": ON}, ["models"], None),
    "policies": ({"policies": ON}, ["policies"], None),
    "variants": ({"variants": ON}, ["variants"], None),
    "two proxies": ({"replicaCount": 2}, ["overlays/ha"], None),
    "network policies": ({"networkPolicy": ON}, ["overlays/network-policy"], None),
    "monitoring": (MONITORED, ["monitoring"], None),
    "the controller": ({"autoscaler": ON}, [], []),
    "the controller, which scales": ({"autoscaler": {**ON, "direct": True}}, [], ["direct"]),
    "the controller, in its namespace": (
        {"autoscaler": {**ON, "namespaced": True, "direct": True}}, [], ["direct", "namespaced"]),
    "the controller, monitored": ({"autoscaler": ON, **MONITORED}, ["monitoring"], ["monitor"]),
    "everything": (
        {"replicaCount": 2, "models": ON, "policies": ON, "networkPolicy": ON, "autoscaler": ON, **MONITORED},
        ["models", "policies", "overlays/ha", "overlays/network-policy", "monitoring"],
        ["monitor", "network-policy"],
    ),
}  # fmt: skip


# --- the same as kustomize ---


@needs_helm
@needs_kubectl
@pytest.mark.parametrize(("values", "components", "controllers"), SAME.values(), ids=SAME)
def test_it_is_what_kustomize_makes(
    values: Values, components: list[str], controllers: list[str] | None, tmp_path: Path
) -> None:
    made = build_with(DEPLOY, components, tmp_path / "proxy", namespace="ai-apps").items
    if controllers is not None:
        made += build_with(DEPLOY / "controller", controllers, tmp_path / "controller", namespace="ai-apps").items
    expected = by_name([item for item in made if item["kind"] not in {"Namespace", "CustomResourceDefinition"}])
    found = by_name(render({**values, "ingress": ON}).items)
    assert found.keys() == expected.keys()
    for name, item in found.items():
        assert item == expected[name], name


@pytest.mark.parametrize("file", sorted((DEPLOY / "crds").glob("*.*.yaml")), ids=lambda file: file.stem)
def test_it_has_the_definitions_that_there_are(file: Path) -> None:
    assert (CHART / "crds" / file.name).read_text() == file.read_text()
    assert len(list((CHART / "crds").iterdir())) == len(list((DEPLOY / "crds").glob("*.*.yaml")))


@needs_helm
def test_helm_installs_the_definitions_and_does_not_template_them() -> None:
    names = {yaml.safe_load(file.read_text())["metadata"]["name"] for file in (CHART / "crds").iterdir()}
    assert render({}, "--include-crds").names("CustomResourceDefinition") == names
    assert not render().names("CustomResourceDefinition")


def test_its_version_is_that_of_the_manifests_image() -> None:
    [image] = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())["images"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == image["newTag"]


@needs_helm
def test_lint_has_nothing_to_say() -> None:
    done = run("lint", str(CHART), "--strict")
    assert done.returncode == 0, done.stdout
    assert re.findall(r"\[(?:WARNING|ERROR)\].*", done.stdout) == []


# --- names ---


@needs_helm
def test_two_releases_in_one_namespace_share_no_object_and_no_pod() -> None:
    values: Values = {**MONITORED, "models": ON, "policies": ON, "variants": ON, "networkPolicy": ON, "ingress": ON}
    first, second = (render(values, release=name) for name in ("one", "two"))
    names = [
        {(item["kind"], item["metadata"]["name"]) for item in built.items if item["kind"] != "ConfigMap"}
        for built in (first, second)
    ]
    assert not names[0] & names[1]
    pod = second.of("Deployment", "two-vllm-chill")["spec"]["template"]["metadata"]["labels"]
    for item in first.items:
        selector = item.get("spec", {}).get("selector") or item.get("spec", {}).get("podSelector")
        for labels in [] if selector is None else [selector.get("matchLabels", selector)]:
            assert not labels.items() <= pod.items(), item["kind"]


@needs_helm
def test_every_object_is_named_after_the_release_and_is_where_it_belongs() -> None:
    built = render({"target": {"namespace": "models"}, "models": ON, "policies": ON}, namespace="door")
    for kind in ("Role", "RoleBinding"):
        assert {item["metadata"]["namespace"] for item in built.all(kind)} == {"models"}
    for item in built.all("RoleBinding") + built.all("ClusterRoleBinding"):
        assert item["subjects"] == [{"kind": "ServiceAccount", "name": "vllm-chill", "namespace": "door"}]
    assert "--namespace=models" in arguments(built)


# --- what the proxy is told ---


def arguments(built: Any, name: str = "vllm-chill") -> list[str]:
    return list(container(built, name)["args"])


def container(built: Any, name: str = "vllm-chill") -> dict[str, Any]:
    [found] = built.of("Deployment", name)["spec"]["template"]["spec"]["containers"]
    return dict(found)


TOLD: dict[str, tuple[Values, list[str]]] = {
    "idleTimeout": ({"idleTimeout": "1h30m"}, ["--idle-timeout=1h30m"]),
    "wakeTimeout": ({"wakeTimeout": "20m"}, ["--wake-timeout=20m"]),
    "target": (
        {"target": {"deployment": "qwen", "host": "qwen-svc", "port": 8000}},
        ["--deployment=qwen", "--target-host=qwen-svc", "--target-port=8000"],
    ),
    "adminPort": ({"adminPort": 9090}, ["--admin-port=9090"]),
    "adminAuth": ({"adminAuth": "kubernetes"}, ["--admin-auth=kubernetes"]),
    "apiKeys": ({"apiKeys": {"existingSecret": "keys"}}, ["--api-keys-file=/etc/vllm-chill/keys/keys.yaml"]),
    "tls": (
        {"tls": {"existingSecret": "cert"}},
        ["--tls-cert=/etc/vllm-chill/tls/tls.crt", "--tls-key=/etc/vllm-chill/tls/tls.key"],
    ),
    "extraArgs": ({"extraArgs": ["--max-waiting=7"]}, ["--max-waiting=7"]),
}


@needs_helm
@pytest.mark.parametrize(("values", "expected"), TOLD.values(), ids=TOLD)
def test_a_value_becomes_a_flag_that_the_proxy_takes(
    values: Values, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = arguments(render(values))
    assert set(expected) <= set(found)
    for field in Settings.model_fields.values():
        monkeypatch.delenv(env_of(field), raising=False)
    given = dict(argument.removeprefix("--").split("=", 1) for argument in found if "=" in argument)
    taken = load_settings({name.replace("-", "_"): value for name, value in given.items()} | {"namespace": "ai-apps"})
    assert taken.model_fields_set == {name.replace("-", "_") for name in given}


@needs_helm
def test_settings_are_variables_that_the_proxy_knows_and_extra_ones_come_as_they_are() -> None:
    values = {"settings": {"MAX_WAITING": 5000, "LOG_LEVEL": "debug", "MODEL_LIMIT": "64Mi"}, "extraEnv": [
        {"name": "HTTPS_PROXY", "value": "http://proxy"}]}  # fmt: skip
    found = {one["name"]: one.get("value") for one in container(render(values))["env"]}
    assert found == {"POD_NAMESPACE": None, "MAX_WAITING": "5000", "LOG_LEVEL": "debug", "MODEL_LIMIT": "64Mi",
                     "HTTPS_PROXY": "http://proxy"}  # fmt: skip


@needs_helm
@pytest.mark.parametrize(("drain", "seconds"), [("10m", 630), ("90s", 120), ("1h30m", 5430), ("1.5m", 120)])
def test_a_pod_that_stops_has_the_time_to_drain(drain: str, seconds: int) -> None:
    pod = render({"drainTimeout": drain}).of("Deployment", "vllm-chill")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == seconds


@needs_helm
def test_secrets_are_mounted_as_folders_so_that_what_is_renewed_is_seen() -> None:
    built = render({"apiKeys": {"existingSecret": "my-keys", "key": "all.yaml"}, "tls": {"existingSecret": "my-cert"}})
    pod = built.of("Deployment", "vllm-chill")["spec"]["template"]["spec"]
    assert [volume["secret"] for volume in pod["volumes"]] == [{"secretName": "my-keys"}, {"secretName": "my-cert"}]
    mounts = container(built)["volumeMounts"]
    assert [(mount["name"], mount["readOnly"], "subPath" in mount) for mount in mounts] == [
        ("keys", True, False), ("tls", True, False)]  # fmt: skip
    assert "--api-keys-file=/etc/vllm-chill/keys/all.yaml" in arguments(built)
    assert not built.all("Secret")


@needs_helm
def test_with_a_certificate_everything_that_asks_the_proxy_speaks_tls() -> None:
    built = render({"tls": {"existingSecret": "cert"}, "ingress": ON, "serviceMonitor": ON})
    for probe in ("livenessProbe", "readinessProbe"):
        assert container(built)[probe]["httpGet"]["scheme"] == "HTTPS"
    [port] = built.of("Service", "vllm-chill-svc")["spec"]["ports"]
    assert port["name"] == "https"
    [endpoint] = built.of("ServiceMonitor", "vllm-chill")["spec"]["endpoints"]
    assert (endpoint["port"], endpoint["scheme"]) == ("https", "https")
    ingress = built.of("Ingress", "vllm-chill")
    assert ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/backend-protocol"] == "HTTPS"
    assert {path["backend"]["service"]["port"]["name"] for path in paths(ingress)} == {"https"}


@needs_helm
def test_an_admin_port_is_at_no_service_and_is_scraped_at_the_pods() -> None:
    built = render({"adminPort": 9090, "serviceMonitor": ON, "networkPolicy": ON})
    assert [port["name"] for port in built.of("Service", "vllm-chill-svc")["spec"]["ports"]] == ["http"]
    assert {port["name"]: port["containerPort"] for port in container(built)["ports"]} == {"http": 8080, "admin": 9090}
    [endpoint] = built.of("PodMonitor", "vllm-chill")["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("admin", "/proxy/metrics")
    assert not built.all("ServiceMonitor")
    [rule] = built.of("NetworkPolicy", "vllm-chill")["spec"]["ingress"]
    assert rule["ports"] == [{"port": "http"}]


# --- the ingress ---


def paths(ingress: dict[str, Any]) -> list[dict[str, Any]]:
    return [path for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]]


@needs_helm
def test_the_ingress_routes_every_path_that_wakes_and_none_of_the_proxys_own() -> None:
    ingress = render({"ingress": {**ON, "hosts": ["a.example.com", "b.example.com"]}}).of("Ingress", "vllm-chill")
    assert [rule["host"] for rule in ingress["spec"]["rules"]] == ["a.example.com", "b.example.com"]
    prefixes = [path["path"] for path in paths(ingress) if path["pathType"] == "Prefix"]
    for wakes in DEFAULT_WAKE_PATHS:
        assert any(wakes == prefix or wakes.startswith(prefix + "/") for prefix in prefixes), wakes
    assert not any(prefix == "/" or f"{prefix}/".startswith("/proxy/") for prefix in prefixes)


@needs_helm
@pytest.mark.parametrize("path", ["/", "/proxy", "/proxy/", "//proxy/operations", "/proxy/operations/start"])
def test_the_ingress_can_not_be_made_to_route_the_proxys_own_paths(path: str) -> None:
    said = refusal({"ingress": {**ON, "paths": ["/v1", path]}})
    assert f'ingress.paths has "{path}", which leads to /proxy/' in said


@needs_helm
def test_nginx_waits_for_as_long_as_a_start_may_take_and_others_get_no_word_of_it() -> None:
    prefix = "nginx.ingress.kubernetes.io/"
    values = {"startTimeout": "1h", "ingress": {**ON, "annotations": {prefix + "proxy-body-size": "1g", "a": "b"}}}
    annotations = render(values).of("Ingress", "vllm-chill")["metadata"]["annotations"]
    assert annotations[prefix + "proxy-read-timeout"] == annotations[prefix + "proxy-send-timeout"] == "3600"
    assert (annotations[prefix + "proxy-body-size"], annotations["a"]) == ("1g", "b")
    other = render({"ingress": {**ON, "className": "traefik"}}).of("Ingress", "vllm-chill")
    assert "annotations" not in other["metadata"]


# --- rights ---


def rights(built: Any) -> set[tuple[str, str, str, str]]:
    """(role, group, resource, verb) for each right that the chart grants."""
    return {
        (f"{role['kind']}/{role['metadata']['name']}", group, resource, verb)
        for role in built.all("Role") + built.all("ClusterRole")
        for rule in role["rules"]
        for group in rule.get("apiGroups", [""])
        for resource in rule.get("resources", []) + rule.get("nonResourceURLs", [])
        for verb in rule["verbs"]
    }


@needs_helm
@pytest.mark.parametrize("part", ["models", "policies", "variants"])
def test_a_switch_adds_the_rights_of_its_part_and_no_others(part: str) -> None:
    added = {name for name, *_ in rights(render({part: ON})) - rights(render())}
    assert added <= {f"Role/vllm-chill-{part}", f"ClusterRole/vllm-chill-{part}"}
    assert added


@needs_helm
def test_without_the_optional_rights_it_has_those_that_it_cannot_do_without() -> None:
    least = {right[1:] for right in rights(render({"rbac": {"optional": False}}))}
    assert least == {
        *(("apps", "deployments", verb) for verb in ("list", "watch")),
        ("apps", "deployments/scale", "patch"),
        *(("", "pods", verb) for verb in ("list", "watch")),
        *(("coordination.k8s.io", "leases", verb)
          for verb in ("get", "list", "watch", "create", "update", "delete")),
    }  # fmt: skip
    text = (DEPLOY / "rbac.yaml").read_text()
    # Events have two verbs, and the ConfigMap has three.
    assert text.count("# Optional: ") == len(rights(render())) - len(least) - 1 - 2


@needs_helm
def test_who_asks_the_cluster_who_operates_it_may_ask_and_nothing_else() -> None:
    added = {right[1:] for right in rights(render({"adminAuth": "kubernetes"})) - rights(render())}
    assert added == {
        ("authentication.k8s.io", "tokenreviews", "create"),
        ("authorization.k8s.io", "subjectaccessreviews", "create"),
    }


@needs_helm
def test_accounts_and_rights_of_somebodys_own_are_left_to_them() -> None:
    built = render({"serviceAccount": {"create": False, "name": "mine"}, "rbac": {"create": False}, "models": ON})
    assert {item["kind"] for item in built.items} == {"Service", "Deployment"}
    assert built.of("Deployment", "vllm-chill")["spec"]["template"]["spec"]["serviceAccountName"] == "mine"


@needs_helm
def test_the_page_says_how_many_objects_and_rights_there_are() -> None:
    page = (DEPLOY.parent / "docs/chart.md").read_text()
    rows = re.findall(r"^\| (?:`([^`]*)`|as it is) \| (\d+) \| (\d+) \|$", page, re.MULTILINE)
    assert len(rows) > 5
    for flags, objects, count in rows:
        built = render({}, *shlex.split(flags))
        assert (flags, len(built.items), len(rights(built))) == (flags, int(objects), int(count))
    built = render({"autoscaler": ON})
    bound = {f"{one['roleRef']['kind']}/{one['roleRef']['name']}" for kind in ("Role", "ClusterRole")
             for one in built.all(f"{kind}Binding")}  # fmt: skip
    unbound = [right for right in rights(built) if right[0] not in bound]
    assert f"{len(unbound)} are those of four ClusterRoles" in page
    assert len({name for name, *_ in unbound}) == 4


# --- what is refused ---

REFUSED: dict[str, tuple[Values, str]] = {
    "a value that there is not": ({"replicas": 2}, "additional properties 'replicas' not allowed"),
    "one within another": ({"target": {"name": "vllm"}}, "additional properties 'name' not allowed"),
    "a duration without a unit": ({"idleTimeout": "5"}, "/idleTimeout"),
    "a number for a duration": ({"wakeTimeout": 120}, "/wakeTimeout"),
    "no replica": ({"replicaCount": 0}, "minimum"),
    "a port that is none": ({"target": {"port": 70000}}, "maximum"),
    "a text for a switch": ({"models": {"enabled": "yes"}}, "got string, want boolean"),
    "a setting that is no variable": ({"settings": {"idle-timeout": "5m"}}, "idle-timeout"),
    "a setting that is a list": ({"settings": {"WAKE_PATHS": ["/v1"]}}, "/settings/WAKE_PATHS"),
    "a way of access that there is not": ({"adminAuth": "password"}, "adminAuth"),
    "an argument that is no flag": ({"extraArgs": ["serve"]}, "extraArgs"),
    "a path without its slash": ({"ingress": {"paths": ["v1"]}}, "/ingress/paths"),
    "a Deployment's name in capitals": ({"target": {"deployment": "Qwen"}}, "/target/deployment"),
    "a setting that has a value": ({"settings": {"IDLE_TIMEOUT": "5m"}}, "set idleTimeout."),
    "a setting that is not for a pod": ({"settings": {"VLLM_CHILL_BACKEND": "process"}}, "Leave it out."),
    "several that do not know one another": (
        {"replicaCount": 2, "settings": {"LEADER_ELECT": "off"}}, "leave it out, or set replicaCount to 1."),
    "two controllers of the same variants": ({"variants": ON, "autoscaler": ON}, "set one of them to false."),
    "admin keys without a key": ({"adminAuth": "keys"}, "set apiKeys.existingSecret"),
    "an admin port that is taken": ({"adminPort": 8080}, "set another one."),
    "an ingress for nobody": ({"ingress": {**ON, "hosts": []}}, "set ingress.hosts."),
}  # fmt: skip


@needs_helm
@pytest.mark.parametrize(("values", "words"), REFUSED.values(), ids=REFUSED)
def test_what_it_does_not_understand_is_refused_with_words_that_help(values: Values, words: str) -> None:
    assert words in refusal(values)


def test_every_setting_that_has_a_value_is_refused_among_the_settings() -> None:
    text = (CHART / "templates/_helpers.tpl").read_text()
    owned = set(re.findall(r'"([A-Z_]{4,})" "', text)) | {
        name for names in re.findall(r"\(list ([^)]*)\)", text) for name in re.findall(r'"([A-Z_]+)"', names)
    }
    variables = {env_of(field) for field in Settings.model_fields.values()}
    assert owned <= variables
    template = (CHART / "templates/deployment.yaml").read_text()
    flags = {flag.replace("-", "_") for flag in re.findall(r"- --([a-z-]+)=", template)}
    assert {env_of(Settings.model_fields[flag]) for flag in flags} <= owned | {"CONTROLLERS"}


# --- the values ---


def leaves(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path


def test_the_schema_knows_every_value_and_is_strict() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    Draft7Validator.check_schema(schema)
    Draft7Validator(schema).validate(values_of())
    assert schema["properties"].keys() - {"global"} == values_of().keys()
    assert schema["additionalProperties"] is False


def test_every_value_is_used() -> None:
    used = "".join(file.read_text() for file in (CHART / "templates").iterdir())
    for path in leaves(values_of()):
        parts = path.split(".")
        tried = [".".join(parts[: n + 1]) for n in range(len(parts))]
        assert any(f".Values.{name}" in used for name in tried), path


@needs_helm
def test_what_is_said_after_an_installation_can_be_done() -> None:
    said = notes()
    assert "kubectl -n ai-apps get deployment/vllm service/vllm-svc" in said
    assert "port-forward svc/vllm-chill-svc 8080:80" in said
    assert "kubectl get models.vllm.sir-alfred.io" in notes({"models": ON})
    assert "WARNING" not in said
    assert "set adminAuth, or adminPort" in notes({"service": {"type": "LoadBalancer"}})
    assert "networkPolicy.extraIngress" in notes({"adminPort": 9090, "serviceMonitor": ON, "networkPolicy": ON})

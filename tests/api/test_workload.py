from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vllm_chill.api.vllm_model import parse_model
from vllm_chill.api.workload import (
    SPEC_HASH,
    WorkloadDefaults,
    deployment_of,
    service_of,
    spec_hash,
    workload_name,
)

Json = dict[str, Any]
DEFAULTS = WorkloadDefaults()
LABELS = st.text("ab0-", min_size=1, max_size=40).filter(lambda label: label.strip("-") == label)
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join)


def obj(metadata: Json | None = None, **spec: Any) -> Json:
    return {
        "metadata": {"name": "small", "uid": "1-2-3", **(metadata or {})},
        "spec": {"modelName": "org/small", **spec},
    }


def deployment(defaults: WorkloadDefaults = DEFAULTS, metadata: Json | None = None, **spec: Any) -> Json:
    return deployment_of(parse_model(obj(metadata, **spec)), "ai-apps", defaults)


def pod(**spec: Any) -> Json:
    found: Json = deployment(**spec)["spec"]["template"]["spec"]
    return found


def container(**spec: Any) -> Json:
    [found] = pod(**spec)["containers"]
    return dict(found)


def variables(**spec: Any) -> dict[str, Json]:
    env = container(**spec)["env"]
    assert len({variable["name"] for variable in env}) == len(env)
    return {variable["name"]: {key: value for key, value in variable.items() if key != "name"} for variable in env}


class TestName:
    def test_it_is_the_models_with_a_prefix(self) -> None:
        assert workload_name("qwen3-coder-30b-fp8") == "vllm-qwen3-coder-30b-fp8"

    @given(NAMES)
    def test_it_is_a_name_that_a_service_may_have(self, name: str) -> None:
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", workload_name(name))

    @given(NAMES, NAMES)
    def test_two_models_have_two(self, one: str, other: str) -> None:
        assume(one != other)
        assert workload_name(one) != workload_name(other)

    def test_dots_and_lengths_do_not_make_two_models_one(self) -> None:
        names = ["a.b", "a-b", "x" * 58, "x" * 59, "x" * 60, "x" * 59 + "y"]
        assert len({workload_name(name) for name in names}) == len(names)


class TestDeployment:
    def test_how_many_replicas_there_are_is_not_said(self) -> None:
        assert "replicas" not in deployment()["spec"]

    def test_it_is_owned_by_the_model_and_labelled(self) -> None:
        metadata = deployment(labels={"team": "a"})["metadata"]
        labels = {
            "team": "a",
            "app.kubernetes.io/name": "vllm",
            "app.kubernetes.io/instance": "small",
            "app.kubernetes.io/managed-by": "vllm-chill",
            "app.kubernetes.io/component": "engine",
        }
        owner = {"apiVersion": "vllm.sir-alfred.io/v1alpha1", "kind": "VLLMModel", "name": "small", "uid": "1-2-3"}
        assert metadata["labels"] == labels
        assert metadata["ownerReferences"] == [{**owner, "controller": True, "blockOwnerDeletion": False}]
        assert (metadata["name"], metadata["namespace"]) == ("vllm-small", "ai-apps")

    def test_a_model_of_a_file_owns_nothing(self) -> None:
        assert "ownerReferences" not in deployment(metadata={"uid": ""})["metadata"]

    def test_it_selects_its_own_pods(self) -> None:
        spec = deployment(labels={"team": "a"})["spec"]
        assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
        assert set(spec["selector"]["matchLabels"]) == {"app.kubernetes.io/name", "app.kubernetes.io/instance"}

    def test_a_long_name_is_a_label_too(self) -> None:
        made = deployment(metadata={"name": "x." * 60 + "x"})
        assert len(made["spec"]["selector"]["matchLabels"]["app.kubernetes.io/instance"]) <= 63

    @pytest.mark.parametrize(
        ("most", "strategy"),
        [
            (1, {"type": "Recreate"}),
            (2, {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}),
        ],
    )
    def test_a_new_pod_never_waits_for_the_gpu_of_an_old_one(self, most: int, strategy: Json) -> None:
        assert deployment(maxReplicas=most)["spec"]["strategy"] == strategy


class TestPod:
    def test_nothing_that_vllm_would_read_is_added_by_kubernetes(self) -> None:
        assert pod()["enableServiceLinks"] is False

    def test_it_has_no_token_unless_an_account_is_named(self) -> None:
        assert pod()["automountServiceAccountToken"] is False
        named = pod(serviceAccountName="s")
        assert named["serviceAccountName"] == "s"
        assert "automountServiceAccountToken" not in named

    def test_what_kubernetes_has_shapes_for_is_passed_on(self) -> None:
        given = {
            "nodeSelector": {"gpu": "h200"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "affinity": {"podAntiAffinity": {"x": [1]}},
            "runtimeClassName": "nvidia",
            "priorityClassName": "low",
            "imagePullSecrets": [{"name": "pull"}],
            "terminationGracePeriodSeconds": 5,
        }
        assert given.items() <= pod(**given).items()

    def test_annotations_are_the_pods(self) -> None:
        made = deployment(annotations={"a": "b"})
        assert made["spec"]["template"]["metadata"]["annotations"] == {"a": "b"}
        assert set(made["metadata"]["annotations"]) == {SPEC_HASH}

    def test_the_port_is_the_one_that_is_named_http(self) -> None:
        made = container(extraArgs=["--enforce-eager"])
        assert made["ports"] == [{"name": "http", "containerPort": 8000, "protocol": "TCP"}]
        assert made["args"][-3:] == ["--port", "8000", "--enforce-eager"]

    def test_kubernetes_reads_no_variables_but_in_extra_args(self) -> None:
        args = container(chatTemplate="{{ $(A) }} $$", extraArgs=["--x=$(A)"])["args"]
        assert args[args.index("--chat-template") + 1] == "{{ $$(A) }} $$$$"
        assert args[-1] == "--x=$(A)"

    @pytest.mark.parametrize(
        ("cache", "volume"),
        [
            (None, {"emptyDir": {}}),
            ({"emptyDir": {"sizeLimit": "100Gi"}}, {"emptyDir": {"sizeLimit": "100Gi"}}),
            ({"pvc": {"claimName": "c"}}, {"persistentVolumeClaim": {"claimName": "c"}}),
            ({"hostPath": {"path": "/models"}}, {"hostPath": {"path": "/models", "type": "DirectoryOrCreate"}}),
        ],
        ids=str,
    )
    def test_what_is_downloaded_and_compiled_is_kept_in_the_cache(self, cache: Json | None, volume: Json) -> None:
        made = pod(cache=cache)
        [mount] = [mount for mount in made["containers"][0]["volumeMounts"] if mount["name"] == "cache"]
        assert {"name": "cache", **volume} in made["volumes"]
        for name in ("HF_HOME", "VLLM_CACHE_ROOT"):
            assert variables(cache=cache)[name]["value"].startswith(mount["mountPath"] + "/")

    def test_a_folder_of_a_claim(self) -> None:
        [mount, _] = container(cache={"pvc": {"claimName": "c", "subPath": "vllm"}})["volumeMounts"]
        assert mount["subPath"] == "vllm"

    def test_workers_have_memory_to_share(self) -> None:
        assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}} in pod()["volumes"]
        assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}} in pod(shmSize="2Gi")["volumes"]
        assert {"name": "shm", "mountPath": "/dev/shm"} in container()["volumeMounts"]

    @pytest.mark.parametrize(
        ("spec", "resources"),
        [
            ({}, {"limits": {"nvidia.com/gpu": "1"}}),
            ({"gpuCount": 0}, None),
            ({"gpuCount": 2, "gpuResource": "amd.com/gpu"}, {"limits": {"amd.com/gpu": "2"}}),
            (
                {"resources": {"requests": {"cpu": 2}, "limits": {"memory": "64Gi"}}},
                {"requests": {"cpu": "2"}, "limits": {"memory": "64Gi", "nvidia.com/gpu": "1"}},
            ),
            ({"gpuCount": 2, "resources": {"limits": {"nvidia.com/gpu": 1}}}, {"limits": {"nvidia.com/gpu": "1"}}),
        ],
        ids=str,
    )
    def test_gpus_are_a_limit(self, spec: Json, resources: Json | None) -> None:
        assert container(**spec).get("resources") == resources

    def test_the_settings_speak_for_a_model_that_does_not(self) -> None:
        made = deployment(WorkloadDefaults(gpu_count=4, cpu_offload_gb=8))["spec"]["template"]["spec"]["containers"][0]
        assert made["resources"] == {"limits": {"nvidia.com/gpu": "4"}}
        assert made["args"][made["args"].index("--tensor-parallel-size") + 1] == "4"
        assert made["args"][made["args"].index("--cpu-offload-gb") + 1] == "8"


class TestVariables:
    def test_a_model_that_says_nothing_takes_a_token_if_there_is_one(self) -> None:
        token = {"secretKeyRef": {"name": "hf-token", "key": "token", "optional": True}}
        assert variables()["HF_TOKEN"] == {"valueFrom": token}
        assert set(variables()) == {"HF_HOME", "VLLM_CACHE_ROOT", "HF_TOKEN"}

    def test_secrets_are_only_named(self) -> None:
        made = variables(huggingFaceToken={"name": "a", "key": "b"}, apiKey={"name": "c", "key": "d"})
        assert made["HF_TOKEN"] == {"valueFrom": {"secretKeyRef": {"name": "a", "key": "b", "optional": True}}}
        assert made["VLLM_API_KEY"] == {"valueFrom": {"secretKeyRef": {"name": "c", "key": "d"}}}

    def test_adapters_can_be_loaded_where_that_is_wanted(self) -> None:
        assert variables(loraOnDemand=True)["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == {"value": "True"}

    def test_those_of_the_model_win(self) -> None:
        source = {"fieldRef": {"fieldPath": "metadata.name"}}
        made = variables(env=[{"name": "HF_HOME", "value": "/x"}, {"name": "POD", "valueFrom": source}])
        assert made["HF_HOME"] == {"value": "/x"}
        assert made["POD"] == {"valueFrom": source}

    def test_one_may_be_empty(self) -> None:
        assert variables(env=[{"name": "HF_TOKEN", "value": ""}])["HF_TOKEN"] == {}


class TestProbes:
    def test_they_ask_for_health_without_a_key(self) -> None:
        made = container()
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert made[name]["httpGet"] == {"path": "/health", "port": "http"}

    @pytest.mark.parametrize(
        ("spec", "start_seconds", "allowed"),
        [
            ({}, 1800, 3600),
            ({}, 7200, 7200),
            ({"startupTimeout": "10m"}, 1800, 600),
            ({"startupTimeout": "1ms"}, 1800, 2),
        ],
        ids=["an hour", "as long as the proxy waits", "as the model says", "one look at least"],
    )
    def test_the_kubelet_waits_for_a_first_download(self, spec: Json, start_seconds: float, allowed: int) -> None:
        made = deployment(WorkloadDefaults(start_seconds=start_seconds), **spec)
        probe = made["spec"]["template"]["spec"]["containers"][0]["startupProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] == allowed
        assert made["spec"]["progressDeadlineSeconds"] == allowed

    def test_fields_are_laid_over_them(self) -> None:
        made = container(probes={"readiness": {"periodSeconds": 7}, "liveness": {"tcpSocket": {"port": "http"}}})
        assert made["readinessProbe"]["periodSeconds"] == 7
        assert made["readinessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
        assert "httpGet" not in made["livenessProbe"]
        assert made["livenessProbe"]["tcpSocket"] == {"port": "http"}


def test_the_service_leads_to_the_pods() -> None:
    model = parse_model(obj(labels={"team": "a"}))
    made, service = deployment(labels={"team": "a"}), service_of(model, "ai-apps")
    assert service["spec"] == {
        "type": "ClusterIP",
        "selector": made["spec"]["selector"]["matchLabels"],
        "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
    }
    for key in ("name", "namespace", "labels", "ownerReferences"):
        assert service["metadata"][key] == made["metadata"][key]


# --- laws ---

SPECS = st.fixed_dictionaries(
    {},
    optional={
        "servedModelName": st.sampled_from(["a", "b"]),
        "aliases": st.just(["gpt-4"]),
        "maxModelLen": st.integers(1, 9),
        "toolCallParser": st.sampled_from(["", "hermes"]),
        "gpuCount": st.integers(0, 8),
        "cache": st.sampled_from([{"emptyDir": {}}, {"pvc": {"claimName": "a"}}, {"hostPath": {"path": "/a"}}]),
        "env": st.sampled_from([[], [{"name": "A", "value": ""}], [{"name": "A", "value": "1"}]]),
        "resources": st.sampled_from([{}, {"limits": {}}, {"requests": {"cpu": 1}}]),
        "tolerations": st.sampled_from([[], [{"operator": "Exists"}]]),
        "nodeSelector": st.sampled_from([{}, {"a": "b"}]),
        "labels": st.sampled_from([{}, {"a": "b"}]),
        "annotations": st.sampled_from([{}, {"a": "b"}]),
        "loraAdapters": st.sampled_from([[], [{"name": "x", "path": "/x"}]]),
        "loraOnDemand": st.booleans(),
        "maxReplicas": st.integers(1, 2),
        "idleTimeout": st.sampled_from(["5m", "1h"]),
        "group": st.sampled_from(["a", "b"]),
        "probes": st.sampled_from([{}, {"startup": {}}, {"startup": {"periodSeconds": 1}}]),
        "imagePullSecrets": st.sampled_from([[], [{"name": "a"}]]),
        "apiKey": st.just({"name": "a", "key": "b"}),
    },
)


def nothings(value: Any, path: str = "") -> Iterator[str]:
    """Where something is empty. A volume of no size is what it should be."""
    if value in (None, "", {}, []) and not path.endswith(".emptyDir"):
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from nothings(inner, f"{path}.{key}")


@given(SPECS)
def test_it_is_the_same_each_time_plain_json_and_without_anything_empty(spec: Json) -> None:
    given = obj(**spec)
    before = copy.deepcopy(given)
    model, again = parse_model(given), parse_model(copy.deepcopy(given))
    for made, same in (
        (deployment_of(model, "n", DEFAULTS), deployment_of(again, "n", DEFAULTS)),
        (service_of(model, "n"), service_of(again, "n")),
    ):
        assert json.dumps(made) == json.dumps(same)
        assert json.loads(json.dumps(made)) == made
        assert list(nothings(made)) == []
    assert given == before


@given(SPECS, SPECS)
def test_the_hash_is_another_if_and_only_if_the_pods_are(one: Json, other: Json) -> None:
    first, second = deployment(**one), deployment(**other)
    same = first["spec"]["template"] == second["spec"]["template"]
    assert (first["metadata"]["annotations"][SPEC_HASH] == second["metadata"]["annotations"][SPEC_HASH]) == same
    assert first["metadata"]["annotations"][SPEC_HASH] == spec_hash(first)


def test_labels_and_annotations_of_the_model_itself_restart_nothing() -> None:
    touched = {"labels": {"a": "b"}, "annotations": {"c": "d"}, "generation": 7, "resourceVersion": "9"}
    assert deployment(metadata=touched) == deployment()


@pytest.mark.parametrize(
    "spec", [{"idleTimeout": "1h"}, {"group": "a"}, {"wakeTimeout": "1s"}, {"toolCallRewrite": True}], ids=str
)
def test_what_is_the_proxys_alone_restarts_nothing(spec: Json) -> None:
    assert deployment(**spec) == deployment()

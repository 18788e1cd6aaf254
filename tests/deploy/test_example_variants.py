"""The example's variants, as kustomize renders them: alone, with an HPA each, and with a ScaledObject each."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import yaml

from tests.deploy.kustomized import DEPLOY, Built, build, needs_kubectl
from tests.hpa import Autoscaler
from vllm_chill.api.variant import parse_variant, variant_warnings

EXAMPLE = DEPLOY / "example"
FOLDERS = ["variants", "variants-hpa", "variants-keda"]
# It is for a Helm chart.
VALUES = EXAMPLE / "variants-hpa/prometheus-adapter-values.yaml"

pytestmark = needs_kubectl


@cache
def built(folder: str) -> Built:
    return build(EXAMPLE / folder)


def variants(of: Built) -> dict[str, dict[str, Any]]:
    return {item["metadata"]["name"]: item["spec"] for item in of.all("VariantAutoscaling")}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_manifest_is_in_its_kustomization_and_in_no_namespace(folder: str) -> None:
    kustomization = yaml.safe_load((EXAMPLE / folder / "kustomization.yaml").read_text())
    files = {name for name in kustomization["resources"] if not name.startswith("..")}
    manifests = {file for file in (EXAMPLE / folder).glob("*.yaml") if file != VALUES}
    assert files == {file.name for file in manifests} - {"kustomization.yaml"}
    assert all("namespace" not in item["metadata"] for item in built(folder).items)


@pytest.mark.parametrize("folder", FOLDERS)
def test_they_are_two_ways_to_serve_one_model_at_different_costs(folder: str) -> None:
    of = variants(built(folder))
    assert len({spec["modelID"] for spec in of.values()}) == 1
    assert len({spec["variantCost"] for spec in of.values()}) == len(of) == 2
    for item in built(folder).all("VariantAutoscaling"):
        deployment = built(folder).of("Deployment", item["spec"]["scaleTargetRef"]["name"])
        pod = deployment["spec"]["template"]["spec"]
        assert f"--model={item['spec']['modelID']}" in pod["containers"][0]["args"]
        accelerator = item["metadata"]["labels"]["inference.optimization/acceleratorName"]
        assert pod["nodeSelector"] == {"nvidia.com/gpu.product": accelerator}


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_variants_are_good_in_every_field(folder: str) -> None:
    for item in built(folder).all("VariantAutoscaling"):
        assert variant_warnings(parse_variant(item), item) == ()


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_replicas_belong_to_what_scales_them(folder: str) -> None:
    for deployment in built(folder).all("Deployment"):
        assert "replicas" not in deployment["spec"]


def test_one_service_is_for_both() -> None:
    [service] = built("variants").all("Service")
    for deployment in built("variants").all("Deployment"):
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert service["spec"]["selector"].items() <= labels.items()
        assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize(("folder", "kind"), [("variants-hpa", "HorizontalPodAutoscaler"),
                                              ("variants-keda", "ScaledObject")])  # fmt: skip
def test_what_scales_a_variant_has_its_bounds_and_does_as_the_metric_says(folder: str, kind: str) -> None:
    of = built(folder)
    scalers = {item["spec"]["scaleTargetRef"]["name"]: item for item in of.all(kind)}
    assert len(scalers) == 2
    for item in of.all("VariantAutoscaling"):
        spec, scaler = item["spec"], scalers[item["spec"]["scaleTargetRef"]["name"]]
        bounds = scaler["spec"]
        least = bounds["minReplicas"] if kind == "HorizontalPodAutoscaler" else bounds["minReplicaCount"]
        most = bounds["maxReplicas"] if kind == "HorizontalPodAutoscaler" else bounds["maxReplicaCount"]
        assert (least, most) == (spec["minReplicas"], spec["maxReplicas"])
        autoscaler = Autoscaler.of(scaler)
        for wanted in range(1, most + 1):
            for current in range(1, most + 1):
                assert autoscaler.look(0, wanted, current)[0] == wanted


def test_an_hpa_asks_for_its_variant_by_name() -> None:
    for hpa in built("variants-hpa").all("HorizontalPodAutoscaler"):
        [metric] = hpa["spec"]["metrics"]
        asked = metric["external"]["metric"]
        assert asked["selector"] == {"matchLabels": {"variant_name": hpa["metadata"]["name"]}}
        [rule] = yaml.safe_load(VALUES.read_text())["rules"]["external"]
        assert asked["name"] == rule["name"]["as"]


def test_with_keda_a_model_goes_to_zero_and_a_metric_that_is_missing_does_not_take_it_there() -> None:
    for spec in variants(built("variants-keda")).values():
        assert spec["minReplicas"] == 0
        assert spec["scaleToZero"] == {"enabled": True, "retentionPeriod": "15m"}
    for scaled in built("variants-keda").all("ScaledObject"):
        [trigger] = scaled["spec"]["triggers"]
        assert trigger["metadata"]["ignoreNullValues"] == "false"
        assert trigger["metadata"]["activationThreshold"] == "0"
        assert f'variant_name="{scaled["metadata"]["name"]}"' in trigger["metadata"]["query"]

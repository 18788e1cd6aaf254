from __future__ import annotations

from dataclasses import replace

import pytest

from tests.core.doctor.world import DISK, engine, found, is_fine, manifest, merged, named, only, pods, sound, target
from vllm_chill.core.doctor.finding import Outcome, Unseen
from vllm_chill.core.doctor.references import ACCOUNT, CONFIG_MAPS, PULL_SECRETS, SECRETS, VOLUMES
from vllm_chill.core.objects import Json
from vllm_chill.core.target import DEPLOYMENTS

CACHE = manifest("example/cache.yaml")


def claim(phase: str = "Pending", **spec: object) -> Json:
    return dict(merged(CACHE, {"spec": spec, "status": {"phase": phase}}))


def storage(**more: object) -> Json:
    return {"metadata": {"name": "fast"}, **more}


@pytest.mark.parametrize(
    ("claims", "classes", "outcome", "says"),
    [
        pytest.param((claim("Bound"),), (), Outcome.OK, "is bound", id="bound"),
        pytest.param((claim(),), (DISK,), Outcome.OK, "with the first pod", id="bound when it is needed"),
        pytest.param((claim(storageClassName="fast"),), (storage(),), Outcome.WARNING, "no volume", id="not yet made"),
        pytest.param((), (DISK,), Outcome.FAILURE, "there is no PersistentVolumeClaim", id="not there"),
        pytest.param((claim("Lost"),), (DISK,), Outcome.FAILURE, "is gone", id="lost"),
        pytest.param((claim(),), (storage(),), Outcome.FAILURE, "no StorageClass is the default", id="no default"),
        pytest.param((claim(storageClassName="x"),), (DISK,), Outcome.FAILURE, "x is not there; there is disk", id="x"),
        pytest.param((claim(storageClassName=""),), (DISK,), Outcome.FAILURE, "waits for a", id="made by hand"),
        pytest.param((claim(),), Unseen("needs a right"), Outcome.UNKNOWN, "to say why needs a right", id="unseen"),
    ],
)
def test_a_claim_has_to_be_bound(claims: tuple[Json, ...], classes: object, outcome: Outcome, says: str) -> None:
    finding = only(VOLUMES, sound(claims=claims, storage_classes=classes))
    assert finding.outcome is outcome
    assert says in finding.says


@pytest.mark.parametrize(
    ("mode", "outcome"),
    [
        ("ReadWriteOnce", Outcome.WARNING),
        ("ReadWriteOncePod", Outcome.FAILURE),
        ("ReadWriteMany", Outcome.OK),
        ("ReadOnlyMany", Outcome.OK),
    ],
)
def test_several_replicas_need_a_claim_for_several(mode: str, outcome: Outcome) -> None:
    bound = claim("Bound", accessModes=[mode])
    assert only(VOLUMES, sound(claims=(bound,), target=target(replicas=2))).outcome is outcome
    annotated = merged(target(), {"metadata": {"annotations": {"vllm-chill.io/max-replicas": "3"}}})
    assert only(VOLUMES, sound(claims=(bound,), target=annotated)).outcome is outcome
    reference = {"apiVersion": DEPLOYMENTS.api_version, "kind": "Deployment", "name": "vllm"}
    policy = named("p", spec={"scaleTargetRef": reference, "maxReplicas": 4})
    assert only(VOLUMES, sound(claims=(bound,), policies=(policy,))).outcome is outcome
    assert only(VOLUMES, sound(claims=(bound,))).outcome is Outcome.OK


def test_a_pod_without_volumes_needs_no_claim() -> None:
    assert found(VOLUMES, replace(pods(volumes=None), claims=())) == []


TAKES = engine(env=[{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "a"}}}])


def test_a_config_map_has_to_have_the_keys() -> None:
    assert found(CONFIG_MAPS, sound()) == []
    assert "there is no ConfigMap c" in only(CONFIG_MAPS, replace(TAKES, config_maps={"c": None})).says
    assert only(CONFIG_MAPS, replace(TAKES, config_maps={"c": {"data": {"b": ""}}})).says.startswith(
        "ConfigMap c has no a"
    )
    assert is_fine(found(CONFIG_MAPS, replace(TAKES, config_maps={"c": {"data": {"a": ""}}})))
    assert only(CONFIG_MAPS, replace(TAKES, config_maps={"c": Unseen("no")})).outcome is Outcome.UNKNOWN


SECRET = {"secretKeyRef": {"name": "s", "key": "token"}}


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"containers": {"env": [{"name": "A", "valueFrom": SECRET}]}}, id="a variable"),
        pytest.param({"containers": {"envFrom": [{"secretRef": {"name": "s"}}]}}, id="all as variables"),
        pytest.param({"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}, id="a volume"),
        pytest.param({"volumes": [{"projected": {"sources": [{"secret": {"name": "s"}}]}}]}, id="a part of a volume"),
        pytest.param({"initContainers": [{"envFrom": [{"secretRef": {"name": "s"}}]}]}, id="an init container"),
    ],
)
def test_a_secret_has_to_be_there_wherever_it_is_used(spec: Json) -> None:
    assert "there is no Secret s" in only(SECRETS, replace(pods(**spec), secrets={"s": None})).says
    assert is_fine(found(SECRETS, replace(pods(**spec), secrets={"s": {}})))
    assert only(SECRETS, replace(pods(**spec), secrets={"s": Unseen("no")})).outcome is Outcome.UNKNOWN


def test_a_secret_that_is_optional_need_not_be_there() -> None:
    assert found(SECRETS, sound()) == []  # that of deploy/example is


def test_a_secret_to_pull_with_has_to_be_there() -> None:
    pulls = pods(imagePullSecrets=[{"name": "login"}])
    assert "create secret docker-registry login" in only(PULL_SECRETS, replace(pulls, secrets={"login": None})).paste
    assert is_fine(found(PULL_SECRETS, replace(pulls, secrets={"login": {}})))
    assert found(PULL_SECRETS, sound()) == []


def test_a_service_account_has_to_be_there() -> None:
    runs = pods(serviceAccountName="engine")
    assert only(ACCOUNT, replace(runs, accounts={"engine": None})).outcome is Outcome.FAILURE
    assert is_fine(found(ACCOUNT, replace(runs, accounts={"engine": {}})))
    assert only(ACCOUNT, replace(runs, accounts={"engine": Unseen("no")})).outcome is Outcome.UNKNOWN
    assert found(ACCOUNT, pods(serviceAccountName="default")) == []

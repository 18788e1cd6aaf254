from __future__ import annotations

from typing import Any

import pytest

from vllm_chill.core.target import DEPLOYMENTS, STATEFUL_SETS, Resource, TargetRef
from vllm_chill.core.writers import Writer, Writers, Written, scales, writers_of, written

Json = dict[str, Any]
OWN = "vllm-chill"
T1, T2, T3 = (f"2026-11-22T01:40:3{second}Z" for second in (1, 2, 3))
NUMBER: Json = {"f:spec": {"f:replicas": {}}}
TEMPLATE: Json = {"f:spec": {"f:template": {"f:spec": {"f:containers": {'k:{"name":"vllm"}': {"f:image": {}}}}}}}


def entry(manager: str, fields: Json, time: str | None = None, operation: str = "Update", part: str = "") -> Json:
    """One entry of managedFields as an API server writes it."""
    made = {"manager": manager, "operation": operation, "apiVersion": "apps/v1", "fieldsType": "FieldsV1"}
    time_and_part = {**({"time": time} if time else {}), **({"subresource": part} if part else {})}
    return {**made, "fieldsV1": fields, **time_and_part}


def both(a: Json, b: Json) -> Json:
    return {"f:spec": {**a["f:spec"], **b["f:spec"]}}


def item(*entries: Json) -> Json:
    return {"metadata": {"name": "vllm", "managedFields": list(entries)}}


STATUS = entry("kube-controller-manager", {"f:status": {"f:replicas": {}}}, T2, part="status")
OLD_STATUS = entry("kube-controller-manager", {"f:status": {"f:replicas": {}}}, T2)
APPLIED = entry("kubectl-client-side-apply", both(NUMBER, TEMPLATE), T1)
ARGO = entry("argocd-controller", both(NUMBER, TEMPLATE), T3, "Apply")
HPA = entry("kube-controller-manager", NUMBER, part="scale")
KEDA = entry("keda", NUMBER, part="scale")
OURS = entry(OWN, NUMBER, part="scale")
EDITED = entry("kubectl-edit", NUMBER, T2)


@pytest.mark.parametrize(
    ("entries", "by"),
    [
        pytest.param([APPLIED, STATUS], "kubectl-client-side-apply", id="whoever created it, if nobody scaled it"),
        pytest.param(
            [entry("kubectl-client-side-apply", TEMPLATE, T1), STATUS, HPA],
            "kube-controller-manager",
            id="a HorizontalPodAutoscaler",
        ),
        pytest.param([entry("helm", TEMPLATE, T1), STATUS, KEDA], "keda", id="KEDA, from 0 to 1"),
        pytest.param([ARGO, STATUS], "argocd-controller", id="Argo CD, which applies a manifest that has replicas"),
        pytest.param([entry("kubectl", NUMBER, part="scale"), STATUS], "kubectl", id="kubectl scale"),
        pytest.param([APPLIED, EDITED, STATUS], "kubectl-edit", id="of two that agree, the one who wrote later"),
        pytest.param([HPA, ARGO, STATUS], "argocd-controller", id="one who agrees with what was scaled came later"),
        pytest.param([entry("helm", TEMPLATE, T1), STATUS, OURS], None, id="we did"),
        pytest.param([ARGO, STATUS, OURS], None, id="we did, and Argo CD wants the same"),
        pytest.param([entry("helm", TEMPLATE, T1), STATUS], None, id="nobody, as the default holds"),
        pytest.param([STATUS, {"operation": "Update", "fieldsV1": NUMBER}], "unknown", id="one without a name"),
        pytest.param([], None, id="a server that keeps no record"),
    ],
)
def test_who_set_the_number_where_the_server_records_scales(entries: list[Json], by: str | None) -> None:
    assert written(None, 3, writers_of(item(*entries)), OWN).by == by


def test_only_the_spec_of_the_object_itself_has_the_number() -> None:
    of_template: Json = {"f:spec": {"f:template": {"f:spec": {"f:replicas": {}}}}}
    assert writers_of(item(entry("a", of_template), entry("b", {"f:metadata": {}}), OLD_STATUS)) == Writers()
    assert writers_of({"metadata": {}}) == Writers()
    assert writers_of(item(EDITED)) == Writers(frozenset({Writer("kubectl-edit", T2)}))


CREATED = entry("kubectl-create", both(NUMBER, TEMPLATE), T1)
TAKEN = entry("kubectl-create", TEMPLATE, T1)
# What Kubernetes 1.20 was seen to record, step by step: nothing of a PATCH of the scale, whoever it was from.
CREATE, SCALE = item(CREATED), item(CREATED, OLD_STATUS)
PATCH = item(TAKEN, OLD_STATUS, entry("some-other", NUMBER, T2))
PATCHED_AGAIN = item(TAKEN, OLD_STATUS, entry("some-other", NUMBER, T3))


@pytest.mark.parametrize(
    ("seen", "by"),
    [
        pytest.param([(0, CREATE)], None, id="the first look tells nothing: it may have been scaled since"),
        pytest.param([(0, CREATE), (2, SCALE)], None, id="who scaled it is not recorded"),
        pytest.param([(2, SCALE), (1, PATCH)], "some-other", id="who patched it is"),
        pytest.param([(2, SCALE), (1, PATCH), (1, PATCHED_AGAIN)], "some-other", id="it stays, while the number does"),
        pytest.param([(2, SCALE), (2, PATCH)], None, id="who wrote the number that was has changed nothing"),
        pytest.param([(2, SCALE), (1, PATCH), (2, PATCH)], None, id="and is over once it is scaled again"),
        pytest.param([(2, SCALE), (1, item(entry(OWN, NUMBER, T2)))], None, id="we did"),
    ],
)
def test_who_set_the_number_where_it_does_not(seen: list[tuple[int, Json]], by: str | None) -> None:
    last: Written | None = None
    for replicas, now in seen:
        last = written(last, replicas, writers_of(now), OWN)
    assert last is not None
    assert last.by == by


VLLM = TargetRef("ai", "vllm")
SETS = TargetRef("ai", "vllm", STATEFUL_SETS)
ROLLOUT = TargetRef("ai", "vllm", Resource("argoproj.io", "v1alpha1", "rollouts", "Rollout"))


def autoscaler(namespace: str = "ai", **reference: str) -> Json:
    return {"metadata": {"name": "a", "namespace": namespace}, "spec": {"scaleTargetRef": reference}}


@pytest.mark.parametrize(
    ("item", "ref", "does"),
    [
        pytest.param(autoscaler(apiVersion="apps/v1", kind="Deployment", name="vllm"), VLLM, True, id="a HPA"),
        pytest.param(
            autoscaler(apiVersion="apps/v1beta2", kind="Deployment", name="vllm"), VLLM, True, id="an old HPA"
        ),
        pytest.param(autoscaler(name="vllm"), VLLM, True, id="a ScaledObject"),
        pytest.param(autoscaler(kind="StatefulSet", name="vllm"), SETS, True, id="a ScaledObject of a StatefulSet"),
        pytest.param(
            autoscaler(apiVersion="argoproj.io/v1alpha1", kind="Rollout", name="vllm"),
            ROLLOUT,
            True,
            id="a HPA of a custom resource",
        ),
        pytest.param(autoscaler(name="other"), VLLM, False, id="one of another Deployment"),
        pytest.param(autoscaler("default", name="vllm"), VLLM, False, id="one in another namespace"),
        pytest.param(autoscaler(name="vllm"), SETS, False, id="one of a Deployment of the name"),
        pytest.param(
            autoscaler(apiVersion="extensions.io/v1", kind="Deployment", name="vllm"),
            VLLM,
            False,
            id="one of another group",
        ),
        pytest.param(autoscaler(kind="Rollout", name="vllm"), ROLLOUT, False, id="one that does not say the group"),
        pytest.param({"metadata": {"namespace": "ai"}, "spec": {}}, VLLM, False, id="one without a target"),
        pytest.param({}, VLLM, False, id="anything"),
    ],
)
def test_whether_another_autoscaler_scales_the_target(item: Json, ref: TargetRef, does: bool) -> None:
    assert scales(item, ref) is does


def test_the_defaults_of_a_reference_are_those_of_a_deployment() -> None:
    assert scales(autoscaler(name="vllm"), TargetRef("ai", "vllm", DEPLOYMENTS))

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.core.doctor.world import ASKED, found, is_fine, merged, named, only, sound, target
from vllm_chill.core.doctor.finding import Outcome, Unseen
from vllm_chill.core.doctor.picture import Picture
from vllm_chill.core.doctor.rivals import AUTOSCALERS, GITOPS
from vllm_chill.core.objects import Json

REFERENCE = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "vllm"}
HPA = named("h", spec={"scaleTargetRef": REFERENCE})
OTHERS = named("h", spec={"scaleTargetRef": {**REFERENCE, "name": "web"}})
RECOMMENDS = replace(ASKED, recommends=True)


@pytest.mark.parametrize(
    ("picture", "kind", "does"),
    [
        pytest.param(sound(horizontal_autoscalers=(HPA,)), "HorizontalPodAutoscaler h", "delete hpa h", id="HPA"),
        pytest.param(sound(scaled_objects=(HPA,)), "ScaledObject h", "delete scaledobject.keda.sh h", id="KEDA"),
        pytest.param(sound(variants=(HPA,)), "VariantAutoscaling h", "delete variantautoscaling h", id="WVA"),
    ],
)
def test_another_autoscaler_is_a_failure_unless_it_is_to_scale(picture: Picture, kind: str, does: str) -> None:
    finding = only(AUTOSCALERS, picture)
    assert finding.outcome is Outcome.FAILURE
    assert kind in finding.says
    assert does in finding.paste
    assert is_fine(found(AUTOSCALERS, picture, RECOMMENDS))


def test_an_hpa_that_keda_owns_is_not_to_be_deleted() -> None:
    owned = merged(HPA, {"metadata": {"name": "keda-h", "ownerReferences": [{"kind": "ScaledObject"}]}})
    finding = only(AUTOSCALERS, sound(horizontal_autoscalers=(owned,), scaled_objects=(HPA,)))
    assert "delete scaledobject.keda.sh" in finding.paste


def test_those_of_others_are_fine() -> None:
    assert is_fine(found(AUTOSCALERS, sound(horizontal_autoscalers=(OTHERS,))))
    assert is_fine(found(AUTOSCALERS, sound(variants=(HPA,)), replace(ASKED, scales_variants=True)))


def test_whoever_only_recommends_needs_somebody_who_scales() -> None:
    assert only(AUTOSCALERS, sound(), RECOMMENDS).outcome is Outcome.WARNING


def test_what_may_not_be_seen_is_told_beside_what_is_seen() -> None:
    both = sound(horizontal_autoscalers=(HPA,), scaled_objects=Unseen("needs a right"))
    assert [one.outcome for one in found(AUTOSCALERS, both)] == [Outcome.FAILURE, Outcome.UNKNOWN]


def owned_by(manager: str) -> Json:
    entry = {"manager": manager, "operation": "Apply", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
    return dict(merged(target(), {"metadata": {"managedFields": [entry]}}))


def applied(marks: Json, spec: Json) -> Json:
    last = {"kubectl.kubernetes.io/last-applied-configuration": json.dumps({"spec": spec})}
    return dict(merged(target(), {"metadata": {"annotations": {**last, **marks}}}))


ARGO = {"argocd.argoproj.io/tracking-id": "a:apps/Deployment:ai-apps/vllm"}
FLUX = {"kustomize.toolkit.fluxcd.io/name": "apps"}


@pytest.mark.parametrize(
    ("item", "who", "does"),
    [
        pytest.param(owned_by("argocd-controller"), "Argo CD (argocd-controller)", "ignoreDifferences", id="Argo's"),
        pytest.param(owned_by("kustomize-controller"), "Flux (kustomize-controller)", "taken out", id="Flux' field"),
        pytest.param(applied(ARGO, {"replicas": 1}), "Argo CD applies", "jsonPointers: [/spec/replicas]", id="Argo"),
        pytest.param(applied(FLUX, {"replicas": 0}), "Flux applies", "taken out", id="Flux"),
        pytest.param(owned_by("fleetagent"), "Rancher Fleet", "taken out", id="Fleet"),
    ],
)
def test_what_applies_replicas_is_a_failure(item: Json, who: str, does: str) -> None:
    finding = only(GITOPS, sound(target=item))
    assert finding.outcome is Outcome.FAILURE
    assert who in finding.says
    assert does in finding.paste
    assert is_fine(found(GITOPS, sound(target=item), RECOMMENDS))


@pytest.mark.parametrize(
    "item",
    [
        pytest.param(target(), id="nobody"),
        pytest.param(owned_by("vllm-chill"), id="we"),
        pytest.param(owned_by("kubectl-client-side-apply"), id="a user, once"),
        pytest.param(owned_by("kube-controller-manager"), id="an HPA, which is looked at by itself"),
        pytest.param(applied(ARGO, {"template": {}}), id="Argo, without replicas"),
        pytest.param(applied({}, {"replicas": 1}), id="kubectl apply, once"),
        pytest.param(merged(applied(ARGO, {}), {"metadata": {"annotations": {"x": "y"}}}), id="Argo, nothing said"),
    ],
)
def test_what_leaves_replicas_alone_is_fine(item: Json) -> None:
    assert is_fine(found(GITOPS, sound(target=item)))

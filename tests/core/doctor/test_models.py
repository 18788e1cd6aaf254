from __future__ import annotations

from tests.core.doctor.world import found, named, only, sound
from vllm_chill.core.doctor.finding import Outcome, Unseen
from vllm_chill.core.doctor.models import MODELS
from vllm_chill.core.doctor.picture import Asked

OF_MODELS = Asked(of_models=True)


def model(**condition: str) -> dict[str, object]:
    return named("qwen", status={"conditions": [condition] if condition else []})


def test_without_a_catalogue_models_are_not_looked_at() -> None:
    assert found(MODELS, sound(models=None)) == []


def test_a_cluster_that_knows_no_model_is_a_failure() -> None:
    finding = only(MODELS, sound(models=None), OF_MODELS)
    assert (finding.outcome, finding.paste) == (Outcome.FAILURE, "kubectl apply -k deploy/crds")


def test_no_model_yet_is_a_warning() -> None:
    assert only(MODELS, sound(models=()), OF_MODELS).outcome is Outcome.WARNING


def test_what_a_model_says_of_itself_is_told() -> None:
    sick = model(type="Ready", status="False", reason="Failed", message="its image cannot be pulled.")
    finding = only(MODELS, sound(models=(sick,)), OF_MODELS)
    assert finding.says == "VLLMModel qwen: its image cannot be pulled"
    assert only(MODELS, sound(models=(model(),)), OF_MODELS).outcome is Outcome.OK
    assert only(MODELS, sound(models=Unseen("no")), OF_MODELS).outcome is Outcome.UNKNOWN

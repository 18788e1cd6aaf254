"""The VLLMModel objects, where the proxy serves those. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_chill.core.doctor.finding import Check, Finding, failure, ok, seen, warning
from vllm_chill.core.doctor.picture import Asked, Picture
from vllm_chill.core.doctor.words import names_of
from vllm_chill.core.objects import metadata
from vllm_chill.core.phrases import listed


def find_models(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether there are models, and which of them are in trouble."""
    if not asked.of_models:
        return
    if picture.models is None:
        yield failure(
            "the cluster knows no VLLMModel: no model is served",
            "install the definitions",
            "kubectl apply -k deploy/crds",
        )
        return
    models = seen(picture.models)
    if not models:
        yield warning("there is no VLLMModel yet", "make one", "kubectl apply -f deploy/example/models/")
        return
    sick = False
    for model in models:
        name = str(metadata(model).get("name"))
        for one in (model.get("status") or {}).get("conditions") or []:
            if one.get("type") == "Ready" and one.get("status") == "False" and one.get("reason") != "Asleep":
                sick = True
                says = str(one.get("message") or one.get("reason")).rstrip(".")
                yield warning(f"VLLMModel {name}: {says}", "see the object", f"kubectl describe models {name}")
    if not sick:
        yield ok(f"there is VLLMModel {listed(names_of(models), 5)}")


MODELS = Check(
    "models",
    "with `--models crd`: that the cluster knows VLLMModel, and what its objects say of themselves",
    "no model is served",
    "the definitions in deploy/crds, or what the object's conditions ask for",
    find_models,
    of_target=False,
)

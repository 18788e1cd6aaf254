"""What the kinds of objects are called that vllm-chill brings. On its own, as who asks for rights needs no more."""

from __future__ import annotations

from typing import NamedTuple

ANNOTATIONS = "vllm-chill.io/"
"""What the annotations begin with by which a target asks for a policy of its own."""

AUTOSCALE = f"{ANNOTATIONS}autoscale"
"""The annotation without which the others ask for nothing."""


class Kind(NamedTuple):
    """One kind, as its CustomResourceDefinition names it."""

    group: str
    version: str
    kind: str
    plural: str
    singular: str
    short_names: tuple[str, ...]

    @property
    def api_version(self) -> str:
        """The version as objects say it."""
        return f"{self.group}/{self.version}"


MODEL = Kind("vllm.sir-alfred.io", "v1alpha1", "VLLMModel", "models", "model", ("vm", "vllm"))
POLICY = Kind(
    "autoscaler.production-stack",
    "v1alpha1",
    "vLLMScalingPolicy",
    "vllmscalingpolicies",
    "vllmscalingpolicy",
    ("vsp",),
)
VARIANT = Kind("llmd.ai", "v1alpha1", "VariantAutoscaling", "variantautoscalings", "variantautoscaling", ("va",))

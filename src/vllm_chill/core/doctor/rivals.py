"""Who else writes the Deployment's number of replicas: autoscalers, and what applies manifests again. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator

from vllm_chill.core.doctor.finding import Check, Finding, Objects, Unseen, failure, ok, unknown, warning
from vllm_chill.core.doctor.paste import kubectl
from vllm_chill.core.doctor.picture import Asked, Picture
from vllm_chill.core.doctor.words import names_of
from vllm_chill.core.objects import Json, annotations_of, labels_of, metadata
from vllm_chill.core.phrases import listed
from vllm_chill.core.scaling.rivals import named
from vllm_chill.core.writers import scales, writers_of

_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_ARGO = ("argocd.argoproj.io/tracking-id", "argocd.argoproj.io/instance")
_FLUX = ("kustomize.toolkit.fluxcd.io/name", "helm.toolkit.fluxcd.io/name")


def find_autoscalers(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether an autoscaler has the Deployment for its target."""
    found: list[tuple[str, str, Json]] = []
    blind = []
    kinds: tuple[tuple[str, str, Objects], ...] = (
        ("HorizontalPodAutoscaler", "hpa", picture.horizontal_autoscalers),
        ("ScaledObject", "scaledobject.keda.sh", picture.scaled_objects),
        ("VariantAutoscaling", "variantautoscaling", () if asked.scales_variants else picture.variants),
    )
    for kind, short, items in kinds:
        if isinstance(items, Unseen):
            blind.append(items.why)
            continue
        found += [(kind, short, item) for item in items if scales(item, asked.ref)]
    # KEDA scales by an HPA that it owns: to delete that one is of no use.
    own = [one for one in found if not metadata(one[2]).get("ownerReferences")] or found
    if asked.recommends:
        yield from _recommended(own)
    else:
        for kind, short, item in own:
            name = str(metadata(item)["name"])
            yield failure(
                f"{kind} {name} scales {asked.deployment} too: the two undo each other's work",
                "delete it, or let it scale alone and give --mode recommend",
                kubectl(asked.namespace, "delete", short, name),
            )
        if not own and not blind:
            yield ok("no other autoscaler has it for a target")
    for why in blind:
        yield unknown(why)


def find_gitops(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether what applies the Deployment's manifest writes its replicas."""
    assert isinstance(picture.target, dict)
    managers = sorted(writer.manager for writer in writers_of(picture.target).owners)
    known = [manager for manager in managers if named(manager) != manager and not _is_hpa(manager)]
    labels, annotations = labels_of(picture.target), annotations_of(picture.target)
    marks = {**labels, **annotations}
    argo = any(mark in marks for mark in _ARGO) or any("Argo" in named(one) for one in known)
    flux = any(mark in marks for mark in _FLUX) or any("Flux" in named(one) for one in known)
    pinned = bool(known) or ((argo or flux) and _applied_replicas(annotations.get(_LAST_APPLIED, "")))
    if asked.recommends or not pinned:
        who = " by Argo CD" if argo else " by Flux" if flux else ""
        yield ok(f"what is applied{who} leaves its replicas alone")
        return
    who = named(known[0]) if known else "Argo CD" if argo else "Flux"
    says = f"{who} applies spec.replicas of {asked.deployment}: it wakes it and puts it to sleep against vllm-chill"
    if argo:
        yield failure(
            says, "have the Application leave it alone, and remove replicas from the manifest", _ignore(asked)
        )
    else:
        yield failure(
            says,
            "remove replicas from the manifest that it applies",
            "# in the manifest of the Deployment\nspec:\n  # replicas: taken out",
        )


def _recommended(found: list[tuple[str, str, Json]]) -> Iterator[Finding]:
    if found:
        names = names_of(item for _, _, item in found)
        yield ok(f"{found[0][0]} {listed(names, 2)} scales it, as --mode recommend leaves to somebody else")
    else:
        yield warning(
            "--mode recommend scales nothing, and no autoscaler has the Deployment for its target: nothing wakes it",
            "create one, as docs/autoscalers.md shows, or leave --mode out",
        )


def _is_hpa(manager: str) -> bool:
    return "HorizontalPodAutoscaler" in named(manager)  # it owns the number while it is there, which is looked at


def _applied_replicas(text: str) -> bool:
    try:
        return "replicas" in (json.loads(text).get("spec") or {})
    except (ValueError, AttributeError, RecursionError):
        return False


def _ignore(asked: Asked) -> str:
    return (
        "# in the Application\nspec:\n  ignoreDifferences:\n    - group: apps\n      kind: Deployment\n"
        f"      name: {asked.deployment}\n      namespace: {asked.namespace}\n      jsonPointers: [/spec/replicas]\n"
        "  syncPolicy:\n    syncOptions: [RespectIgnoreDifferences=true]"
    )


AUTOSCALERS = Check(
    "autoscalers",
    "HorizontalPodAutoscalers, KEDA's ScaledObjects and VariantAutoscalings whose target it is",
    "two write the number of replicas: it flaps, or never sleeps",
    "delete the other one, or `--mode recommend`",
    find_autoscalers,
)
GITOPS = Check(
    "gitops",
    "Argo CD, Flux and others that apply `spec.replicas` (managedFields, labels, what was last applied)",
    "each sync wakes the model, or puts it to sleep under its callers",
    "`ignoreDifferences` on `/spec/replicas`, or no `replicas` in the manifest",
    find_gitops,
)

"""What the engine's pod cannot start without: volumes, ConfigMaps, Secrets, a ServiceAccount. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_chill.core.doctor.finding import Check, Finding, Unseen, failure, ok, seen, unknown, warning
from vllm_chill.core.doctor.paste import kubectl
from vllm_chill.core.doctor.picture import Asked, Named, Picture
from vllm_chill.core.doctor.pod_template import claim_names, pod_spec, references, spec_of
from vllm_chill.core.doctor.words import names_of
from vllm_chill.core.objects import Json, annotations_of, metadata
from vllm_chill.core.phrases import listed
from vllm_chill.core.writers import scales

MOST_REPLICAS = "vllm-chill.io/max-replicas"
_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"


def find_volumes(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether the claims that the pod mounts are there, and can be bound."""
    assert isinstance(picture.target, dict)
    wanted = claim_names(pod_spec(picture.target))
    if not wanted:
        return
    claims = {metadata(one).get("name"): one for one in seen(picture.claims)}
    for name in wanted:
        claim = claims.get(name)
        if claim is None:
            yield failure(
                f"there is no PersistentVolumeClaim {name}: the pod stays Pending",
                "create it",
                _claim_yaml(asked.namespace, name),
            )
            continue
        phase = (claim.get("status") or {}).get("phase", "Pending")
        yield _shared(asked, picture, claim) or (
            ok(f"PersistentVolumeClaim {name} is bound") if phase == "Bound" else _unbound(asked, picture, claim, phase)
        )


def find_config_maps(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether the ConfigMaps are there, with the keys that the pod takes."""
    assert isinstance(picture.target, dict)
    wanted = references(pod_spec(picture.target)).config_maps
    for name, keys in wanted.items():
        found = _look(picture.config_maps, name)
        if isinstance(found, Finding):
            yield found
            continue
        has = {*((found or {}).get("data") or {}), *((found or {}).get("binaryData") or {})}
        lacking = sorted(keys - has)
        create = kubectl(asked.namespace, "create", "configmap", name, *_literals(sorted(keys) or ["KEY"]))
        if found is None:
            yield failure(f"there is no ConfigMap {name}: the container is not created", "create it", create)
        elif lacking:
            yield failure(
                f"ConfigMap {name} has no {listed(lacking, 3)}: the container is not created",
                "add what is missing",
                kubectl(asked.namespace, "edit", "configmap", name),
            )
        else:
            yield ok(f"ConfigMap {name} is there")


def find_secrets(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether the Secrets are there; nothing that is in one is read."""
    assert isinstance(picture.target, dict)
    wanted = references(pod_spec(picture.target)).secrets
    create = {
        name: kubectl(asked.namespace, "create", "secret", "generic", name, *_literals(sorted(keys) or ["KEY"]))
        for name, keys in wanted.items()
    }
    yield from _secrets(asked, picture, {name: ("the container is not created", one) for name, one in create.items()})


def find_pull_secrets(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether the Secrets are there that images are pulled with."""
    assert isinstance(picture.target, dict)
    flags = ("--docker-server=REGISTRY", "--docker-username=USER", "--docker-password=PASSWORD")
    wanted = references(pod_spec(picture.target)).pull_secrets
    create = {name: kubectl(asked.namespace, "create", "secret", "docker-registry", name, *flags) for name in wanted}
    yield from _secrets(
        asked, picture, {name: ("images of a private registry are not pulled", one) for name, one in create.items()}
    )


def find_account(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether the ServiceAccount is there that the pod runs as."""
    assert isinstance(picture.target, dict)
    name = references(pod_spec(picture.target)).account
    if not name:
        return
    found = _look(picture.accounts, name)
    if isinstance(found, Finding):
        yield found
    elif found is None:
        yield failure(
            f"there is no ServiceAccount {name}: no pod is made",
            "create it, or leave serviceAccountName out",
            kubectl(asked.namespace, "create", "serviceaccount", name),
        )
    else:
        yield ok(f"ServiceAccount {name} is there")


def most_replicas(asked: Asked, picture: Picture) -> int:
    """How many replicas there may be, as far as objects say."""
    assert isinstance(picture.target, dict)
    said = str(annotations_of(picture.target).get(MOST_REPLICAS, ""))
    counts = [int(spec_of(picture.target).get("replicas", 1)), int(said) if said.isdecimal() else 1]
    for item in () if isinstance(picture.policies, Unseen) else picture.policies:
        most = (item.get("spec") or {}).get("maxReplicas")
        if scales(item, asked.ref) and isinstance(most, int):
            counts.append(most)
    return max(counts)


def _literals(keys: list[str]) -> list[str]:
    return [f"--from-literal={key}=VALUE" for key in keys]


def _look(found: Named, name: str) -> Json | Finding | None:
    item = found.get(name)
    return unknown(item.why) if isinstance(item, Unseen) else item


def _secrets(asked: Asked, picture: Picture, wanted: dict[str, tuple[str, str]]) -> Iterator[Finding]:
    there = []
    for name, (harm, create) in wanted.items():
        found = _look(picture.secrets, name)
        if isinstance(found, Finding):
            yield found
        elif found is None:
            yield failure(f"there is no Secret {name} in the namespace {asked.namespace}: {harm}", "create it", create)
        else:
            there.append(name)
    if there:
        yield ok(f"Secret {listed(there, 3)} is there")


def _unbound(asked: Asked, picture: Picture, claim: Json, phase: str) -> Finding:
    name, wanted = str(metadata(claim)["name"]), (claim.get("spec") or {}).get("storageClassName")
    see = kubectl(asked.namespace, "describe", "pvc", name)
    if phase == "Lost":
        return failure(
            f"the volume of PersistentVolumeClaim {name} is gone", "delete the claim and create it anew", see
        )
    if isinstance(picture.storage_classes, Unseen):
        return unknown(f"PersistentVolumeClaim {name} is {phase}, and to say why {picture.storage_classes.why}")
    classes = picture.storage_classes
    if wanted == "":
        return failure(f"PersistentVolumeClaim {name} waits for a PersistentVolume: nobody makes one", "create it", see)
    default = [one for one in classes if annotations_of(one).get(_DEFAULT_CLASS) == "true"]
    fitting = [one for one in classes if metadata(one).get("name") == wanted] if wanted else default
    if not fitting:
        known = names_of(classes)
        there = f"; there is {listed(known, 3)}" if known else ", nor any other"
        lacks = f"StorageClass {wanted} is not there" if wanted else "no StorageClass is the default"
        return failure(
            f"PersistentVolumeClaim {name} is {phase}: {lacks}{there}",
            "create the claim anew with the name of a StorageClass that there is, or make one the default",
            "kubectl get storageclass",
        )
    if fitting[0].get("volumeBindingMode") == "WaitForFirstConsumer":
        return ok(f"PersistentVolumeClaim {name} gets its volume with the first pod")
    return warning(f"PersistentVolumeClaim {name} is {phase}: no volume was made for it yet", "see what it says", see)


def _shared(asked: Asked, picture: Picture, claim: Json) -> Finding | None:
    modes, many = (claim.get("spec") or {}).get("accessModes") or [], most_replicas(asked, picture)
    if many < 2 or not modes or any(mode in ("ReadWriteMany", "ReadOnlyMany") for mode in modes):
        return None
    name = metadata(claim)["name"]
    says = f"PersistentVolumeClaim {name} is {modes[0]}, and there may be {many} replicas"
    remedy = "give them a claim that is ReadWriteMany, or a cache of its own to each (emptyDir)"
    yaml = _claim_yaml(asked.namespace, f"{name}-shared", "ReadWriteMany")
    if modes == ["ReadWriteOncePod"]:
        return failure(f"{says}: all but one stay Pending", remedy, yaml)
    return warning(f"{says}: all have to run on one node", remedy, yaml)


def _claim_yaml(namespace: str, name: str, mode: str = "ReadWriteOnce") -> str:
    return (
        f"kubectl apply -f - <<'END'\napiVersion: v1\nkind: PersistentVolumeClaim\nmetadata:\n  name: {name}\n"
        f"  namespace: {namespace}\nspec:\n  accessModes: [{mode}]\n  resources: {{requests: {{storage: 100Gi}}}}\nEND"
    )


VOLUMES = Check(
    "volumes",
    "the PersistentVolumeClaims of its pods: there, bound, and fit for as many replicas as there may be",
    "the pod stays Pending; with ReadWriteOnce all replicas have to be on one node",
    "the claim, a StorageClass that there is, or ReadWriteMany",
    find_volumes,
)
CONFIG_MAPS = Check(
    "config-maps",
    "the ConfigMaps that its pods refer to, and their keys",
    "the container is never created",
    "the ConfigMap, with the keys that are taken from it",
    find_config_maps,
)
SECRETS = Check(
    "secrets",
    "the Secrets that its pods refer to (that they are there; nothing in them is read)",
    "the container is never created",
    "the Secret",
    find_secrets,
)
PULL_SECRETS = Check(
    "pull-secrets",
    "its `imagePullSecrets`",
    "an image of a private registry is not pulled",
    "the Secret",
    find_pull_secrets,
)
ACCOUNT = Check(
    "service-account",
    "the ServiceAccount that its pods run as",
    "no pod is made",
    "the ServiceAccount",
    find_account,
)

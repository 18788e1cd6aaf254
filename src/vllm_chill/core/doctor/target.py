"""The Deployment itself: that it is there, how it is rolled out, how it ends, and which image it runs. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_chill.core.doctor.finding import Check, Finding, failure, ok, seen, warning
from vllm_chill.core.doctor.paste import kubectl, of_pods, patch
from vllm_chill.core.doctor.picture import Asked, Picture
from vllm_chill.core.doctor.pod_template import devices, engine_of, image_name, pod_spec, spec_of
from vllm_chill.core.doctor.words import names_of, similar
from vllm_chill.core.phrases import listed

_GRACE_SECONDS = 30
_LEAST_GRACE_SECONDS = 10


def find_deployment(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether the target is there."""
    if asked.of_models:
        return
    name, namespace = asked.deployment, asked.namespace
    if (found := seen(picture.target)) is not None:
        replicas = spec_of(found).get("replicas", 1)
        awake = "asleep" if not replicas else f"with replicas: {replicas}"
        yield ok(f"Deployment {namespace}/{name} is there, {awake}")
        return
    says = f"there is no Deployment {name} in the namespace {namespace}"
    others = [one for one in picture.elsewhere if one != namespace]
    if others:
        yield failure(
            f"{says}, and there is one in {listed(others, 3)}",
            f"give --namespace {others[0]}, where the proxy then runs too",
            kubectl(others[0], "get", "deployment", name),
        )
        return
    names = names_of(seen(picture.deployments))
    if meant := similar(name, names):
        yield failure(
            f"{says}, and there is {listed(meant, 3)}",
            f"give --deployment {meant[0]}, and name it in the proxy's Role",
            kubectl(namespace, "get", "deployment", meant[0]),
        )
    else:
        there = f"; there is {listed(names, 5)}" if names else ", nor any other"
        yield failure(
            says + there,
            "give another --deployment or --namespace, or bring an example",
            "kubectl apply -k deploy/example",
        )


def find_strategy(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether a rollout waits for a GPU that the old pod holds."""
    assert isinstance(picture.target, dict)
    strategy = spec_of(picture.target).get("strategy") or {}
    surge = (strategy.get("rollingUpdate") or {}).get("maxSurge", "25%")
    gpus = devices(pod_spec(picture.target))
    if strategy.get("type", "RollingUpdate") != "RollingUpdate" or not gpus or str(surge) in ("0", "0%"):
        yield ok("a new version does not wait for the GPU of the old one")
        return
    yield warning(
        f"strategy RollingUpdate starts a new pod while the old one has its {listed(sorted(gpus), 2)}: without a spare "
        "GPU a rollout never ends",
        "let the old pod go first",
        patch(
            asked.namespace,
            f"deployment/{asked.deployment}",
            {"spec": {"strategy": {"type": "Recreate", "rollingUpdate": None}}},
        ),
    )


def find_grace(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether an engine that is told to end may finish what it answers."""
    assert isinstance(picture.target, dict)
    grace = pod_spec(picture.target).get("terminationGracePeriodSeconds", _GRACE_SECONDS)
    if grace >= _LEAST_GRACE_SECONDS:
        yield ok(f"an engine has {grace}s to end")
        return
    yield warning(
        f"terminationGracePeriodSeconds is {grace}: who drains a node or rolls out a version cuts answers after that",
        "give it time to end; vllm-chill itself ends no pod that answers",
        of_pods(asked.namespace, asked.deployment, {"terminationGracePeriodSeconds": 60}),
    )


def find_image(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether a wake depends on a registry."""
    assert isinstance(picture.target, dict)
    container = engine_of(pod_spec(picture.target))
    image, policy = str(container.get("image") or ""), container.get("imagePullPolicy")
    _, tag = image_name(container)
    fixed = f"{image.removesuffix(':latest')}:VERSION"
    if tag in ("", "latest"):
        yield warning(
            f"the image {image} has no fixed version: a wake may bring another one than ran before",
            "name a version",
            kubectl(
                asked.namespace, "set", "image", f"deployment/{asked.deployment}", f"{container.get('name')}={fixed}"
            ),
        )
    elif policy == "Always":
        change = {"containers": [{"name": container.get("name"), "imagePullPolicy": "IfNotPresent"}]}
        yield warning(
            "imagePullPolicy is Always: each wake asks the registry first, and fails while that is away",
            "use what the node has",
            of_pods(asked.namespace, asked.deployment, change),
        )
    else:
        yield ok(f"the image {image} is pulled once for each node")


DEPLOYMENT = Check(
    "deployment",
    "the Deployment of `--deployment` in `--namespace`",
    "there is nothing to wake: every request is answered 503",
    "correct the name or the namespace; names like it, and namespaces that have it, are told",
    find_deployment,
    of_target=False,
)
STRATEGY = Check(
    "strategy",
    "its `strategy`, where its pods ask for GPUs",
    "with RollingUpdate a new pod waits for a GPU that the old one holds, and the rollout for the new pod",
    "`strategy: Recreate`",
    find_strategy,
)
GRACE = Check(
    "grace-period",
    "`terminationGracePeriodSeconds` of its pods",
    "an engine on a node that is drained is killed in the middle of its answers",
    "a minute, as in deploy/example",
    find_grace,
)
IMAGE = Check(
    "image",
    "the tag and `imagePullPolicy` of the engine",
    "a wake asks a registry each time, or brings another version than ran before",
    "a version for a tag, and `imagePullPolicy: IfNotPresent`",
    find_image,
)

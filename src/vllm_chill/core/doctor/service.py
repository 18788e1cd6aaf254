"""The target's Service: that it is there, selects the pods, and leads to the port that the engine listens on. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_chill.core.doctor.finding import Check, Finding, failure, ok, seen, warning
from vllm_chill.core.doctor.paste import of_pods, patch, patch_at
from vllm_chill.core.doctor.picture import Asked, Picture
from vllm_chill.core.doctor.pod_template import (
    containers,
    declared_ports,
    engine_of,
    image_name,
    pod_labels,
    pod_spec,
    said_port,
    selects,
)
from vllm_chill.core.doctor.words import labels_text, names_of
from vllm_chill.core.engine_port import METRICS_PORT, engine_port
from vllm_chill.core.objects import Json, metadata
from vllm_chill.core.phrases import listed

_VLLM = "vllm"
_PAST = "requests go to the pods themselves, and only who else uses that Service misses them"


def service_of(asked: Asked, picture: Picture) -> Json | None:
    """The Service that the settings name, by its name or its address; None without. Raises CouldNotLook."""
    for item in seen(picture.services):
        if asked.service is not None and metadata(item).get("name") == asked.service:
            return item
        if asked.service is None and (item.get("spec") or {}).get("clusterIP") == asked.host:
            return item
    return None


def find_service(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether the Service is there."""
    assert isinstance(picture.target, dict)
    found = service_of(asked, picture)
    if found is not None:
        yield ok(f"Service {metadata(found)['name']} is there")
        return
    if asked.service is None:
        yield ok(f"{asked.host} is no Service of the namespace {asked.namespace}: requests go to it as it is")
        return
    says = f"there is no Service {asked.service} in the namespace {asked.namespace}"
    labels = pod_labels(picture.target)
    fitting = [one for one in seen(picture.services) if selects(one, labels)]
    if fitting:
        name = names_of(fitting)[0]
        yield _broken(asked, f"{says}, and {name} leads to its pods", f"give --target-host {name}")
    else:
        yield _broken(asked, says, "create it", _service_yaml(asked, picture.target))


def find_selector(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether the Service selects the target's pods."""
    assert isinstance(picture.target, dict)
    service, labels = service_of(asked, picture), pod_labels(picture.target)
    if service is None:
        return
    name, selector = str(metadata(service)["name"]), (service.get("spec") or {}).get("selector") or {}
    if selects(service, labels):
        yield ok(f"Service {name} selects the pods of {asked.deployment}")
        return
    right = (((picture.target.get("spec") or {}).get("selector") or {}).get("matchLabels")) or labels
    new = {**dict.fromkeys(selector), **right}
    yield _broken(
        asked,
        f"Service {name} selects {labels_text(selector)}, and {asked.deployment}'s pods have {labels_text(labels)}",
        "have it select them",
        patch(asked.namespace, f"service/{name}", {"spec": {"selector": new}}),
    )


def find_service_port(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether the Service's port leads to a port of the pods."""
    assert isinstance(picture.target, dict)
    service, spec = service_of(asked, picture), pod_spec(picture.target)
    if service is None:
        return
    name, ports = str(metadata(service)["name"]), (service.get("spec") or {}).get("ports") or []
    port = next((one for one in ports if one.get("port") == asked.port), None)
    if port is None:
        numbers = [str(one.get("port")) for one in ports]
        has = f"it has {listed(numbers, 5)}" if numbers else "it has none"
        yield _broken(
            asked, f"Service {name} has no port {asked.port}; {has}", f"give --target-port {next(iter(numbers), 80)}"
        )
        return
    wanted = port.get("targetPort", asked.port)
    declared = list(declared_ports(spec))
    right = _right_port(spec)
    if isinstance(wanted, str) and not wanted.isdecimal():
        known = [called for called, _ in declared if called]
        fits = wanted in known
        lacks = f"no port called {wanted}" + (f", but {listed(known, 3)}" if known else "")
    else:
        fits = not declared or int(wanted) in [number for _, number in declared]
        lacks = f"no port {wanted}, but {listed([str(number) for _, number in declared], 3)}"
    if fits:
        yield ok(f"port {asked.port} of Service {name} leads to port {wanted} of the pods")
        return
    named = next((called for called, number in declared if number == right and called), right)
    change = {"spec": {"ports": [{"port": asked.port, "targetPort": named}]}}
    yield _broken(
        asked,
        f"port {asked.port} of Service {name} leads to port {wanted} of the pods, which have {lacks}",
        "have it lead to the engine's",
        patch(asked.namespace, f"service/{name}", change),
    )


def find_engine_port(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether the engine listens on the port that requests go to."""
    assert isinstance(picture.target, dict)
    if not asked.direct:
        return  # what a Service leads to is looked at there
    spec = pod_spec(picture.target)
    container = engine_of(spec)
    listens = _listens(container)
    goes = engine_port(spec, asked.port)
    if listens is None or listens == goes:
        yield ok(f"requests go to port {goes} of the pods")
        return
    at = containers(spec).index(container)
    ports = [one for one in container.get("ports") or [] if one.get("name") != "http"]
    kept = [one for one in ports if one.get("containerPort") not in (goes, listens)]
    yield failure(
        f"the engine listens on port {listens}, and requests go to port {goes}, which is what its pods declare",
        "declare the engine's port, under the name http",
        patch_at(
            asked.namespace,
            f"deployment/{asked.deployment}",
            [(f"/spec/template/spec/containers/{at}/ports", [{"name": "http", "containerPort": listens}, *kept])],
        ),
    )


def find_service_links(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether Kubernetes writes VLLM_PORT into the engine's environment."""
    assert isinstance(picture.target, dict)
    spec = pod_spec(picture.target)
    if spec.get("enableServiceLinks") is False:
        yield ok("Kubernetes writes no VLLM_* variables of Services into the pods")
        return
    container = engine_of(spec)
    given = {one.get("name") for one in container.get("env") or []}
    if _VLLM in names_of(seen(picture.services)) and "VLLM_PORT" not in given:
        yield failure(
            "a Service is called vllm, so that Kubernetes sets VLLM_PORT=tcp://… in the pods, which vLLM reads as the "
            "port of its own and ends",
            "have none of these variables made, or call the Service otherwise",
            of_pods(asked.namespace, asked.deployment, {"enableServiceLinks": False}),
        )
    else:
        yield ok("no Service is called vllm")


def _broken(asked: Asked, says: str, remedy: str, paste: str = "") -> Finding:
    if asked.direct:
        return warning(f"{says}; {_PAST}", remedy, paste)
    return failure(says, remedy, paste)


def _listens(container: Json) -> int | None:
    said = said_port(container)
    if said is None and image_name(container)[0] == "vllm-openai":
        return METRICS_PORT  # vLLM's own, where nobody says another
    return said


def _right_port(spec: Json) -> int:
    return _listens(engine_of(spec)) or engine_port(spec, METRICS_PORT)


def _service_yaml(asked: Asked, target: Json) -> str:
    labels = ((target.get("spec") or {}).get("selector") or {}).get("matchLabels") or pod_labels(target)
    selector = "".join(f"\n    {key}: {value}" for key, value in sorted(labels.items()))
    return (
        f"kubectl apply -f - <<'END'\napiVersion: v1\nkind: Service\nmetadata:\n  name: {asked.service}\n"
        f"  namespace: {asked.namespace}\nspec:\n  selector:{selector}\n  ports:\n    - port: {asked.port}\n"
        f"      targetPort: {_right_port(pod_spec(target))}\nEND"
    )


SERVICE = Check(
    "service",
    "the Service of `--target-host`",
    "with `--route service` no request reaches the engine",
    "correct the name, or create the Service",
    find_service,
)
SELECTOR = Check(
    "service-selector",
    "its selector, against the labels of the Deployment's pods",
    "the Service leads to nobody, or to other pods",
    "the selector of the Deployment",
    find_selector,
)
SERVICE_PORT = Check(
    "service-port",
    "its port `--target-port`, and the port of the pods that it leads to",
    "connections are refused although the engine is ready",
    "the port's name or number as the container declares it",
    find_service_port,
)
ENGINE_PORT = Check(
    "engine-port",
    "vLLM's `--port` (8000 without), against the port that the pods declare",
    "requests go to a port that nobody listens on, and the start never ends",
    "the engine's port as a `containerPort` called `http`",
    find_engine_port,
)
SERVICE_LINKS = Check(
    "service-links",
    "a Service called `vllm`, and `enableServiceLinks` of the pods",
    "Kubernetes sets `VLLM_PORT=tcp://…` in the pods, and vLLM does not start",
    "`enableServiceLinks: false`, or another name",
    find_service_links,
)

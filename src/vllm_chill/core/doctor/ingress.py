"""What stands in front of the proxy: whether it waits for a cold start, and what it lets through. Pure.

The rule: of ingress-nginx the annotations are read. What others do is in docs/hold.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_chill.core.doctor.finding import Check, Finding, failure, ok, seen, warning
from vllm_chill.core.doctor.paste import kubectl, patch_at
from vllm_chill.core.doctor.picture import Asked, Picture
from vllm_chill.core.doctor.pod_template import pod_labels, selects
from vllm_chill.core.doctor.proxies import serving
from vllm_chill.core.doctor.words import span
from vllm_chill.core.objects import Json, annotations_of, metadata

_NGINX = "nginx.ingress.kubernetes.io/"
_NGINX_SECONDS = 60.0
_LONG_SECONDS = 1800
_SMALL_BYTES = 8 << 20
_SIZE = re.compile(r"([0-9]+)([kKmMgG]?)")
_FACTORS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


@dataclass(frozen=True, slots=True)
class Way:
    """One path of an Ingress to a Service: where it stands in the object, and what it lets through."""

    ingress: Json
    at: str
    path: str
    kind: str
    service: str
    port: Any

    @property
    def name(self) -> str:
        """The Ingress' name."""
        return str(metadata(self.ingress)["name"])

    @property
    def leads_to_operators(self) -> bool:
        """Whether /proxy/operations/stop goes this way."""
        if self.kind == "Exact":
            return False
        path = self.path.rstrip("/")
        return path in ("", "/proxy", "/proxy/operations") or self.path.startswith(("/(.*)", "/.*"))


def ways_of(ingress: Json) -> Iterator[Way]:
    """Where an Ingress leads."""
    spec = ingress.get("spec") or {}
    if spec.get("defaultBackend"):
        yield _way(ingress, "/spec/defaultBackend", "/", "Prefix", spec["defaultBackend"])
    for i, rule in enumerate(spec.get("rules") or []):
        for j, path in enumerate((rule.get("http") or {}).get("paths") or []):
            at = f"/spec/rules/{i}/http/paths/{j}"
            kind = str(path.get("pathType") or "ImplementationSpecific")
            yield _way(ingress, at, str(path.get("path") or "/"), kind, path.get("backend") or {})


def find_timeouts(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether an Ingress gives up while a model wakes."""
    for ingress in _in_front(asked, picture):
        name, annotations = str(metadata(ingress)["name"]), annotations_of(ingress)
        if not _is_nginx(ingress):
            yield ok(f"Ingress {name} is not nginx's: docs/hold.md has what others wait for")
            continue
        wanted = str(max(_LONG_SECONDS, int(asked.wake_seconds) + 60))
        read, send = (_seconds(annotations, f"proxy-{which}-timeout") for which in ("read", "send"))
        if read < asked.wake_seconds:
            yield failure(
                f"Ingress {name} gives up after {span(read)} of silence (proxy-read-timeout), and callers are held for "
                f"{span(asked.wake_seconds)}: who wants no stream gets its 504 while the model wakes",
                "let it wait for longer than --wake-timeout",
                _annotate(asked, name, "proxy-read-timeout", wanted),
            )
        elif send < asked.wake_seconds:
            yield warning(
                f"Ingress {name} gives up on an upload after {span(send)} (proxy-send-timeout), and a held one is not "
                f"read to its end for up to {span(asked.wake_seconds)}",
                "let it wait for longer than --wake-timeout",
                _annotate(asked, name, "proxy-send-timeout", wanted),
            )
        else:
            yield ok(f"Ingress {name} waits for {span(read)}")


def find_buffering(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether an Ingress holds tokens back, or refuses what a model takes."""
    for ingress in _in_front(asked, picture):
        if not _is_nginx(ingress):
            continue
        name, annotations = str(metadata(ingress)["name"]), annotations_of(ingress)
        size = annotations.get(_NGINX + "proxy-body-size", "1m")
        if annotations.get(_NGINX + "proxy-buffering", "off") == "on":
            yield warning(
                f"Ingress {name} buffers answers (proxy-buffering): tokens come in lumps",
                "have it pass them on as they come",
                _annotate(asked, name, "proxy-buffering", "off"),
            )
        if 0 < _bytes(size) < _SMALL_BYTES:
            yield warning(
                f"Ingress {name} refuses bodies above {size} with 413 (proxy-body-size): images and audio in prompts "
                "are larger",
                "allow for them",
                _annotate(asked, name, "proxy-body-size", "64m"),
            )


def find_operators(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether an Ingress lets everybody put the model to sleep."""
    ways = [way for way in _ways(asked, picture) if way.leads_to_operators]
    if not asked.guarded and asked.admin_port is not None:
        # Elsewhere there is nothing under /proxy/.
        ways = [way for way in ways if _leads_to(way, asked.admin_port, picture)]
    if not ways:
        return
    if asked.guarded:
        yield ok(f"Ingress {ways[0].name} leads to /proxy/ too, where operators are asked who they are")
        return
    way = ways[0]
    paste = "" if way.at.endswith("defaultBackend") else patch_at(
        asked.namespace, f"ingress/{way.name}", [(f"{way.at}/path", "/v1"), (f"{way.at}/pathType", "Prefix")]
    )  # fmt: skip
    yield failure(
        f"Ingress {way.name} lets {way.path} through, and with it /proxy/operations/stop: everybody may put the model "
        "to sleep",
        "let only the paths through that wake, as deploy/ingress.yaml does, or give --admin-auth keys",
        paste,
    )


def find_bypass(asked: Asked, picture: Picture) -> Iterator[Finding]:
    """Whether an Ingress leads past the proxy."""
    assert isinstance(picture.target, dict)
    labels = pod_labels(picture.target)
    services = {str(metadata(one)["name"]) for one in seen(picture.services) if selects(one, labels)}
    found = [way for one in seen(picture.ingresses) for way in ways_of(one) if way.service in services]
    if not found:
        yield ok("no Ingress leads past the proxy")
        return
    way, fronts = found[0], _services_of_proxies(asked, picture)
    paste = ""
    if fronts:
        port = (((fronts[0].get("spec") or {}).get("ports") or [{}])[0]).get("port", 80)
        at = way.at if way.at.endswith("defaultBackend") else f"{way.at}/backend"
        backend = {"service": {"name": metadata(fronts[0])["name"], "port": {"number": port}}}
        paste = patch_at(asked.namespace, f"ingress/{way.name}", [(at, backend)])
    yield failure(
        f"Ingress {way.name} leads {way.path} to Service {way.service}, past the proxy: those requests wake nothing, "
        "and are cut when the model is put to sleep",
        "lead it to the proxy's Service",
        paste,
    )


def _way(ingress: Json, at: str, path: str, kind: str, backend: Json) -> Way:
    service = backend.get("service") or {}
    port = service.get("port") or {}
    return Way(ingress, at, path, kind, str(service.get("name") or ""), port.get("number") or port.get("name"))


def _leads_to(way: Way, port: int, picture: Picture) -> bool:
    for service in seen(picture.services):
        if metadata(service).get("name") != way.service:
            continue
        for one in (service.get("spec") or {}).get("ports") or []:
            if way.port in (one.get("port"), one.get("name")):
                return bool(one.get("targetPort", one.get("port")) == port)
    return False


def _services_of_proxies(asked: Asked, picture: Picture) -> list[Json]:
    proxies = serving(asked, picture.deployments)
    return [one for one in seen(picture.services) if any(selects(one, proxy.labels) for proxy in proxies)]


def _ways(asked: Asked, picture: Picture) -> list[Way]:
    ingresses = seen(picture.ingresses)
    if not ingresses:
        return []
    services = {str(metadata(one)["name"]) for one in _services_of_proxies(asked, picture)}
    return [way for ingress in ingresses for way in ways_of(ingress) if way.service in services]


def _in_front(asked: Asked, picture: Picture) -> list[Json]:
    return list({way.name: way.ingress for way in _ways(asked, picture)}.values())


def _is_nginx(ingress: Json) -> bool:
    annotations = annotations_of(ingress)
    said = (ingress.get("spec") or {}).get("ingressClassName")
    kind = str(said or annotations.get("kubernetes.io/ingress.class", ""))
    return "nginx" in kind or any(key.startswith(_NGINX) for key in annotations)


def _seconds(annotations: Mapping[str, str], name: str) -> float:
    text = annotations.get(_NGINX + name, "").removesuffix("s")
    return float(text) if text.isdecimal() else _NGINX_SECONDS


def _bytes(text: str) -> int:
    found = _SIZE.fullmatch(text.strip())
    return 0 if found is None else int(found[1]) * _FACTORS[found[2].lower()]


def _annotate(asked: Asked, name: str, annotation: str, value: str) -> str:
    return kubectl(asked.namespace, "annotate", "--overwrite", "ingress", name, f"{_NGINX}{annotation}={value}")


TIMEOUTS = Check(
    "ingress-timeouts",
    "`proxy-read-timeout` and `proxy-send-timeout` of ingress-nginx, against `--wake-timeout`",
    "callers get the ingress' own 504 in the middle of a cold start",
    "1800 s, as in deploy/ingress.yaml",
    find_timeouts,
    of_target=False,
)
BUFFERING = Check(
    "ingress-limits",
    "`proxy-buffering` and `proxy-body-size` of ingress-nginx",
    "tokens come in lumps; prompts with images are answered 413",
    "`off`, and 64m",
    find_buffering,
    of_target=False,
)
OPERATORS = Check(
    "ingress-operators",
    "an Ingress that lets `/proxy/` through without `--admin-auth`, or leads to `--admin-port`",
    "everybody who reaches the Ingress may put the model to sleep",
    "only the paths that wake, or `--admin-auth`",
    find_operators,
    of_target=False,
)
BYPASS = Check(
    "ingress-bypass",
    "an Ingress that leads to the engine's own Service",
    "its requests wake nothing, are not counted, and are cut when the model is put to sleep",
    "the proxy's Service for a backend",
    find_bypass,
)

"""Whether there are traces, and where they go: by --otlp-traces-endpoint, or as OpenTelemetry's own variables say.

The rule: nothing of OpenTelemetry is imported unless they are wanted.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog

from vllm_chill.errors import SettingError
from vllm_chill.proxy.handler import ProxyHandler

if TYPE_CHECKING:
    from vllm_chill.core.routing import Routes
    from vllm_chill.telemetry.tracing import Protocol, Tracing

_PATH = "/v1/traces"
_DEFAULTS: dict[Protocol, str] = {"http/protobuf": "http://localhost:4318", "grpc": "http://localhost:4317"}
_EXTRAS: dict[Protocol, str] = {"http/protobuf": "otel", "grpc": "otel-grpc"}


@dataclass(frozen=True, slots=True)
class Collector:
    """Where traces go. `asked_for` says that this proxy was told so, rather than all programs of its environment."""

    endpoint: str
    protocol: Protocol
    asked_for: bool


def collector(endpoint: str | None, environ: Mapping[str, str]) -> Collector | None:
    """Where traces go, given --otlp-traces-endpoint; None for nowhere. Raises SettingError for what is not known."""
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporter == "none":
        return None
    of_all = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip()
    if not endpoint and not of_all and not exporter:
        return None
    if exporter not in ("", "otlp"):
        raise SettingError(f'OTEL_TRACES_EXPORTER: "{exporter}" is not accepted; give otlp or none')
    protocol = _protocol(environ)
    if endpoint:
        return Collector(_with_path(endpoint, protocol), protocol, asked_for=True)
    base = of_all or _DEFAULTS[protocol]
    whole = base if protocol == "grpc" else base.removesuffix("/") + _PATH
    return Collector(whole, protocol, asked_for=bool(exporter))


def _protocol(environ: Mapping[str, str]) -> Protocol:
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        match environ.get(name, "").strip():
            case "":
                continue
            case "grpc":
                return "grpc"
            case "http/protobuf":
                return "http/protobuf"
            case other:
                raise SettingError(f'{name}: "{other}" is not accepted; give http/protobuf or grpc')
    return "http/protobuf"


def _with_path(endpoint: str, protocol: Protocol) -> str:
    """The endpoint with the path that collectors have, where it has none."""
    if protocol == "grpc" or urlsplit(endpoint).path not in ("", "/"):
        return endpoint
    return endpoint.removesuffix("/") + _PATH


@asynccontextmanager
async def open_tracing(endpoint: str | None, version: str) -> AsyncIterator[Tracing | None]:
    """What makes spans, if there are to be any. Raises SettingError if it was asked for and cannot be had."""
    there = collector(endpoint, os.environ)
    tracing = None if there is None else _made(there, version)
    if tracing is None:
        yield None
        return
    try:
        yield tracing
    finally:
        await tracing.aclose()


def proxy_handler(tracing: Tracing | None, routes: Routes, *handling: Any) -> ProxyHandler:
    """What proxies requests, with spans if there is tracing; `handling` is what ProxyHandler takes."""
    if tracing is None:
        return ProxyHandler(*handling)
    from vllm_chill.proxy.traced import Requests, TracedHandler

    return TracedHandler(Requests(tracing.tracer, routes), *handling)


def _made(there: Collector, version: str) -> Tracing | None:
    try:
        from vllm_chill.telemetry.tracing import Tracing, exporter_of

        exporter = exporter_of(there.endpoint, there.protocol)
    except ImportError as error:
        extra = _EXTRAS[there.protocol]
        if there.asked_for:
            raise SettingError(f"traces need what is not installed ({error}); install vllm-chill[{extra}]") from None
        structlog.get_logger("vllm_chill.tracing").warning(
            "no traces: OTEL_EXPORTER_OTLP_ENDPOINT is set, and what they need is not installed",
            hint=f"install vllm-chill[{extra}], or set OTEL_TRACES_EXPORTER=none",
        )
        return None
    tracing = Tracing(exporter, there.endpoint, version)
    structlog.get_logger("vllm_chill.tracing").info("tracing", endpoint=there.endpoint, protocol=there.protocol)
    return tracing

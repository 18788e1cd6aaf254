"""Where traces go, by the flag and by OpenTelemetry's own variables."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

import pytest
from structlog.testing import capture_logs

from tests.serving import clean_environment
from vllm_chill.app.tracing import Collector, collector, open_tracing
from vllm_chill.errors import SettingError

HTTP: Final = "http/protobuf"
GRPC: Final = "grpc"


@pytest.mark.parametrize(
    ("endpoint", "environment", "found"),
    [
        (None, {}, None),
        ("http://c:4318", {}, Collector("http://c:4318/v1/traces", HTTP, asked_for=True)),
        ("http://c:4318/", {}, Collector("http://c:4318/v1/traces", HTTP, asked_for=True)),
        ("https://c/own/path", {}, Collector("https://c/own/path", HTTP, asked_for=True)),
        ("http://c:4317", {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, Collector("http://c:4317", GRPC, asked_for=True)),
        (
            "http://c:4318",
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"},
            Collector("http://c:4318/v1/traces", HTTP, asked_for=True),
        ),
        (
            None,
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://all:4318/base/"},
            Collector("http://all:4318/base/v1/traces", HTTP, asked_for=False),
        ),
        (
            None,
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://all:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            Collector("http://all:4317", GRPC, asked_for=False),
        ),
        (
            None,
            {"OTEL_TRACES_EXPORTER": "otlp"},
            Collector("http://localhost:4318/v1/traces", HTTP, asked_for=True),
        ),
        ("http://c:4318", {"OTEL_TRACES_EXPORTER": "none"}, None),
        ("http://c:4318", {"OTEL_SDK_DISABLED": "true"}, None),
    ],
    ids=[
        "nowhere",
        "the flag",
        "the flag with a slash",
        "the flag with a path",
        "the flag, gRPC",
        "a protocol for traces",
        "all signals",
        "all signals, gRPC",
        "an exporter",
        "no exporter",
        "disabled",
    ],
)
def test_where_they_go(endpoint: str | None, environment: dict[str, str], found: Collector | None) -> None:
    assert collector(endpoint, environment) == found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "smoke"),
    ],
)
def test_what_is_not_known_is_said_so(name: str, value: str) -> None:
    with pytest.raises(SettingError, match=f'{name}: "{value}" is not accepted; give '):
        collector("http://c:4318", {name: value})


async def test_what_is_not_installed_is_an_error_where_it_was_asked_for_and_a_warning_where_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("vllm_chill.telemetry.tracing", "opentelemetry.exporter.otlp.proto.http.trace_exporter"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SettingError, match=r"install vllm-chill\[otel\]$"):
        async with open_tracing("http://c:4318", "1"):
            pass
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:4318")
    with capture_logs() as log:
        async with open_tracing(None, "1") as tracing:
            assert tracing is None
    [line] = log
    assert line["log_level"] == "warning"
    assert "vllm-chill[otel]" in line["hint"]


def test_without_a_collector_nothing_of_opentelemetry_is_imported() -> None:
    program = (
        "import asyncio, sys\n"
        "from vllm_chill.app import serve\n"
        "from vllm_chill.app.tracing import open_tracing\n"
        "async def main():\n"
        "    async with open_tracing(None, '1') as tracing:\n"
        "        assert tracing is None\n"
        "asyncio.run(main())\n"
        "print([name for name in sys.modules if 'opentelemetry' in name or 'traced' in name or 'grpc' in name])\n"
    )
    environment = {name: value for name, value in clean_environment().items() if not name.startswith("OTEL_")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "[]\n"

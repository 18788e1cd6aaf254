"""What of the proxy is to be had behind the Ingress in deploy/: by a real nginx with the locations that ingress-nginx
makes of it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from tests.ingress.nginx import PROGRAM, nginx
from tests.serving import serving
from vllm_chill.core.routing import DEFAULT_WAKE_PATHS, METHODS, is_own

ROOT = Path(__file__).parent.parent.parent
PATHS = yaml.safe_load((ROOT / "deploy" / "ingress.yaml").read_text())["spec"]["rules"][0]["http"]["paths"]


def locations() -> Iterator[str]:
    for one in PATHS:
        yield f"= {one['path']}"
        if one["pathType"] == "Prefix":
            yield f"{one['path'].rstrip('/')}/"


def routed(path: str) -> bool:
    """Whether a path is let through, by the words of the Ingress (Kubernetes: Prefix counts whole segments)."""
    return any(
        path == one["path"] or (one["pathType"] == "Prefix" and path.startswith(one["path"].rstrip("/") + "/"))
        for one in PATHS
    )


def test_every_path_that_wakes_is_routed() -> None:
    for path in DEFAULT_WAKE_PATHS:
        assert routed(path.removesuffix("*") + "x" if path.endswith("*") else path), path
    assert routed("/v1/models")
    assert routed("/health")


def test_none_of_the_proxys_own_paths_is() -> None:
    for route in METHODS:
        assert not (is_own(route) and routed(route.value)), route
    for path in ("/", "/proxy", "/proxy/", "/metrics", "/v1proxy", "/docs"):
        assert not routed(path), path


# However it is spelled: what nginx decides by, and what it passes on, are not the same text.
WAYS = (
    "/proxy/status",
    "/proxy/operations/stop",
    "//proxy/status",
    "/v1/../proxy/status",
    "/v1/..%2fproxy/status",
    "/v1/%2e%2e/proxy/status",
    "/v1//../proxy/status",
    "/%70roxy/status",
    "/proxy/status/../../v1/x",
    "/proxy/operations/stop/../../../v1/x",
    "/proxy/operations/stop/..%2f..%2f..%2fv1/x",
    "/proxy/operations/stop%3f/../../../v1/x",
    "/proxy/scaling/replicas/../../../v1/x",
    "/proxy/scaling/policy/../../../v1/x",
    "/proxy/scaling/metrics/..%2f..%2f../v1/x",
    "/proxy/scaling/metrics/%2e%2e/%2e%2e/%2e%2e/v1/x",
    "/proxy/scaling/metrics/.%2e/..%5c/%2e./../v1/x",
)


async def asked(url: str, method: str, path: str) -> bytes:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.skipif(PROGRAM is None, reason="nginx is not on this machine")
async def test_no_spelling_of_them_gets_through_nginx(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "vllm_chill.demo_engine", "--port", "{port}", "--load-seconds", "0")
    async with serving(command=command) as proxy, nginx(tmp_path / "n", proxy.url, (), tuple(locations())) as url:
        assert b" 200 " in (await asked(url, "GET", "/health")).partition(b"\r\n")[0]
        assert b" 200 " in (await asked(url, "GET", "/v1/models")).partition(b"\r\n")[0]
        for method in ("GET", "POST"):
            for path in WAYS:
                answer = await asked(url, method, path)
                assert answer.partition(b"\r\n")[0].split()[1] in (b"400", b"404"), (method, path, answer)
                assert b"targets" not in answer
        assert (await proxy.status())["phase"] == "asleep"
        assert not [line for line in proxy.log if line["event"] in ("waking", "stopping", "scaled")]

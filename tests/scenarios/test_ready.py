"""From the moment at which a real engine's port opens to the first byte of an answer."""

from __future__ import annotations

import json
import sys
import time

import aiohttp
import pytest

from tests.serving import serving

_GENEROUS_SECONDS = 0.6

# It tells when it began to listen, and how many connections it has had.
ENGINE = """if True:
    import http.server, json, sys, time

    class Engine(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self):
            global connections
            connections += 1
            super().setup()

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def do_GET(self):
            status = 200 if time.monotonic_ns() >= healthy_ns else 503
            told = {"data": [{"id": "tiny"}], "connections": connections, "healthy_ns": healthy_ns}
            body = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    connections = 0
    time.sleep(float(sys.argv[2]))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Engine)
    healthy_ns = time.monotonic_ns() + int(1e9 * float(sys.argv[3]))
    server.serve_forever()
"""


@pytest.mark.parametrize(
    ("closed", "unhealthy"), [("1.23", "0"), ("0.3", "0.87")], ids=["its port opens", "its health page turns to 200"]
)
async def test_the_first_byte_comes_right_after(closed: str, unhealthy: str) -> None:
    command = (sys.executable, "-S", "-c", ENGINE, "{port}", closed, unhealthy)
    async with serving(command=command) as proxy, aiohttp.ClientSession() as session:
        async with session.post(proxy.url + "/v1/chat/completions", json={"model": "tiny"}) as response:
            first_byte_ns = time.monotonic_ns()
            assert response.status == 200
            told = json.loads(await response.read())
        assert 0 < (first_byte_ns - told["healthy_ns"]) / 1e9 < _GENEROUS_SECONDS
        assert told["connections"] == 1, "the first request goes out on the prober's connection"

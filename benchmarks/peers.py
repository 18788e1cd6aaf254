"""The proxies that are compared, and how each is started in front of one upstream. What is not installed is skipped."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Ground:
    """Where a comparison takes place: a scratch folder with the tools built in it, and the upstream's port."""

    folder: Path
    upstream: int


@dataclass(frozen=True, slots=True)
class Peer:
    """A proxy: its command for a port, or None where it is not installed."""

    name: str
    command: Callable[[Ground, int], list[str] | None]


def vllm_chill(*flags: str) -> Callable[[Ground, int], list[str] | None]:
    def command(ground: Ground, port: int) -> list[str]:
        # The whole product: the upstream is its own child, woken by the first request and leased by each.
        serve = [sys.executable, "-m", "vllm_chill", "serve", "--backend", "process", "--host", "127.0.0.1"]
        timing = ["--idle-timeout", "1h", "--stop-timeout", "1s", "--shutdown-delay", "0"]
        # An upload of 1 GiB is more than a model is sent.
        ground_only = ["--health-path", "/v1/models", "--state-dir", "", "--log-level", "error", "--max-body", "0"]
        engine = ["taskset", "-c", "1", str(ground.folder / "stub"), "{port}"]
        return [*serve, "--port", str(port), *timing, *ground_only, *flags, "--", *engine]

    return command


def _go(ground: Ground, port: int) -> list[str] | None:
    program = ground.folder / "go-reverse-proxy" / "proxy"
    return [str(program), str(port), str(ground.upstream)] if program.exists() else None


def _nginx(ground: Ground, port: int) -> list[str] | None:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        return None
    home = ground.folder / "nginx"
    home.mkdir(exist_ok=True)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path {home}/{kind};" for kind in kinds)
    (home / "nginx.conf").write_text(
        f"""daemon off; master_process off; worker_rlimit_nofile 40000; pid {home}/pid; error_log {home}/error error;
events {{ worker_connections 30000; }}
http {{
  access_log off; {temporary} keepalive_requests 100000000; keepalive_timeout 600s;
  upstream engine {{ server 127.0.0.1:{ground.upstream}; keepalive 12000; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096; client_max_body_size 0;
    location / {{
      proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 600s;
    }}
  }}
}}
"""
    )
    return [program, "-c", str(home / "nginx.conf")]


def _haproxy(ground: Ground, port: int) -> list[str] | None:
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if program is None:
        return None
    file = ground.folder / "haproxy.cfg"
    file.write_text(
        f"""global
  maxconn 9900
  nbthread 1
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  option http-no-delay
  http-reuse always
frontend front
  bind 127.0.0.1:{port}
  default_backend engine
backend engine
  server one 127.0.0.1:{ground.upstream} pool-max-conn -1
"""
    )
    return [program, "-f", str(file)]


def _vllm_router(ground: Ground, port: int) -> list[str] | None:
    program = shutil.which("vllm-router")
    if program is None:
        return None
    worker = f"http://127.0.0.1:{ground.upstream}"
    with socket.socket() as found:  # its own default may be taken, and it does not start then
        found.bind(("127.0.0.1", 0))
        metrics_port = str(found.getsockname()[1])
    flags = ["--policy", "round_robin", "--max-concurrent-requests", "100000", "--prometheus-port", metrics_port]
    return [program, "--host", "127.0.0.1", "--port", str(port), "--worker-urls", worker, *flags]


PEERS = (
    Peer("vllm-chill", vllm_chill("--fast-lane", "on")),
    Peer("vllm-chill, fast lane off", vllm_chill("--fast-lane", "off")),
    Peer("Go ReverseProxy", _go),
    Peer("nginx", _nginx),
    Peer("HAProxy", _haproxy),
    Peer("vllm-router", _vllm_router),
)

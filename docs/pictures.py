"""Draws the pictures of `vllm-chill top`, from a proxy that says the same every time.

Run it as `python docs/pictures.py`; it needs vllm-chill[top].
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from textual.widgets import Static

from vllm_chill.cli.asking import Proxy
from vllm_chill.cli.top.app import Targets, Top

PICTURES = Path(__file__).parent / "img"
_NOW = datetime(2026, 11, 22, 15, 0, tzinfo=UTC)
_URL = "http://chill.ai-apps"
_SIZES = {"top": (81, 16), "top-phone": (41, 30)}


def _target(name: str, phase: str, seconds: float, **more: Any) -> dict[str, Any]:
    numbers = {"waiting": 0, "in_flight": 0, "replicas": 0, "ready_replicas": 0}
    return {"target": f"ai-apps/{name}", "model": name, "phase": phase, "phase_seconds": seconds} | numbers | more


_LOADING = {"stage": "loading", "detail": None, "elapsed_seconds": 51.0, "eta_seconds": 24.0}
STATUS = {
    "version": "0.1.0",
    "draining": False,
    "default_model": "qwen3-coder-30b",
    "targets": [
        _target("qwen3-coder-30b", "ready", 2710, in_flight=14, replicas=3, ready_replicas=2),
        _target("llama-3.3-70b", "waking", 51, waiting=12, replicas=1, start=_LOADING),
        _target("qwen3-embedding", "ready", 760, replicas=1, ready_replicas=1, idle_seconds=95, sleeps_in_seconds=205),
        _target("mistral-small", "queued", 8, waiting=2, waits_for=["llama-3.3-70b"]),
        _target("gemma-3-27b", "asleep", 32500),
    ],
}
_DAY = {"day": "2026-11-22", "asleep_gpu_hours": 31.5, "saved": 78.75, "waited_seconds": 412, "wakes": 9}
_ANSWERS: dict[str, Any] = {
    "/proxy/status": STATUS,
    "/proxy/savings": {"currency": "USD", "models": [{"days": [_DAY]}]},
}


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        answer = _ANSWERS.get(self.path)
        body = json.dumps(answer or {"error": {"message": "there is nothing here"}}).encode()
        self.send_response(200 if answer else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name for it
        """Nobody wants to know."""


@contextmanager
def _proxy() -> Iterator[Proxy]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    proxy = Proxy(f"http://127.0.0.1:{server.server_address[1]}")
    proxy.url = _URL
    try:
        yield proxy
    finally:
        server.shutdown()


async def picture(size: tuple[int, int]) -> str:
    """The view at this size, as SVG that takes its font from the reader."""
    with _proxy() as proxy:
        app = Top(proxy, "name", lambda: _NOW)
        async with app.run_test(size=size) as pilot:
            while not app.query_one(Targets).option_count or "saved" not in str(app.query_one("#head", Static).content):
                await pilot.pause(0.05)
            await pilot.press("down", "down")
            await pilot.pause(0.2)
            svg = app.export_screenshot(title="vllm-chill top")
    return re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL).replace("Fira Code", "ui-monospace")


def main() -> None:
    """Write them."""
    for name, size in _SIZES.items():
        (PICTURES / f"{name}.svg").write_text(asyncio.run(picture(size)) + "\n")


if __name__ == "__main__":
    main()

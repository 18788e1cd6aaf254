"""An engine with a page of its own, as llama.cpp and others have one: a process that listens once it has loaded."""

from __future__ import annotations

import argparse
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PAGES = {
    "/health": ("text/plain", "ok"),
    "/v1/models": ("application/json", json.dumps({"object": "list", "data": [{"id": "tiny", "object": "model"}]})),
    "/favicon.ico": ("image/x-icon", ""),
    "/": ("text/html", "<!doctype html><title>engine</title><h1>The engine's own page</h1>"),
}


class Engine(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        found = PAGES.get(self.path.partition("?")[0])
        content_type, body = found or ("text/plain", "nothing here")
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--load-seconds", type=float, default=0.0)
    parser.add_argument("--unless", type=Path, default=None, help="a file: while it exists, the start fails")
    args = parser.parse_args()
    if args.unless is not None and args.unless.exists():
        sys.exit("no room for <b>tiny</b> & <script>document.title = 'broken into'</script>")
    time.sleep(args.load_seconds)
    ThreadingHTTPServer(("127.0.0.1", args.port), Engine).serve_forever()


if __name__ == "__main__":
    main()

"""The least that a process backend can run: after a moment it answers every GET, /health among them.

It prints its process id, and those of its workers, as `engine PID` and `worker PID`.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--load-seconds", type=float, default=0.02)
    parser.add_argument("--busy", type=int, default=0, help="so many answers are 503 first")
    parser.add_argument("--stubborn", action="store_true", help="ignore SIGTERM, workers too")
    parser.add_argument("--stop-seconds", type=float, default=0.0, help="how long it takes to end after SIGTERM")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--own-session", action="store_true", help="the workers leave the session")
    parser.add_argument("--unless", type=Path, default=None, help="a file: when it exists, the start fails")
    parser.add_argument("rest", nargs="*")
    args = parser.parse_args()
    say(f"arguments {args.rest}")
    if args.unless is not None and args.unless.exists():
        sys.exit("small engine: cannot start")
    signal.signal(signal.SIGTERM, signal.SIG_IGN if args.stubborn else lambda *_: _stop(args.stop_seconds))
    for _ in range(args.workers):
        _work(args.own_session)
    say(f"engine {os.getpid()}")
    time.sleep(args.load_seconds)
    _serve(args.port, args.busy)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _stop(seconds: float) -> None:
    time.sleep(seconds)
    say("stopped")
    sys.exit(0)


def _work(own_session: bool) -> None:
    pid = os.fork()
    if pid:
        say(f"worker {pid}")
        return
    if own_session:
        os.setsid()
    while True:
        time.sleep(60)


def _serve(port: int, busy: int) -> None:
    with socket.create_server(("127.0.0.1", port)) as server:
        while True:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                status = "503 Busy" if busy else "200 OK"
                busy = max(0, busy - 1)
                say(f"answered {status}")
                connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""kubectl, and what the control plane's node has no kubelet for: `port-forward svc/NAME LOCAL:REMOTE`.

kubectl.py [-n NAMESPACE] port-forward svc/NAME LOCAL:REMOTE    passes connections on to the Service's address
kubectl.py ...                                                  is KUBECTL, a kubectl
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from asyncio import StreamReader, StreamWriter

KUBECTL = os.environ["KUBECTL"]


async def forward(namespace: str, service: str, local: int, remote: int) -> None:
    asked = (KUBECTL, "-n", namespace, "get", service, "-o", "jsonpath={.spec.clusterIP}")
    address = subprocess.run(asked, check=True, capture_output=True, text=True).stdout  # noqa: ASYNC221 - at its start

    async def passed(reader: StreamReader, writer: StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        try:
            there = await asyncio.open_connection(address, remote)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(passed(reader, there[1]), passed(there[0], writer))

    server = await asyncio.start_server(serve, "127.0.0.1", local)
    await server.serve_forever()


def main(words: list[str]) -> None:
    if "port-forward" not in words:
        os.execv(KUBECTL, ["kubectl", *words])
    namespace = words[words.index("-n") + 1] if "-n" in words else "default"
    service, ports = words[words.index("port-forward") + 1 :][:2]
    local, _, remote = ports.partition(":")
    asyncio.run(forward(namespace, service, int(local), int(remote)))


if __name__ == "__main__":
    main(sys.argv[1:])

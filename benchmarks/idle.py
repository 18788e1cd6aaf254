"""What `vllm-chill serve` costs that nobody uses: its start, and the memory that it idles with.

    python benchmarks/idle.py [--python FILE | --base python3.13] [--rounds 3] [--seconds 30] [--kubeconfig]

It serves a Deployment of a real API server, which is started on this machine (benchmarks/api_server.py), as a pod does:
with a service account where a pod has it. Probes ask it as a kubelet does. With `--base`, an environment is made as the
Dockerfile makes the image's, of what deploy/requirements.txt names and with the image's variables, on that Python; else
it is that of `--python`, by default the one that runs this.

The start is from exec to the line that says that connections are accepted. What is resident is told in MB of 2^20
bytes, as a whole (VmRSS) and by mapping; the proportional set size shares pages of files with who else maps them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(_ROOT)]

from benchmarks.api_server import ApiServer, api_server, free_ports, missing  # noqa: E402 - not an installed package
from tests.docker.dockerfile import stages_of  # noqa: E402

GOAL_MB = 50
GOAL_SECONDS = 1.0
_PROBE_SECONDS = 5.0
_NAMESPACE = "ai-apps"
_ACCOUNT = "/var/run/secrets/kubernetes.io"
_AS_A_POD = f"""
mount -t tmpfs none /run && mkdir -p {_ACCOUNT} && cp -r "$1" {_ACCOUNT}/serviceaccount && shift && exec "$@"
"""
_DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "vllm"},
    "spec": {
        "replicas": 0,
        "selector": {"matchLabels": {"app": "vllm"}},
        "template": {
            "metadata": {"labels": {"app": "vllm"}},
            "spec": {"containers": [{"name": "vllm", "image": "vllm/vllm-openai:v0.11.0"}]},
        },
    },
}


@dataclass(frozen=True)
class Environment:
    """A Python with vllm-chill, and the variables that it is run with."""

    python: str
    variables: Mapping[str, str]


@dataclass(frozen=True)
class Idle:
    """One run: memory in MB, `parts` of what is resident by what it is mapped from."""

    start_seconds: float
    resident: float
    proportional: float
    parts: Mapping[str, float]


def as_the_image(base: str, folder: Path) -> Environment:
    """An environment made as the Dockerfile makes it, on a Python of this machine, with the image's variables."""
    python, compiled = folder / "bin" / "python", folder / "compiled"
    pip = (base, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile")
    pins = str(_ROOT / "deploy" / "requirements.txt")
    for command in (
        (base, "-m", "venv", "--without-pip", str(folder)),
        (*pip, "--only-binary", ":all:", "--require-hashes", "--requirement", pins),
        (*pip, "--no-deps", str(_ROOT)),
        ("env", f"PYTHONPYCACHEPREFIX={compiled}", str(python), str(_ROOT / "deploy" / "compile.py")),
    ):
        subprocess.run(command, check=True)
    [image] = stages_of((_ROOT / "Dockerfile").read_text())[-1].all_of("ENV")
    variables = {name: value for name, value in image.pairs().items() if name.startswith(("PYTHON", "FROZENLIST"))}
    return Environment(str(python), {**variables, "PYTHONPYCACHEPREFIX": str(compiled)})


async def prepare(server: ApiServer, folder: Path) -> Path:
    """What the proxy looks at; a kubeconfig of the server."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _NAMESPACE}}
    await server.api.call("POST", "/api/v1/namespaces", body=namespace)
    await server.api.call("POST", f"/apis/apps/v1/namespaces/{_NAMESPACE}/deployments", body=_DEPLOYMENT)
    host, port = server.environ["KUBERNETES_SERVICE_HOST"], server.environ["KUBERNETES_SERVICE_PORT"]
    cluster = {"server": f"https://{host}:{port}", "certificate-authority": str(server.account / "ca.crt")}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"token": (server.account / "token").read_text()}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    file = folder / "kubeconfig"
    file.write_text(json.dumps(config))
    return file


async def idle(environment: Environment, server: ApiServer, kubeconfig: Path | None, seconds: float) -> Idle:
    """Start it, let it idle, and look at it."""
    port = free_ports(1)[0]
    serve = [
        *(environment.python, "-m", "vllm_chill", "serve", "--namespace", _NAMESPACE, "--log-format", "json"),
        *("--host", "127.0.0.1", "--port", str(port), "--shutdown-delay", "0"),
    ]
    variables = {"PATH": os.environ["PATH"], "HOME": "/nowhere", **environment.variables}
    if kubeconfig is None:
        serve = ["unshare", "-rm", "sh", "-c", _AS_A_POD, "sh", str(server.account), *serve]
        variables |= server.environ
    else:
        serve += ["--kubeconfig", str(kubeconfig)]
    begun = time.monotonic()
    process = await asyncio.create_subprocess_exec(*serve, env=variables, stderr=PIPE, cwd="/")
    try:
        assert process.stderr is not None
        await _logged(process.stderr, "listening")
        start = time.monotonic() - begun
        await _logged(process.stderr, "found asleep")
        async with _drained(process.stderr):
            await _probe(port, seconds)
            return Idle(start, *_memory(process.pid))
    finally:
        process.terminate()
        await process.wait()


async def _logged(lines: asyncio.StreamReader, event: str) -> None:
    async with asyncio.timeout(60):
        async for line in lines:
            with contextlib.suppress(ValueError):
                if json.loads(line)["event"] == event:
                    return
                continue
            sys.stderr.write(line.decode())
    raise SystemExit("the proxy ended by itself")


@contextlib.asynccontextmanager
async def _drained(lines: asyncio.StreamReader) -> AsyncIterator[None]:
    reading = asyncio.create_task(lines.read())
    try:
        yield
    finally:
        reading.cancel()


async def _probe(port: int, seconds: float) -> None:
    """Ask it what a kubelet asks, for so long."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while loop.time() < end:
        for path in ("/health", "/readyz"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writer.close()
        await asyncio.sleep(min(_PROBE_SECONDS, max(end - loop.time(), 0)))


def _memory(pid: int) -> tuple[float, float, dict[str, float]]:
    """What is resident, the proportional set size, and what is resident by what it is mapped from."""
    status = Path(f"/proc/{pid}/status").read_text()
    resident = int(re.findall(r"VmRSS:\s+(\d+)", status)[0])
    proportional, parts, name = 0, Counter[str](), ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if found := re.match(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+ *(.*)", line):
            name = found[1]
            continue
        key, _, value = line.partition(":")
        if key == "Pss":
            proportional += int(value.split()[0])
        elif key == "Rss":
            parts[_part(name)] += int(value.split()[0])
    return resident / 1024, proportional / 1024, {part: kilobytes / 1024 for part, kilobytes in parts.items()}


def _part(name: str) -> str:
    """What a mapping is called in the table."""
    if not name:
        return "Python's objects of up to 512 bytes, and other anonymous memory"
    if name == "[heap]":
        return "malloc: larger objects, OpenSSL"
    file = Path(name).name
    if found := re.match(r"(libpython|(?:libcrypto|libssl|libc|libm|libstdc\+\+)\b)", file):
        return found[1]
    if "/uvloop/" in name:
        return "uvloop"
    if name.endswith(".so") and "/lib-dynload/" in name:
        return "Python's own extensions"
    return "other packages' extensions" if "site-packages" in name else "all else"


async def measure(options: argparse.Namespace) -> list[Idle]:
    """All rounds, in one environment and against one API server."""
    with tempfile.TemporaryDirectory(prefix="idle-") as made:
        folder = Path(made)
        environment = Environment(options.python, {})
        if options.base:
            environment = as_the_image(options.base, folder / "venv")
        async with api_server() as server:
            kubeconfig = await prepare(server, folder)
            told = kubeconfig if options.kubeconfig else None
            return [await idle(environment, server, told, options.seconds) for _ in range(options.rounds)]


def tell(runs: list[Idle]) -> None:
    """The medians, and what the memory is, of the median run."""
    typical = sorted(runs, key=lambda run: run.resident)[len(runs) // 2]
    start = statistics.median(run.start_seconds for run in runs)
    print(f"start to listening   {start:5.2f} s    ({', '.join(f'{run.start_seconds:.2f}' for run in runs)})")
    print(f"resident (VmRSS)     {typical.resident:5.1f} MB   ({', '.join(f'{run.resident:.1f}' for run in runs)})")
    print(f"proportional (Pss)   {typical.proportional:5.1f} MB")
    for part, size in sorted(typical.parts.items(), key=lambda item: -item[1]):
        print(f"  {size:5.1f}  {part}")
    print(f"the goal is at most {GOAL_MB} MB resident: {'met' if typical.resident <= GOAL_MB else 'MISSED'}")
    print(f"the goal is at most {GOAL_SECONDS:g} s: {'met' if start <= GOAL_SECONDS else 'MISSED'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="a Python whose environment has vllm-chill")
    parser.add_argument("--base", help="a Python to make an environment on as the image's is made")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0, help="for how long it idles")
    parser.add_argument("--kubeconfig", action="store_true", help="with a kubeconfig, as outside of a cluster")
    options = parser.parse_args()
    if (lacking := missing()) is not None:
        raise SystemExit(lacking)
    tell(asyncio.run(measure(options)))


if __name__ == "__main__":
    main()

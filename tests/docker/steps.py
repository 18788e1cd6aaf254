"""Carries out the Dockerfile's steps without a Docker engine, and looks at what comes of it.

Each stage is a folder with this machine's system and a Python of the base image's version put into it by bind
mounts, so that every RUN is run as it stands, with the paths that it names. What is thereby not tested is the base
image itself. It must be root in a mount namespace of its own, and must not remove its folder, in which this
machine's own folders are seen: tests/docker/run-steps sees to both. It imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.docker.dockerfile import Context, Instruction, Stage, stages_of

ROOT = Path(__file__).parents[2]
_SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc")
_PASSED_ON = ("PIP_", "SSL_CERT", "REQUESTS_CA", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_START_SECONDS = 30.0
_VERSION = "9.8.7"
_NOTHING = "nothing"
_SHELLS = ("sh", "bash", "dash")
_IDLE_SECONDS = 5.0
_IDLE_MB = 50
_ACCOUNT = "var/run/secrets/kubernetes.io/serviceaccount"
_ROOTS_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Broken(Exception):
    """A step failed, or what came of the steps is not what it must be."""


def say(text: str) -> None:
    """Tell of a step."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def check(holds: bool, law: str, seen: object = "") -> None:
    """Say what holds, or end with what was seen instead."""
    if not holds:
        raise Broken(f"not so: {law}{f'; seen: {seen}' if seen != '' else ''}")
    say(f"  ok: {law}")


@dataclass(slots=True)
class Tree:
    """The file system of one stage, and what its instructions have set."""

    root: Path
    variables: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0:0"

    def at(self, path: str) -> Path:
        """Where a path of the stage is on this machine."""
        return self.root / path.lstrip("/")

    def environment(self) -> dict[str, str]:
        """What a process of the stage has: its own variables, and how this machine reaches a package index."""
        passed = {name: value for name, value in os.environ.items() if name.upper().startswith(_PASSED_ON)}
        passed.pop("PIP_FIND_LINKS", None)  # folders of this machine
        # The base image's Python finds its library by the linker's cache, which here is another system's.
        return passed | {"HOME": "/", "PIP_QUIET": "1", "LD_LIBRARY_PATH": "/usr/local/lib"} | self.variables

    def run(self, command: list[str], arguments: Mapping[str, str] | None = None) -> None:
        """Run a RUN's command. The values of ARGs are in its environment, where an ENV does not say otherwise."""
        into = [program("chroot"), str(self.root)]
        variables = {**(arguments or {}), **self.environment()}
        subprocess.run([*into, *command], env=variables, check=True, stdin=subprocess.DEVNULL)

    def start(self, arguments: list[str]) -> subprocess.Popen[str]:
        """Start a process as the image's user: without root, without capabilities."""
        user, _, group = self.user.partition(":")
        isolated = [
            program("unshare"),
            "--user",
            f"--map-user={user}",
            f"--map-group={group}",
            "--root",
            str(self.root),
        ]
        return subprocess.Popen(
            [*isolated, "--wd", self.folder, *arguments],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def result(self, arguments: list[str]) -> tuple[int, str]:
        """The exit status and the output of a process."""
        with self.start(arguments) as process:
            output, _ = process.communicate(timeout=60)
        return process.returncode, output


def program(name: str) -> str:
    """One of this machine's programs, whatever PATH it will be given."""
    return shutil.which(name, path=_ROOTS_PATH) or name


def mount(*arguments: str | Path) -> None:
    subprocess.run([program("mount"), *map(str, arguments)], check=True)


def bind(source: Path, target: Path) -> None:
    """Show a folder of this machine in a tree, to be read only."""
    mount("--rbind", source, target)
    mount("-o", "remount,bind,ro", target)


def base_python(image: str) -> Path:
    """The prefix of a Python of the image's version here; else of the Python that runs this."""
    version = image.partition(":")[2].partition("-")[0]
    probe = "import pip, sys; print(sys.base_prefix)"
    candidates: list[str | Path] = [
        f"python{version}",
        *sorted(Path.home().glob(f".pyenv/versions/{version}*/bin/python{version}")),
    ]
    for candidate in candidates:
        with contextlib.suppress(OSError):
            found = subprocess.run([candidate, "-c", probe], capture_output=True, text=True, check=False)
            if found.returncode == 0:
                return Path(found.stdout.strip())
    say(f"  (there is no Python {version} with pip here: {sys.version.split()[0]} stands in for it)")
    return Path(sys.base_prefix)


def furnish(tree: Tree, image: str) -> None:
    """Put a system and a Python into an empty tree, in the place of a base image."""
    prefix = base_python(image)
    say(f"  {image}: this machine's system, with the Python of {prefix}")
    for name in _SYSTEM:
        system = Path("/", name)
        if system.is_symlink():
            tree.at(name).symlink_to(system.readlink())
        elif system.is_dir():
            tree.at(name).mkdir()
            bind(system, tree.at(name))
    for name in ("proc", "dev"):
        tree.at(name).mkdir()
        mount("--rbind", f"/{name}", tree.at(name))
    tree.at("tmp").mkdir(mode=0o777)
    if prefix == Path("/usr"):
        mount("-t", "tmpfs", "tmpfs", tree.at("usr/local"))
        tree.at("usr/local/bin").mkdir()
        tree.at("usr/local/bin/python").symlink_to(Path(sys.executable).resolve())
    else:
        bind(prefix, tree.at("usr/local"))
    tree.variables["PATH"] = "/usr/local/bin:/usr/bin:/bin"


def copy(instruction: Instruction, tree: Tree, context: Context, trees: dict[str, Tree]) -> None:
    """Carry out a COPY. A folder's contents are copied, not the folder; a target that ends in / is a folder."""
    *sources, target = instruction.words(tree.variables)
    origin = instruction.option("from")
    for source in sources:
        if origin is not None:
            shutil.copytree(trees[origin].at(source), tree.at(target), symlinks=True, dirs_exist_ok=True)
            continue
        files = context.files(source)
        if not files:
            raise Broken(f"Dockerfile:{instruction.line}: {source} is not in the context (see .dockerignore)")
        for file in files:
            inside = Path(file).relative_to(source) if (context.root / source).is_dir() else Path(file).name
            to = tree.at(target) / inside if target.endswith("/") or file != source else tree.at(target)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(context.root / file, to)


def carry_out(stage: Stage, tree: Tree, context: Context, trees: dict[str, Tree]) -> None:
    """Carry out a stage's instructions in its tree."""
    arguments: dict[str, str] = {}
    for instruction in stage.instructions:
        say(f"  {instruction.name} {instruction.value}")
        match instruction.name:
            case "ARG":
                arguments |= instruction.pairs(tree.variables)
                arguments |= {name: _VERSION for name in arguments if name == "VERSION"}
            case "ENV":
                tree.variables |= instruction.pairs(arguments | tree.variables)
            case "WORKDIR":
                tree.folder = instruction.value
                tree.at(tree.folder).mkdir(parents=True, exist_ok=True)
            case "USER":
                tree.user = instruction.value
            case "COPY":
                copy(instruction, tree, context, trees)
            case "RUN":
                began = time.monotonic()
                exact = instruction.value.startswith("[")
                try:
                    tree.run(instruction.words() if exact else ["/bin/sh", "-c", instruction.value], arguments)
                except subprocess.CalledProcessError as error:
                    raise Broken(f"Dockerfile:{instruction.line}: exit status {error.returncode}") from error
                say(f"    ({time.monotonic() - began:.1f} s)")
            case _:
                pass


def check_wheels(tree: Tree, image: str) -> None:
    """Hold the dependencies to having wheels for the platform that this machine is not: nothing is compiled there."""
    other = "x86_64" if os.uname().machine == "aarch64" else "aarch64"
    accepted = [f"--platform=manylinux_2_{minor}_{other}" for minor in (28, 17)] + [f"--platform=manylinux2014_{other}"]
    version = f"--python-version={image.partition(':')[2].partition('-')[0]}"
    pretended = ["--dry-run", "--ignore-installed", "--no-deps", "--target=/tmp/other", version, *accepted]
    from_file = ["--no-cache-dir", "--only-binary=:all:", "--require-hashes", "--requirement=/build/requirements.txt"]
    try:
        tree.run(["python", "-m", "pip", "install", *pretended, *from_file])
    except subprocess.CalledProcessError as error:
        raise Broken(f"a dependency has no wheel for {other}") from error
    say(f"  ok: every dependency has a wheel for {other} too")


def build(work: Path) -> tuple[Stage, Tree]:
    """Carry out all stages; the last one is the image."""
    context = Context(ROOT, (ROOT / ".dockerignore").read_text())
    trees: dict[str, Tree] = {}
    images: dict[str, str] = {}
    for stage in stages_of((ROOT / "Dockerfile").read_text()):
        say(f"FROM {stage.base} AS {stage.name}")
        tree = trees[stage.name] = Tree(work / stage.name)
        tree.root.mkdir()
        images[stage.name] = images.get(stage.base, stage.base)
        furnish(tree, images[stage.name])
        if stage.base in trees and trees[stage.base].variables.keys() != {"PATH"}:
            raise Broken(f"{stage.name} builds on {stage.base}, which has more than a FROM: not known here")
        carry_out(stage, tree, context, trees)
        if tree.at("build/requirements.txt").exists():
            check_wheels(tree, images[stage.name])
    return stage, trees[stage.name]


def inspect(image: Stage, tree: Tree) -> None:
    """Hold the image to what the deployment asks of it: another user, and a file system that is read-only."""
    say("The image:")
    size = sum(path.lstat().st_size for path in tree.at("opt").rglob("*")) / 2**20
    say(f"  {size:.0f} MiB on top of the base")
    tree.at(_NOTHING).touch(mode=0o444)
    mount_account(tree)
    mount("--rbind", tree.root, tree.root)
    mount("-o", "remount,bind,ro", tree.root)
    entry, command = (list(word.words()) for word in (image.last("ENTRYPOINT"), image.last("CMD")) if word)

    take_shells(tree)
    code, output = tree.result(["python", "-c", "import os; os.system('echo there is one')"])
    check("there is one" not in output, "no shell can be started in it from here on", output)
    code, output = tree.result([*entry, "version"])
    check(
        (code, output.split()) == (0, ["vllm-chill", _VERSION]),
        f"it starts, as what it was built: {output.strip()}",
        output,
    )
    code, output = tree.result(["python", "-c", "print(open('/proc/self/status').read())"])
    check("CapEff:\t0000000000000000\n" in output, "it has no capability", output)
    code, output = tree.result(["python", "-c", "import os; print(os.getuid(), os.getgid()); open('/opt/x', 'w')"])
    check(output.startswith(tree.user.replace(":", " ")), f"it is user {tree.user}", output)
    check("Read-only file system" in output, "its file system is read-only", output)
    code, output = tree.result(["python", "-c", "import pip"])
    check("No module named 'pip'" in output, "its environment has no pip", output)
    code, output = tree.result(["python", "-v", "-c", "import vllm_chill.app"])
    built = [line for line in output.splitlines() if "code object from '/" in line and ".py'" in line]
    check(code == 0 and not built, "every module that it imports is compiled", built[:1] or output[-500:])
    code, output = tree.result([*entry, *command])
    check(
        code == 2 and "Traceback" not in output and len(output.strip().splitlines()) <= 4,
        "without a cluster it ends with status 2, and says why",
        output,
    )
    for line in output.strip().splitlines():
        say(f"      {line}")
    serve_and_stop(entry, image, tree)
    idle(entry, tree)


def take_shells(tree: Tree) -> None:
    """Put files that cannot be run in the place of the shells: what needs one fails from here on."""
    for folder in ("bin", "usr/bin"):
        for name in _SHELLS:
            if tree.at(folder).is_dir() and (shell := tree.at(folder) / name).exists():
                mount("--bind", tree.at(_NOTHING), shell)


def serve_and_stop(entry: list[str], image: Stage, tree: Tree) -> None:
    """Run the demo in the image, have an answer from it, and stop it as the engine would."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tree.start([*entry, "demo", "--port", str(port), "--load-seconds", "0"]) as process:
        try:
            wait_for(port, process)
            with connected(port) as connection:
                hello = b'{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}'
                connection.request("POST", "/v1/chat/completions", hello, {"Content-Type": "application/json"})
                status = connection.getresponse().status
            check(status == 200, "it wakes an engine and passes its answer on", status)
            memory = Path(f"/proc/{process.pid}/status").read_text().partition("VmRSS:")[2].split()[0]
            say(f"      the proxy has {int(memory) / 1024:.0f} MiB in memory")
            stop = image.last("STOPSIGNAL")
            process.send_signal(signal.Signals[stop.value] if stop else signal.SIGTERM)
            output, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    check(process.returncode == 0, "it ends with status 0 when told to stop", output)


def mount_account(tree: Tree) -> None:
    """What every pod has of its service account; the authority is any that this machine trusts."""
    folder = tree.at(_ACCOUNT)
    folder.mkdir(parents=True)
    [authority, *_] = ssl.create_default_context().get_ca_certs(binary_form=True)
    (folder / "ca.crt").write_text(ssl.DER_cert_to_PEM_cert(authority))
    (folder / "token").write_text("token")


def idle(entry: list[str], tree: Tree) -> None:
    """Serve a Deployment as a pod does, though no API server answers, and look at the memory that it takes."""
    with socket.create_server(("127.0.0.1", 0)) as free, socket.create_server(("127.0.0.1", 0)) as nobody:
        port, api = free.getsockname()[1], nobody.getsockname()[1]
    tree.variables |= {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(api)}
    serve = [*entry, "serve", "--host", "127.0.0.1", "--port", str(port), "--shutdown-delay", "0"]
    with tree.start(serve) as process:
        try:
            wait_for(port, process)
            time.sleep(_IDLE_SECONDS)
            status = Path(f"/proc/{process.pid}/status").read_text()
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
        finally:
            process.kill()
    memory = int(status.partition("VmRSS:")[2].split()[0]) / 1024
    check(memory <= _IDLE_MB, f"a proxy that idles has {memory:.1f} MB in memory, {_IDLE_MB} at the most", memory)


@contextlib.contextmanager
def connected(port: int) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_START_SECONDS)
    try:
        yield connection
    finally:
        connection.close()


def wait_for(port: int, process: subprocess.Popen[str]) -> None:
    """Wait until somebody listens."""
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    process.kill()
    raise Broken(f"nobody listened on port {port}: {process.communicate()[0]}")


def main() -> int:
    """Build in the empty folder that is named, and inspect; say what broke."""
    try:
        inspect(*build(Path(sys.argv[1])))
    except Broken as error:
        sys.stdout.flush()
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

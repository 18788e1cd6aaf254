"""The checks of one machine: the command, its port, the GPUs, and the files that the settings name. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vllm_chill.core.doctor.finding import Check, Finding, Unseen, failure, ok, warning
from vllm_chill.core.gpu import Gpu
from vllm_chill.core.phrases import listed

_PORT = "{port}"
_FEW_FILES = 4096
_USED_PART = 0.1


@dataclass(frozen=True, slots=True)
class Program:
    """A command that is to be run, `model` being which one's ("" where there is but one). `found`: its program is there
    and may be run. `port` is the one that it is known to listen on, None for any that is free.
    """

    argv: tuple[str, ...]
    found: bool = True
    model: str = ""
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Listening:
    """An address that is to be listened on, by the flag that says so; `trouble` is why it cannot be, "" for nothing.
    `chill`: who listens there is a vllm-chill.
    """

    flag: str
    host: str
    port: int
    trouble: str = ""
    chill: bool = False


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file that a setting names: what is wrong with it, and who may read it (the bits of its mode). `secret`: what
    is in it is for nobody else.
    """

    flag: str
    path: str
    trouble: str = ""
    mode: int = 0o600
    secret: bool = False


@dataclass(frozen=True, slots=True)
class Running:
    """A process of an engine that no vllm-chill has started."""

    pid: int
    words: str


@dataclass(frozen=True, slots=True)
class Machine:
    """What is seen of this machine. `files` is how many files may be open at a time, None for any number."""

    programs: tuple[Program, ...] = ()
    models_trouble: str = ""
    listening: tuple[Listening, ...] = ()
    gpus: tuple[Gpu, ...] | Unseen = ()
    engines: tuple[Running, ...] = ()
    files: int | None = None
    uvloop: bool = True
    wants_uvloop: bool = False
    state_trouble: str = ""
    named: tuple[NamedFile, ...] = ()
    open_host: str = ""
    """The address listened on, if everybody who reaches it may use and operate the proxy."""


def find_command(machine: Machine) -> Iterator[Finding]:
    """Whether what is to be run is there, and is told its port."""
    if machine.models_trouble:
        said, _, advice = machine.models_trouble.splitlines()[0].partition("; ")
        yield failure(said, advice or "correct the file; docs/models.md has every field")
        return
    for program in machine.programs:
        of = f" of the model {program.model}" if program.model else ""
        name = program.argv[0]
        if not program.found:
            yield failure(
                f"the command{of} cannot be run: there is no program {name}" + ("" if "/" in name else " in PATH"),
                "install it, or give its whole path",
                "pip install vllm" if name == "vllm" else f"command -v {name}",
            )
        if program.port is None and not any(_PORT in word for word in program.argv):
            yield failure(
                f"the command{of} does not say where its port goes: nobody knows where to ask it",
                "write {port} there, or give the port that it listens on with --target-port",
                f"vllm-chill serve --backend process -- {' '.join(program.argv)} --port {{port}}",
            )
        elif program.found:
            yield ok(f"{name}{of} is there")


def find_ports(machine: Machine) -> Iterator[Finding]:
    """Whether the addresses are free that are to be listened on."""
    for one in machine.listening:
        where = f"{one.host} port {one.port}"
        if one.chill:
            yield ok(f"{where} is that of a vllm-chill which runs")
        elif one.trouble:
            yield failure(
                f"{where} ({one.flag}) cannot be listened on: {one.trouble}",
                f"give another {one.flag}, or end who has it",
                f"ss -ltnp 'sport = :{one.port}'",
            )
        else:
            yield ok(f"{where} is free")


def find_gpus(machine: Machine) -> Iterator[Finding]:
    """Whether this process sees GPUs."""
    if isinstance(machine.gpus, Unseen):
        remedy = "without them /proxy/stats has no figures; `nvidia-smi` tells whether the driver works"
        yield warning(machine.gpus.why, remedy, "pip install 'vllm-chill[gpu]' && nvidia-smi")
        return
    names = [gpu.name or "a GPU" for gpu in machine.gpus]
    yield ok(f"NVML sees {listed(names, 4)}")


def find_engines(machine: Machine) -> Iterator[Finding]:
    """Whether somebody else has the GPUs."""
    for one in machine.engines[:3]:
        yield warning(
            f"process {one.pid} is an engine that no vllm-chill has started, and may have the GPU: {one.words}",
            "end it, and let vllm-chill start it when it is asked for",
            f"kill {one.pid}",
        )
    if machine.engines or isinstance(machine.gpus, Unseen):
        return
    for gpu in machine.gpus:
        used, total = gpu.memory_used_mb, gpu.memory_total_mb
        if used is not None and total and used > _USED_PART * total:
            yield warning(
                f"{used >> 10} of {total >> 10} GiB of GPU {gpu.index} are in use: vLLM wants nine tenths of it",
                "see whose they are, and end it or give vLLM a smaller --gpu-memory-utilization",
                "nvidia-smi --query-compute-apps=pid,process_name,used_memory --format=csv",
            )
            return
    yield ok("no other engine runs here")


def find_limits(machine: Machine) -> Iterator[Finding]:
    """Whether as many files may be open as callers need."""
    if machine.files is None or machine.files >= _FEW_FILES:
        yield ok("files enough may be open at a time")
    else:
        yield warning(
            f"only {machine.files} files may be open at a time, and each request has two: {machine.files // 2} callers "
            "are the most",
            "raise the hard limit, as LimitNOFILE= of a systemd unit does",
            "ulimit -Hn 65536",
        )


def find_event_loop(machine: Machine) -> Iterator[Finding]:
    """Whether uvloop is there."""
    if machine.uvloop:
        yield ok("uvloop is installed")
    elif machine.wants_uvloop:
        yield failure(
            "--event-loop uvloop is given, and uvloop is not installed",
            "install it, or use --event-loop auto",
            "pip install 'vllm-chill[uvloop]'",
        )
    else:
        yield ok("uvloop is not installed; with it a request costs less: pip install 'vllm-chill[uvloop]'")


def find_state(machine: Machine) -> Iterator[Finding]:
    """Whether what is learned of starts can be kept."""
    if machine.state_trouble:
        yield warning(
            f"what is learned of starts cannot be kept: {machine.state_trouble}",
            'give a --state-dir that can be written, or --state-dir "" to keep nothing',
        )


def find_files(machine: Machine) -> Iterator[Finding]:
    """Whether the files can be read that settings name, and secrets by nobody else."""
    for one in machine.named:
        if one.trouble:
            yield failure(
                one.trouble.splitlines()[0], f"correct {one.flag}, or the file; `vllm-chill keys new NAME` makes a key"
                if one.flag == "--api-keys-file" else f"correct {one.flag}, or the file", f"ls -l {one.path}",
            )  # fmt: skip
        elif one.mode & 0o022:
            yield failure(
                f"everybody, or a group, may write {one.path} ({one.flag}), and so become whoever they like",
                "let nobody else write it",
                f"chmod 600 {one.path}",
            )
        elif one.secret and one.mode & 0o004:
            yield warning(
                f"everybody may read {one.path} ({one.flag})", "let nobody else read it", f"chmod 600 {one.path}"
            )
        else:
            yield ok(f"{one.path} ({one.flag}) can be read")


def find_openness(machine: Machine) -> Iterator[Finding]:
    """Whether everybody in the network may use and operate it."""
    if machine.open_host:
        yield warning(
            f"it listens on {machine.open_host} without keys: who reaches this machine may use and stop the models",
            "listen for this machine alone, or ask for keys (docs/access.md)",
            "vllm-chill serve --host 127.0.0.1 …",
        )


COMMAND = Check(
    "command",
    "that the command's program is there, and that `{port}` or `--target-port` says its port; those of `--models FILE`",
    "each wake fails",
    "install it; write `{port}`",
    find_command,
)
PORTS = Check(
    "ports",
    "that `--host` and `--port`, `--admin-port` and a given `--target-port` are free",
    "the proxy, or the engine, does not start",
    "another port, or end who has it",
    find_ports,
)
GPUS = Check(
    "gpus",
    "the GPUs that NVML shows this process",
    "`/proxy/stats` has no figures; vLLM may not see a GPU either",
    "the driver, and `vllm-chill[gpu]`",
    find_gpus,
)
ENGINES = Check(
    "other-engines",
    "engines that no vllm-chill has started, and GPU memory that is in use already",
    "a start ends for want of GPU memory",
    "end them",
    find_engines,
)
LIMITS = Check(
    "file-limit",
    "how many files may be open at a time (`ulimit -Hn`)",
    "callers are turned away although the model has room",
    "a higher limit",
    find_limits,
)
EVENT_LOOP = Check(
    "event-loop",
    "whether uvloop is installed",
    "a request costs more; with `--event-loop uvloop` the proxy does not start",
    "`vllm-chill[uvloop]`",
    find_event_loop,
)
STATE = Check(
    "state-dir",
    "that `--state-dir` can be written",
    "how long starts take is forgotten with each restart",
    "another folder",
    find_state,
)
FILES = Check(
    "files",
    "the files that settings name (keys, certificates): that they can be read, by nobody else, and are whole",
    "the proxy does not start; others read keys, or make themselves some",
    "`chmod 600`",
    find_files,
)
OPENNESS = Check(
    "open-door",
    "an address that other machines reach, without keys",
    "everybody in the network may use the models, and put them to sleep",
    "`--host 127.0.0.1`, or `--api-keys-file` and `--admin-auth keys`",
    find_openness,
)

OF_A_MACHINE: Sequence[Check] = (COMMAND, PORTS, GPUS, ENGINES, LIMITS, EVENT_LOOP, STATE, FILES, OPENNESS)
OF_BOTH: Sequence[Check] = (FILES,)
"""What is looked at where a proxy of a cluster would run, too."""

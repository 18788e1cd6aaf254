"""Every setting, declared once: its flag, its variable, its default with the reason, and what it accepts.

The rule: a flag wins over the environment, an empty variable is unset, and a value that cannot be used becomes
one sentence that names the setting, the value and what is accepted. The command line and the reference page
are made from these fields.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal

import durationpy
from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from vllm_chill.core.balancing import LOAD_FACTOR
from vllm_chill.core.routing import parse_wake_paths
from vllm_chill.core.switching import parse_gpu_budget
from vllm_chill.errors import SettingError
from vllm_chill.telemetry.logs import LogFormat, LogLevel

_LONGEST = timedelta(days=365)


def _duration(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    try:
        duration: timedelta = durationpy.from_str(str(value).strip())
    except (ValueError, OverflowError):
        raise ValueError("not a duration") from None
    return duration


def _above_zero(value: timedelta) -> timedelta:
    if not timedelta(0) < value <= _LONGEST:
        raise ValueError("out of range")
    return value


def _zero_or_more(value: timedelta) -> timedelta:
    if not timedelta(0) <= value <= _LONGEST:
        raise ValueError("out of range")
    return value


_BYTES: TypeAdapter[ByteSize] = TypeAdapter(ByteSize)


def _size(value: object) -> int:
    text = str(value).strip()
    return int(_BYTES.validate_python(f"{text}B" if re.search(r"[kKMGT]i$", text) else text))


def _matches(pattern: str) -> AfterValidator:
    compiled = re.compile(pattern)

    def check(value: str) -> str:
        if not compiled.fullmatch(value):
            raise ValueError("does not match")
        return value

    return AfterValidator(check)


def _wake_paths(value: str) -> str:
    parse_wake_paths(value)
    return value


def _gpu_budget(value: str) -> str:
    parse_gpu_budget(value)
    return value


_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"

PositiveDuration = Annotated[timedelta, BeforeValidator(_duration), AfterValidator(_above_zero)]
Duration = Annotated[timedelta, BeforeValidator(_duration), AfterValidator(_zero_or_more)]
Size = Annotated[int, BeforeValidator(_size), Field(ge=0, le=1 << 40)]
Label = Annotated[str, _matches(_LABEL)]
Subdomain = Annotated[str, Field(max_length=253), _matches(rf"{_LABEL}(?:\.{_LABEL})*")]
_NAME_OR_IPV4 = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9.])?"
_IPV6 = r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*"
Host = Annotated[str, Field(max_length=253), _matches(rf"{_NAME_OR_IPV4}|{_IPV6}")]
Url = Annotated[str, _matches(r"https?://[!-~]+")]
UrlPath = Annotated[str, _matches(r"/[!-~]*")]
WakePaths = Annotated[str, AfterValidator(_wake_paths)]
GpuBudget = Annotated[str, AfterValidator(_gpu_budget)]

_HEADER = r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}"

_DURATION = "a duration above zero, such as 5m or 1h30m"
_ANY_DURATION = "a duration of zero or more, such as 30s or 10m"
_PORT = "a port from 1 to 65535"
_HOST = "a host name or an IP address, without scheme and port"


def _setting(default: Any, env: str, group: str, accepts: str, description: str) -> Any:
    return Field(
        default,
        validation_alias=env,
        description=description,
        json_schema_extra={"group": group, "accepts": accepts},
    )


class _Environment(EnvSettingsSource):
    """The environment, without what Kubernetes writes there for a Service that is called `vllm`."""

    def __call__(self) -> dict[str, Any]:
        found = super().__call__()
        if service_link() is not None:
            found.pop("VLLM_PORT", None)
        return found


def service_link() -> str | None:
    """The value of VLLM_PORT where Kubernetes wrote it for a Service called `vllm` (`tcp://10.0.0.1:80`)."""
    value = os.environ.get("VLLM_PORT", "")
    return value if re.fullmatch(r"(tcp|udp|sctp)://.*", value) else None


class Settings(BaseSettings):
    """What `vllm-chill serve` runs with."""

    model_config = SettingsConfigDict(case_sensitive=True, env_ignore_empty=True, frozen=True, extra="ignore")

    backend: Literal["kubernetes", "process"] = _setting(
        "kubernetes", "VLLM_CHILL_BACKEND", "Target", "kubernetes or process",
        "What runs the target: a Deployment in Kubernetes, or the command after -- on this machine.",
    )  # fmt: skip
    namespace: Label = _setting(
        "ai-apps", "VLLM_NAMESPACE", "Target", "a Kubernetes namespace: lower-case letters, digits and -",
        "Namespace of the Deployment.",
    )  # fmt: skip
    deployment: Subdomain = _setting(
        "vllm", "VLLM_DEPLOYMENT", "Target", "a Deployment's name: lower-case letters, digits, - and .",
        "Name of the Deployment that is scaled.",
    )  # fmt: skip
    target_host: Host = _setting(
        "vllm-svc", "VLLM_TARGET", "Target", _HOST,
        "Host of the Deployment's Service. A host that is no Service of the namespace gets the requests itself, as "
        "with --route service.",
    )  # fmt: skip
    target_port: Annotated[int, Field(ge=1, le=65535)] = _setting(
        80, "VLLM_PORT", "Target", _PORT,
        "Port that requests go to. With --backend process: the port that {port} becomes; a free one if not set.",
    )  # fmt: skip
    kubeconfig: str | None = _setting(
        None, "KUBECONFIG", "Target", "the path of a kubeconfig file",
        "Credentials for the API server. Not set: in-cluster credentials, else ~/.kube/config.",
    )  # fmt: skip
    health_path: UrlPath = _setting(
        "/health", "HEALTH_PATH", "Target", "a path that begins with /",
        "The path that answers 200 once the engine is healthy; vLLM's is /health.",
    )  # fmt: skip
    readiness: Literal["probe", "kubernetes"] = _setting(
        "probe", "READINESS", "Target", "probe or kubernetes",
        "How the engine is known to be ready. probe: the proxy asks it ten times a second, so that nobody waits for "
        "the kubelet's next look; a pod's Ready condition counts too. kubernetes: that condition alone.",
    )  # fmt: skip
    route: Literal["pod", "service"] = _setting(
        "pod", "ROUTE", "Target", "pod or service",
        "With --backend kubernetes, where requests go. pod: to the pods' own addresses, which are there before a "
        "Service knows of them. service: to --target-host, once a pod's Ready condition says so, which is what a "
        "Service waits for.",
    )  # fmt: skip
    state_dir: str | None = _setting(
        None, "STATE_DIR", "Target", 'the path of a folder, or --state-dir "" to keep nothing',
        "With --backend process: the folder that keeps how long starts take, so that the time left is known after a "
        "restart of the proxy too. Not set: $XDG_STATE_HOME/vllm-chill, else ~/.local/state/vllm-chill. With --backend "
        "kubernetes an annotation of the Deployment keeps it, unless this is empty.",
    )  # fmt: skip
    models: str | None = _setting(
        None, "VLLM_CHILL_MODELS", "Models", "crd, or the path of a YAML file with --backend process",
        "Serve a catalogue of models, each a target of its own that requests choose by name. crd: the cluster's "
        "VLLMModel objects, whose workloads vllm-chill makes and owns. A file: the same for commands on this machine. "
        "Not set: one target, and requests may name any model.",
    )  # fmt: skip
    model_id: str | None = _setting(
        None, "MODEL_ID", "Models", "a model's served name or the name of its object",
        "The model of requests that name none. With --backend kubernetes it stands for --models crd too.",
    )  # fmt: skip
    model_limit: Size = _setting(
        32 << 20, "MODEL_LIMIT", "Models", "a size in bytes, such as 32Mi",
        "How far into a request body above --replay-limit the model's name is looked for; what comes before it is "
        "kept, within --hold-body-budget. 32Mi lets an audio file of 25 MB, which is vLLM's own limit, come first.",
    )  # fmt: skip
    gpu_count: Annotated[int, Field(ge=0, le=1024)] = _setting(
        1, "GPU_COUNT", "Models", "a number of GPUs",
        "How many GPUs a replica of a model has whose own gpuCount is not given.",
    )  # fmt: skip
    cpu_offload_gb: Annotated[float, Field(ge=0, le=100_000)] = _setting(
        0, "CPU_OFFLOAD_GB", "Models", "a size in GiB",
        "How much of a model's weights is kept in the machine's memory, where its own cpuOffloadGB is not given.",
    )  # fmt: skip
    gpu_budget: GpuBudget = _setting(
        "", "GPU_BUDGET", "Models", "a number of GPUs, or POOL=NUMBER with commas between them, such as a100=8,l4=4",
        "How many GPUs the awake models may have together. One that does not fit waits for the one that has been idle "
        "for longest to be put to sleep, never for a busy one. Not set: as many as there are.",
    )  # fmt: skip
    min_residency: Duration = _setting(
        timedelta(seconds=60), "MIN_RESIDENCY", "Models", _ANY_DURATION,
        "How long a model stays awake, from when it is ready, before another one of its group takes its place. A "
        "minute keeps two clients that take turns from spending it all on loading.",
    )  # fmt: skip
    max_switch_wait: Duration = _setting(
        timedelta(minutes=5), "MAX_SWITCH_WAIT", "Models", _ANY_DURATION,
        "How long requests for a model wait while another one of its group is in use, before that one takes no new "
        "requests; those that it has begun are never cut.",
    )  # fmt: skip
    gpu_stats_url: Url | None = _setting(
        None, "GPU_STATS_URL", "Models", "an http or https URL",
        "Where /proxy/stats finds GPU statistics if this process sees no GPU: a DCGM exporter's metrics.",
    )  # fmt: skip
    mode: Literal["scale", "recommend"] = _setting(
        "scale", "MODE", "Scaling", "scale or recommend",
        "scale: vllm-chill writes how many replicas there are, from 0 on. recommend: it never does; it holds requests "
        "until somebody else has scaled the target, and its metrics say how many replicas it would have.",
    )  # fmt: skip
    prometheus_url: Url | None = _setting(
        None, "PROMETHEUS_URL", "Scaling", "an http or https URL",
        "The Prometheus that answers the promql rules of scaling policies. Every other metric is scraped from the "
        "replicas themselves.",
    )  # fmt: skip
    prometheus_token_file: str | None = _setting(
        None, "PROMETHEUS_TOKEN_FILE", "Scaling", "the path of a file",
        "A bearer token for that Prometheus; the file is read anew when it has changed.",
    )  # fmt: skip
    override_ttl: PositiveDuration = _setting(
        timedelta(hours=1), "OVERRIDE_TTL", "Scaling", _DURATION,
        "How long a number of replicas that was set by hand (`vllm-chill scaling set`) holds, where it does not say; "
        "then the policy decides again. An hour is a load test or an incident, and what is forgotten ends by itself.",
    )  # fmt: skip
    idle_timeout: PositiveDuration = _setting(
        timedelta(minutes=5), "IDLE_TIMEOUT", "Timing", _DURATION,
        "Put the target to sleep when it has been unused for this long, from the last byte of the last response. "
        "Five minutes outlast the pauses in a conversation.",
    )  # fmt: skip
    wake_timeout: PositiveDuration = _setting(
        timedelta(minutes=2), "WAKE_TIMEOUT", "Timing", _DURATION,
        "How long a request is held while the target wakes, before it is told to retry. Two minutes cover most "
        "models and fit most clients' own timeouts.",
    )  # fmt: skip
    start_timeout: PositiveDuration = _setting(
        timedelta(minutes=30), "START_TIMEOUT", "Timing", _DURATION,
        "How long the target may take to become ready, whoever waits; then its start has failed. Half an hour "
        "covers the first download of a large model.",
    )  # fmt: skip
    unschedulable_after: Duration = _setting(
        timedelta(seconds=60), "UNSCHEDULABLE_AFTER", "Timing", _ANY_DURATION,
        "With --backend kubernetes: how long a pod may wait for a node with room before its start has failed. A minute "
        "outlasts most pods on their way out; where an autoscaler adds nodes, set it to what a new node takes.",
    )  # fmt: skip
    stop_timeout: Duration = _setting(
        timedelta(seconds=30), "STOP_TIMEOUT", "Timing", _ANY_DURATION,
        "With --backend process: how long the engine may take to end after SIGTERM, before SIGKILL. The same as "
        "Kubernetes' grace period.",
    )  # fmt: skip
    drain_timeout: Duration = _setting(
        timedelta(minutes=10), "DRAIN_TIMEOUT", "Timing", _ANY_DURATION,
        "How long requests may take to finish: held and streaming ones after SIGTERM, and those of a replica that is "
        "one too many before it goes.",
    )  # fmt: skip
    shutdown_delay: Duration = _setting(
        timedelta(seconds=5), "SHUTDOWN_DELAY", "Timing", _ANY_DURATION,
        "After SIGTERM: how long connections are still accepted while /readyz says 503, so that load balancers "
        "have time to notice. Skipped for Ctrl-C.",
    )  # fmt: skip
    connect_timeout: PositiveDuration = _setting(
        timedelta(seconds=5), "CONNECT_TIMEOUT", "Timing", _DURATION,
        "How long a connection to the target may take.",
    )  # fmt: skip
    response_timeout: PositiveDuration = _setting(
        timedelta(minutes=30), "RESPONSE_TIMEOUT", "Timing", _DURATION,
        "How long the target may be silent before its response begins. A long answer that is not streamed "
        "begins with its last token.",
    )  # fmt: skip
    max_waiting: Annotated[int, Field(ge=1, le=1_000_000)] = _setting(
        1000, "MAX_WAITING", "Holding", "a number of requests, at least 1",
        "How many requests may be held at a time; one more is answered 429 with Retry-After. A held request costs the "
        "proxy about 5 KB and its body.",
    )  # fmt: skip
    max_in_flight: Annotated[int, Field(ge=0, le=1_000_000)] = _setting(
        0, "MAX_IN_FLIGHT", "Holding", "a number of requests, or 0 for any",
        "How many requests a replica gets at a time; the rest are held and follow as places come free. vLLM queues by "
        "itself, so 0 is right unless its queue must stay short.",
    )  # fmt: skip
    hold_body_budget: Size = _setting(
        256 << 20, "HOLD_BODY_BUDGET", "Holding", "a size in bytes, such as 256Mi",
        "How many bytes the bodies of held requests, and of those that are still being read whole, may take together. "
        "Beyond it a request that would be held is answered 503, and any other is streamed, and not sent twice.",
    )  # fmt: skip
    hold_heartbeat_after: Duration = _setting(
        timedelta(seconds=15), "HOLD_HEARTBEAT_AFTER", "Holding", "a duration of zero or more; 0 for never",
        "After how long a held request for a stream is told, in comments of the stream, that it is held: below the "
        "60 s after which most ingresses cut a silent connection.",
    )  # fmt: skip
    hold_heartbeat: PositiveDuration = _setting(
        timedelta(seconds=10), "HOLD_HEARTBEAT", "Holding", _DURATION,
        "How often it is told again.",
    )  # fmt: skip
    hold_json: Literal["silent", "whitespace", "fail"] = _setting(
        "silent", "HOLD_JSON", "Holding", "silent, whitespace or fail",
        "How a request is held that wants JSON in one piece: in silence; with spaces before the JSON, which commits "
        "to status 200; or not at all: 503 with Retry-After at once, while the target wakes.",
    )  # fmt: skip
    fairness_header: Annotated[str, _matches(_HEADER)] = _setting(
        "Authorization", "FAIRNESS_HEADER", "Holding", "the name of a header",
        "Held requests with different values of this header take turns; without it, different client addresses do.",
    )  # fmt: skip
    priority_keys: str = _setting(
        "", "PRIORITY_KEYS", "Holding", "values of --fairness-header, separated by commas",
        "Who may say X-Priority: high, normal or low. Of a bearer token the token alone is enough.",
    )  # fmt: skip
    wake_abandoned: Literal["keep", "cancel"] = _setting(
        "keep", "WAKE_ABANDONED", "Holding", "keep or cancel",
        "What becomes of a wake when the last request that waited for it has left: it goes on, or is given up.",
    )  # fmt: skip
    stream_idle_timeout: Duration = _setting(
        timedelta(minutes=10), "STREAM_IDLE_TIMEOUT", "Holding", "a duration of zero or more; 0 for never",
        "A response from a replica that is gone is ended, with an error, once it has been silent for this long.",
    )  # fmt: skip
    load_balancing: Literal["least-request", "prefix-hash"] = _setting(
        "least-request", "LOAD_BALANCING", "Balancing", "least-request or prefix-hash",
        "Which replica a request goes to. least-request: the one that answers the fewest. prefix-hash: requests whose "
        "prompts begin alike go to the same one, whose prefix cache then has that beginning, unless it has too many.",
    )  # fmt: skip
    prefix_length: Annotated[int, Field(ge=1, le=10_000)] = _setting(
        100, "PREFIX_LENGTH", "Balancing", "a number of characters from 1 to 10000",
        "With --load-balancing prefix-hash: how many characters of the first user message, or of the prompt, count. A "
        "hundred tell conversations apart, and are the same in all turns of one.",
    )  # fmt: skip
    hash_load_factor: Annotated[float, Field(ge=1, le=100)] = _setting(
        LOAD_FACTOR, "HASH_LOAD_FACTOR", "Balancing", "a number from 1 to 100",
        "With prefix-hash or --session-header: how many times the mean number of requests a replica may have before "
        "others go on to the next one. More keeps caches hot; less evens the load.",
    )  # fmt: skip
    session_header: Annotated[str, _matches(_HEADER)] | None = _setting(
        None, "SESSION_HEADER", "Balancing", "the name of a header",
        "Requests with the same value of this header go to the same replica, unless it has too many; those without it "
        "go as --load-balancing says.",
    )  # fmt: skip
    host: Host = _setting(
        "0.0.0.0", "HOST", "Listening", _HOST,  # noqa: S104 - a proxy in a container is reached from outside
        "Address to listen on.",
    )  # fmt: skip
    port: Annotated[int, Field(ge=0, le=65535)] = _setting(
        8080, "PORT", "Listening", "a port from 1 to 65535, or 0 for any that is free",
        "Port to listen on.",
    )  # fmt: skip
    replay_limit: Size = _setting(
        1 << 20, "REPLAY_LIMIT", "Listening", "a size in bytes, such as 1Mi or 262144",
        "Request bodies up to this size are kept until the response begins, so that they can be sent again if "
        "the target dies before; larger ones stream through. Chat requests are well below 1Mi.",
    )  # fmt: skip
    wake_paths: WakePaths = _setting(
        "default", "WAKE_PATHS", "Listening",
        "paths with commas between them, with * at the end for all that begin so, such as default,/completion,/ui/*",
        "Paths whose requests wake the target and keep it awake; `default` stands for vLLM's own, and docs/routes.md "
        "lists them. Requests to other paths reach the target only while it is awake, and do not count as use.",
    )  # fmt: skip
    fast_lane: Literal["on", "off"] = _setting(
        "on", "FAST_LANE", "Listening", "on or off",
        "Read plain requests without the HTTP server's parser and tasks, which costs less than half; "
        "off sends every request the long way.",
    )  # fmt: skip
    event_loop: Literal["auto", "uvloop", "asyncio"] = _setting(
        "auto", "EVENT_LOOP", "Listening", "auto, uvloop or asyncio",
        "What runs the proxy: uvloop costs less for each request; auto takes it where it is installed.",
    )  # fmt: skip
    log_format: LogFormat = _setting(
        "console", "LOG_FORMAT", "Logging", "console or json",
        "How log lines look.",
    )  # fmt: skip
    log_level: LogLevel = _setting(
        "info", "LOG_LEVEL", "Logging", "debug, info, warning or error",
        "The least level that is logged.",
    )  # fmt: skip

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the base class's signature
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the base class's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the base class's signature
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the environment; nothing else."""
        return init_settings, _Environment(settings_cls)


def flag_of(name: str) -> str:
    """The flag of a field: `idle_timeout` is `--idle-timeout`."""
    return "--" + name.replace("_", "-")


def env_of(field: FieldInfo) -> str:
    """The environment variable of a field."""
    assert isinstance(field.validation_alias, str)
    return field.validation_alias


def extra_of(field: FieldInfo, key: Literal["group", "accepts"]) -> str:
    """What a field says of itself besides its description."""
    assert isinstance(field.json_schema_extra, dict)
    return str(field.json_schema_extra[key])


def default_text(field: FieldInfo) -> str:
    """The default as a user would write it; empty if there is none."""
    match field.default:
        case None:
            return ""
        case timedelta():
            return str(durationpy.to_str(field.default))
        case int() if field.metadata and field.default and field.default % (1 << 20) == 0:
            return f"{field.default >> 20}Mi"
        case _:
            return str(field.default)


def load_settings(flags: Mapping[str, str]) -> Settings:
    """The settings from flags (field name to text) and the environment.

    Raises SettingError with one line for each value that cannot be used.
    """
    fields = Settings.model_fields
    try:
        given: dict[str, Any] = {env_of(fields[name]): value for name, value in flags.items()}
        return Settings(**given)
    except ValidationError as error:
        raise SettingError("\n".join(_complaint(dict(e), flags) for e in error.errors())) from None


def _complaint(error: dict[str, Any], flags: Mapping[str, str]) -> str:
    env = str(error["loc"][0])
    name, field = next((n, f) for n, f in Settings.model_fields.items() if env_of(f) == env)
    setting = flag_of(name) if name in flags else env
    return f"{setting}: {json.dumps(str(error['input']))} is not accepted; give {extra_of(field, 'accepts')}"

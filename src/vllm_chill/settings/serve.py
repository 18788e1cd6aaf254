"""Every setting of the proxy, declared once: flag, variable, default with the reason, and what it accepts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource

from vllm_chill.core.balancing import LOAD_FACTOR
from vllm_chill.core.routing import parse_wake_paths
from vllm_chill.core.switching import parse_gpu_budget
from vllm_chill.settings.config_file import read_config
from vllm_chill.settings.parts import (
    ANY_DURATION,
    DURATION,
    HOST,
    LOG_FORMAT,
    LOG_LEVEL,
    PORT,
    Declared,
    Duration,
    Host,
    Label,
    PositiveDuration,
    Size,
    Subdomain,
    Url,
    UrlPath,
    env_of,
    load,
    matches,
    setting,
)
from vllm_chill.settings.plain import parse_controllers, parse_origins, service_link
from vllm_chill.telemetry.logs import LogFormat, LogLevel


def _wake_paths(value: str) -> str:
    parse_wake_paths(value)
    return value


def _gpu_budget(value: str) -> str:
    parse_gpu_budget(value)
    return value


def _controllers(value: str) -> str:
    parse_controllers(value)
    return value


def _origins(value: str) -> str:
    parse_origins(value)
    return value


Origins = Annotated[str, AfterValidator(_origins)]
Controllers = Annotated[str, AfterValidator(_controllers)]
WakePaths = Annotated[str, AfterValidator(_wake_paths)]
GpuBudget = Annotated[str, AfterValidator(_gpu_budget)]

_FILE = "the path of a file"
_READERS = "all, keys or admin"
_HEADER = r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}"


class _Environment(EnvSettingsSource):
    """The environment, without what Kubernetes writes there for a Service that is called `vllm`."""

    def __call__(self) -> dict[str, Any]:
        found = super().__call__()
        if service_link() is not None:
            found.pop("VLLM_PORT", None)
        return found


class Settings(Declared):
    """What `vllm-chill serve` runs with."""

    backend: Literal["kubernetes", "process"] = setting(
        "kubernetes", "VLLM_CHILL_BACKEND", "Target", "kubernetes or process",
        "What runs the target: a Deployment in Kubernetes, or the command after -- on this machine.",
    )  # fmt: skip
    namespace: Label = setting(
        "ai-apps", "VLLM_NAMESPACE", "Target", "a Kubernetes namespace: lower-case letters, digits and -",
        "Namespace of the Deployment.",
    )  # fmt: skip
    deployment: Subdomain = setting(
        "vllm", "VLLM_DEPLOYMENT", "Target", "a Deployment's name: lower-case letters, digits, - and .",
        "Name of the Deployment that is scaled.",
    )  # fmt: skip
    target_host: Host = setting(
        "vllm-svc", "VLLM_TARGET", "Target", HOST,
        "Host of the Deployment's Service. A host that is no Service of the namespace gets the requests itself, as "
        "with --route service.",
    )  # fmt: skip
    target_port: Annotated[int, Field(ge=1, le=65535)] = setting(
        80, "VLLM_PORT", "Target", PORT,
        "Port that requests go to. With --backend process: the port that {port} becomes; a free one if not set.",
    )  # fmt: skip
    kubeconfig: str | None = setting(
        None, "KUBECONFIG", "Target", "the path of a kubeconfig file",
        "Credentials for the API server. Not set: in-cluster credentials, else ~/.kube/config.",
    )  # fmt: skip
    health_path: UrlPath = setting(
        "/health", "HEALTH_PATH", "Target", "a path that begins with /",
        "The path that answers 200 once the engine is healthy; vLLM's is /health.",
    )  # fmt: skip
    readiness: Literal["probe", "kubernetes"] = setting(
        "probe", "READINESS", "Target", "probe or kubernetes",
        "How the engine is known to be ready. probe: the proxy asks it ten times a second, so that nobody waits for "
        "the kubelet's next look; a pod's Ready condition counts too. kubernetes: that condition alone.",
    )  # fmt: skip
    route: Literal["pod", "service"] = setting(
        "pod", "ROUTE", "Target", "pod or service",
        "With --backend kubernetes, where requests go. pod: to the pods' own addresses, which are there before a "
        "Service knows of them. service: to --target-host, once a pod's Ready condition says so, which is what a "
        "Service waits for.",
    )  # fmt: skip
    state_dir: str | None = setting(
        None, "STATE_DIR", "Target", 'the path of a folder, or --state-dir "" to keep nothing',
        "With --backend process: the folder that keeps how long starts take, so that the time left is known after a "
        "restart of the proxy too, and what was saved. Not set: $XDG_STATE_HOME/vllm-chill, else "
        "~/.local/state/vllm-chill. With --backend kubernetes an annotation of the Deployment and a ConfigMap keep it, "
        "unless this is empty.",
    )  # fmt: skip
    models: str | None = setting(
        None, "VLLM_CHILL_MODELS", "Models", "crd, or the path of a YAML file with --backend process",
        "Serve a catalogue of models, each a target of its own that requests choose by name. crd: the cluster's "
        "VLLMModel objects, whose workloads vllm-chill makes and owns. A file: the same for commands on this machine. "
        "Not set: one target, and requests may name any model.",
    )  # fmt: skip
    model_id: str | None = setting(
        None, "MODEL_ID", "Models", "a model's served name or the name of its object",
        "The model of requests that name none. With --backend kubernetes it stands for --models crd too.",
    )  # fmt: skip
    model_limit: Size = setting(
        32 << 20, "MODEL_LIMIT", "Models", "a size in bytes, such as 32Mi",
        "How far into a request body above --replay-limit the model's name is looked for; what comes before it is "
        "kept, within --hold-body-budget. 32Mi lets an audio file of 25 MB, which is vLLM's own limit, come first.",
    )  # fmt: skip
    gpu_count: Annotated[int, Field(ge=0, le=1024)] = setting(
        1, "GPU_COUNT", "Models", "a number of GPUs",
        "How many GPUs a replica of a model has whose own gpuCount is not given. If it is given with one target and no "
        "models, savings are counted for so many, whatever the Deployment or the command says.",
    )  # fmt: skip
    cpu_offload_gb: Annotated[float, Field(ge=0, le=100_000)] = setting(
        0, "CPU_OFFLOAD_GB", "Models", "a size in GiB",
        "How much of a model's weights is kept in the machine's memory, where its own cpuOffloadGB is not given.",
    )  # fmt: skip
    gpu_budget: GpuBudget = setting(
        "", "GPU_BUDGET", "Models", "a number of GPUs, or POOL=NUMBER with commas between them, such as a100=8,l4=4",
        "How many GPUs the awake models may have together. One that does not fit waits for the one that has been idle "
        "for longest to be put to sleep, never for a busy one. Not set: as many as there are.",
    )  # fmt: skip
    min_residency: Duration = setting(
        timedelta(seconds=60), "MIN_RESIDENCY", "Models", ANY_DURATION,
        "How long a model stays awake, from when it is ready, before another one of its group takes its place. A "
        "minute keeps two clients that take turns from spending it all on loading.",
    )  # fmt: skip
    max_switch_wait: Duration = setting(
        timedelta(minutes=5), "MAX_SWITCH_WAIT", "Models", ANY_DURATION,
        "How long requests for a model wait while another one of its group is in use, before that one takes no new "
        "requests; those that it has begun are never cut.",
    )  # fmt: skip
    gpu_stats_url: Url | None = setting(
        None, "GPU_STATS_URL", "Models", "an http or https URL",
        "Where /proxy/stats finds GPU statistics if this process sees no GPU: a DCGM exporter's metrics.",
    )  # fmt: skip
    gpu_hour_price: Annotated[float, Field(ge=0, le=1_000_000)] | None = setting(
        None, "GPU_HOUR_PRICE", "Savings", "a price, such as 2.50",
        "What an hour of one GPU costs, in --currency: GPU-hours asleep times this are what was saved. Not set: "
        "GPU-hours are counted, and no money.",
    )  # fmt: skip
    currency: Annotated[str, matches(r"[A-Za-z]{3}"), AfterValidator(str.upper)] = setting(
        "USD", "CURRENCY", "Savings", "three letters, such as USD or EUR",
        "What that price is in; it is shown, and nothing is converted.",
    )  # fmt: skip
    mode: Literal["scale", "recommend"] = setting(
        "scale", "MODE", "Scaling", "scale or recommend",
        "scale: vllm-chill writes how many replicas there are, from 0 on. recommend: it never does; it holds requests "
        "until somebody else has scaled the target, and its metrics say how many replicas it would have.",
    )  # fmt: skip
    controllers: Controllers = setting(
        "policies", "CONTROLLERS", "Scaling", "policies, variants, or both with a comma between them; none for none",
        "Which controllers run within the proxy. policies: that of vLLMScalingPolicy objects and annotations. "
        "variants: that of VariantAutoscaling objects in the namespace, which is set up by the variables of "
        "`vllm-chill controller`; in larger clusters it runs apart from the proxy.",
    )  # fmt: skip
    prometheus_url: Url | None = setting(
        None, "PROMETHEUS_URL", "Scaling", "an http or https URL",
        "The Prometheus that answers the promql rules of scaling policies. Every other metric is scraped from the "
        "replicas themselves.",
    )  # fmt: skip
    prometheus_token_file: str | None = setting(
        None, "PROMETHEUS_TOKEN_FILE", "Scaling", "the path of a file",
        "A bearer token for that Prometheus; the file is read anew when it has changed.",
    )  # fmt: skip
    override_ttl: PositiveDuration = setting(
        timedelta(hours=1), "OVERRIDE_TTL", "Scaling", DURATION,
        "How long a number of replicas that was set by hand (`vllm-chill scaling set`) holds, where it does not say; "
        "then the policy decides again. An hour is a load test or an incident, and what is forgotten ends by itself.",
    )  # fmt: skip
    idle_timeout: PositiveDuration = setting(
        timedelta(minutes=5), "IDLE_TIMEOUT", "Timing", DURATION,
        "Put the target to sleep when it has been unused for this long, from the last byte of the last response. "
        "Five minutes outlast the pauses in a conversation.",
    )  # fmt: skip
    wake_timeout: PositiveDuration = setting(
        timedelta(minutes=2), "WAKE_TIMEOUT", "Timing", DURATION,
        "How long a request is held while the target wakes, before it is told to retry. Two minutes cover most "
        "models and fit most clients' own timeouts.",
    )  # fmt: skip
    start_timeout: PositiveDuration = setting(
        timedelta(minutes=30), "START_TIMEOUT", "Timing", DURATION,
        "How long the target may take to become ready, whoever waits; then its start has failed. Half an hour "
        "covers the first download of a large model.",
    )  # fmt: skip
    unschedulable_after: Duration = setting(
        timedelta(seconds=60), "UNSCHEDULABLE_AFTER", "Timing", ANY_DURATION,
        "With --backend kubernetes: how long a pod may wait for a node with room before its start has failed. A minute "
        "outlasts most pods on their way out; where an autoscaler adds nodes, set it to what a new node takes.",
    )  # fmt: skip
    stop_timeout: Duration = setting(
        timedelta(seconds=30), "STOP_TIMEOUT", "Timing", ANY_DURATION,
        "With --backend process: how long the engine may take to end after SIGTERM, before SIGKILL. The same as "
        "Kubernetes' grace period.",
    )  # fmt: skip
    drain_timeout: Duration = setting(
        timedelta(minutes=10), "DRAIN_TIMEOUT", "Timing", ANY_DURATION,
        "How long requests may take to finish: held and streaming ones after SIGTERM, and those of a replica that is "
        "one too many before it goes.",
    )  # fmt: skip
    shutdown_delay: Duration = setting(
        timedelta(seconds=5), "SHUTDOWN_DELAY", "Timing", ANY_DURATION,
        "After SIGTERM: how long connections are still accepted while /readyz says 503, so that load balancers "
        "have time to notice. Skipped for Ctrl-C.",
    )  # fmt: skip
    connect_timeout: PositiveDuration = setting(
        timedelta(seconds=5), "CONNECT_TIMEOUT", "Timing", DURATION,
        "How long a connection to the target may take.",
    )  # fmt: skip
    response_timeout: PositiveDuration = setting(
        timedelta(minutes=30), "RESPONSE_TIMEOUT", "Timing", DURATION,
        "How long the target may be silent before its response begins. A long answer that is not streamed "
        "begins with its last token.",
    )  # fmt: skip
    max_waiting: Annotated[int, Field(ge=1, le=1_000_000)] = setting(
        1000, "MAX_WAITING", "Holding", "a number of requests, at least 1",
        "How many requests may be held at a time; one more is answered 429 with Retry-After. A held request costs the "
        "proxy about 5 KB and its body.",
    )  # fmt: skip
    max_in_flight: Annotated[int, Field(ge=0, le=1_000_000)] = setting(
        0, "MAX_IN_FLIGHT", "Holding", "a number of requests, or 0 for any",
        "How many requests a replica gets at a time; the rest are held and follow as places come free. vLLM queues by "
        "itself, so 0 is right unless its queue must stay short.",
    )  # fmt: skip
    hold_body_budget: Size = setting(
        256 << 20, "HOLD_BODY_BUDGET", "Holding", "a size in bytes, such as 256Mi",
        "How many bytes the bodies of held requests, and of those that are still being read whole, may take together. "
        "Beyond it a request that would be held is answered 503, and any other is streamed, and not sent twice.",
    )  # fmt: skip
    hold_heartbeat_after: Duration = setting(
        timedelta(seconds=15), "HOLD_HEARTBEAT_AFTER", "Holding", "a duration of zero or more; 0 for never",
        "After how long a held request for a stream is told, in comments of the stream, that it is held: below the "
        "60 s after which most ingresses cut a silent connection.",
    )  # fmt: skip
    hold_heartbeat: PositiveDuration = setting(
        timedelta(seconds=10), "HOLD_HEARTBEAT", "Holding", DURATION,
        "How often it is told again.",
    )  # fmt: skip
    hold_json: Literal["silent", "whitespace", "fail"] = setting(
        "silent", "HOLD_JSON", "Holding", "silent, whitespace or fail",
        "How a request is held that wants JSON in one piece: in silence; with spaces before the JSON, which commits "
        "to status 200; or not at all: 503 with Retry-After at once, while the target wakes.",
    )  # fmt: skip
    fairness_header: Annotated[str, matches(_HEADER)] = setting(
        "Authorization", "FAIRNESS_HEADER", "Holding", "the name of a header",
        "Held requests with different values of this header take turns; without it, different client addresses do.",
    )  # fmt: skip
    priority_keys: str = setting(
        "", "PRIORITY_KEYS", "Holding", "values of --fairness-header, separated by commas",
        "Who may say X-Priority: high, normal or low. Of a bearer token the token alone is enough.",
    )  # fmt: skip
    wake_abandoned: Literal["keep", "cancel"] = setting(
        "keep", "WAKE_ABANDONED", "Holding", "keep or cancel",
        "What becomes of a wake when the last request that waited for it has left: it goes on, or is given up.",
    )  # fmt: skip
    stream_idle_timeout: Duration = setting(
        timedelta(minutes=10), "STREAM_IDLE_TIMEOUT", "Holding", "a duration of zero or more; 0 for never",
        "A response from a replica that is gone is ended, with an error, once it has been silent for this long.",
    )  # fmt: skip
    load_balancing: Literal["least-request", "prefix-hash"] = setting(
        "least-request", "LOAD_BALANCING", "Balancing", "least-request or prefix-hash",
        "Which replica a request goes to. least-request: the one that answers the fewest. prefix-hash: requests whose "
        "prompts begin alike go to the same one, whose prefix cache then has that beginning, unless it has too many.",
    )  # fmt: skip
    prefix_length: Annotated[int, Field(ge=1, le=10_000)] = setting(
        100, "PREFIX_LENGTH", "Balancing", "a number of characters from 1 to 10000",
        "With --load-balancing prefix-hash: how many characters of the first user message, or of the prompt, count. A "
        "hundred tell conversations apart, and are the same in all turns of one.",
    )  # fmt: skip
    hash_load_factor: Annotated[float, Field(ge=1, le=100)] = setting(
        LOAD_FACTOR, "HASH_LOAD_FACTOR", "Balancing", "a number from 1 to 100",
        "With prefix-hash or --session-header: how many times the mean number of requests a replica may have before "
        "others go on to the next one. More keeps caches hot; less evens the load.",
    )  # fmt: skip
    session_header: Annotated[str, matches(_HEADER)] | None = setting(
        None, "SESSION_HEADER", "Balancing", "the name of a header",
        "Requests with the same value of this header go to the same replica, unless it has too many; those without it "
        "go as --load-balancing says.",
    )  # fmt: skip
    leader_elect: Literal["on", "off"] = setting(
        "on", "LEADER_ELECT", "High availability", "on or off",
        "With --backend kubernetes: tell the other proxies of the same targets who is served here, and put a target to "
        "sleep only if this one is elected to, and no other uses it. off is for a proxy that is always alone, while it "
        "is updated too.",
    )  # fmt: skip
    lease_name: Subdomain | None = setting(
        None, "LEASE_NAME", "High availability", "a Lease's name: lower-case letters, digits, - and .",
        "The Lease of --namespace that the proxy which leads holds; what each reports is in Leases whose names begin "
        "so. It is to be the same for all proxies of the same targets, and another one for those of others. Not set: "
        "vllm-chill, and vllm-chill-NAME with a --deployment of another NAME than vllm.",
    )  # fmt: skip
    lease_duration: PositiveDuration = setting(
        timedelta(seconds=15), "LEASE_DURATION", "High availability", DURATION,
        "How long a leader that has gone without a word is waited for, before another proxy leads; those whom a proxy "
        "served that is gone are waited for twice as long. Kubernetes' own controllers have 15s.",
    )  # fmt: skip
    host: Host = setting(
        "0.0.0.0", "HOST", "Listening", HOST,  # noqa: S104 - a proxy in a container is reached from outside
        "Address to listen on.",
    )  # fmt: skip
    port: Annotated[int, Field(ge=0, le=65535)] = setting(
        8080, "PORT", "Listening", "a port from 1 to 65535, or 0 for any that is free",
        "Port to listen on.",
    )  # fmt: skip
    api_keys_file: str | None = setting(
        None, "API_KEYS_FILE", "Access", _FILE,
        "The API keys of those who may use the models, each as a hash; `vllm-chill keys new NAME` makes one. The file "
        "is read again when it changes. Not set: nobody is asked for a key, as in a network that others do not reach.",
    )  # fmt: skip
    admin_auth: Literal["none", "keys", "kubernetes"] = setting(
        "none", "ADMIN_AUTH", "Access", "none, keys or kubernetes",
        "Who may wake, stop, switch and scale by the paths under /proxy/. none: everybody who reaches the port, as "
        "within one machine or cluster; the Ingress in deploy/ does not let these paths through. keys: who has an "
        "admin key. kubernetes: whose token the cluster lets do it, with --backend kubernetes.",
    )  # fmt: skip
    metrics_readers: Literal["all", "keys", "admin"] = setting(
        "all", "METRICS_READERS", "Access", _READERS,
        "Who may read /proxy/metrics and the engine's /metrics: everybody, who has a key, or whom --admin-auth lets. "
        "They name targets and no callers, so scrapers need no key unless that is said here.",
    )  # fmt: skip
    status_readers: Literal["all", "keys", "admin"] = setting(
        "all", "STATUS_READERS", "Access", _READERS,
        "Who may read /proxy/status and all else under /proxy/ that changes nothing. Everybody, as the page that is "
        "shown to browsers while a model wakes reads it too.",
    )  # fmt: skip
    admin_host: Host | None = setting(
        None, "ADMIN_HOST", "Access", HOST,
        "Address of --admin-port. Not set: that of --host.",
    )  # fmt: skip
    admin_port: Annotated[int, Field(ge=0, le=65535)] | None = setting(
        None, "ADMIN_PORT", "Access", "a port from 1 to 65535, or 0 for any that is free",
        "Have everything under /proxy/ at a port of its own, and 404 at the other. Not set: it is at --port, where "
        "scripts of other proxies like this one look for it.",
    )  # fmt: skip
    cors_origins: Origins | None = setting(
        None, "CORS_ORIGINS", "Access",
        "origins with commas between them, such as https://ui.example.com, or * for any",
        "Pages of these origins may use the models from a browser; it replaces what the engine says of that. Not set: "
        "what the engine says holds, which while it sleeps is not known, so that browsers may ask.",
    )  # fmt: skip
    tls_cert: str | None = setting(
        None, "TLS_CERT", "TLS", _FILE,
        "The certificate that clients are shown, in PEM with its chain; with --tls-key. Both are read again when they "
        "change, and TLS is 1.2 or newer. Not set: plain HTTP, for what ends TLS in front of the proxy.",
    )  # fmt: skip
    tls_key: str | None = setting(
        None, "TLS_KEY", "TLS", _FILE,
        "The key of that certificate, in PEM and without a password.",
    )  # fmt: skip
    upstream_api_key_file: str | None = setting(
        None, "UPSTREAM_API_KEY_FILE", "TLS", _FILE,
        "The key of the engines (vLLM's --api-key), which replaces what clients say; read again when it changes. Not "
        "set: what clients say goes on, or nothing where --api-keys-file is given, whose keys are the proxy's own.",
    )  # fmt: skip
    upstream_tls: Literal["off", "on"] = setting(
        "off", "UPSTREAM_TLS", "TLS", "on or off",
        "Speak HTTPS to the engines, whose certificates are verified. Off, as engines speak HTTP unless they are told.",
    )  # fmt: skip
    upstream_ca_file: str | None = setting(
        None, "UPSTREAM_CA_FILE", "TLS", _FILE,
        "The authorities that may have signed the engines' certificates, in PEM. Not set: those of this machine.",
    )  # fmt: skip
    upstream_server_name: Host | None = setting(
        None, "UPSTREAM_SERVER_NAME", "TLS", "a host name",
        "The name that the engines' certificates are for, such as their Service's. Not set: the address that requests "
        "go to, which of a pod is no name.",
    )  # fmt: skip
    replay_limit: Size = setting(
        1 << 20, "REPLAY_LIMIT", "Listening", "a size in bytes, such as 1Mi or 262144",
        "Request bodies up to this size are kept until the response begins, so that they can be sent again if "
        "the target dies before; larger ones stream through. Chat requests are well below 1Mi.",
    )  # fmt: skip
    wake_paths: WakePaths = setting(
        "default", "WAKE_PATHS", "Listening",
        "paths with commas between them, with * at the end for all that begin so, such as default,/completion,/ui/*",
        "Paths whose requests wake the target and keep it awake; `default` stands for vLLM's own, and docs/routes.md "
        "lists them. Requests to other paths reach the target only while it is awake, and do not count as use.",
    )  # fmt: skip
    fast_lane: Literal["on", "off"] = setting(
        "on", "FAST_LANE", "Listening", "on or off",
        "Read plain requests without the HTTP server's parser and tasks, which costs less than half; "
        "off sends every request the long way.",
    )  # fmt: skip
    event_loop: Literal["auto", "uvloop", "asyncio"] = setting(
        "auto", "EVENT_LOOP", "Listening", "auto, uvloop or asyncio",
        "What runs the proxy: uvloop costs less for each request; auto takes it where it is installed.",
    )  # fmt: skip
    max_body: Size = setting(
        256 << 20, "MAX_BODY", "Clients", "a size in bytes, such as 256Mi; 0 for any",
        "Request bodies above this are answered 413, before anything is woken if their length is said. Engines read a "
        "body whole into memory, and 256Mi hold more images and audio than a model takes.",
    )  # fmt: skip
    request_head_timeout: Duration = setting(
        timedelta(seconds=30), "REQUEST_HEAD_TIMEOUT", "Clients", "a duration of zero or more; 0 for never",
        "How long the head of a request may take from its first byte; then it is answered 408. A head is one packet or "
        "two, so half a minute is for the worst of networks.",
    )  # fmt: skip
    request_body_timeout: Duration = setting(
        timedelta(seconds=60), "REQUEST_BODY_TIMEOUT", "Clients", "a duration of zero or more; 0 for never",
        "How long nothing of a request's body may come, or less than 240 bytes a second on the mean; then it is "
        "answered 408, and no longer keeps the target awake. A minute is what nginx gives.",
    )  # fmt: skip
    send_timeout: Duration = setting(
        timedelta(minutes=5), "SEND_TIMEOUT", "Clients", "a duration of zero or more; 0 for never",
        "How long a client may read nothing of an answer that is there for it; then its connection is cut. Five "
        "minutes outlast most interruptions. An engine that says nothing does not count.",
    )  # fmt: skip
    max_connections: Annotated[int, Field(ge=0, le=10_000_000)] = setting(
        0, "MAX_CONNECTIONS", "Clients", "a number of connections, or 0 for half of the files that may be open",
        "How many connections clients may have. Beyond it those are closed that have been idle for longest; if none is "
        "idle, one more is answered 503. Each request may need a second one, to the target.",
    )  # fmt: skip
    otlp_traces_endpoint: Url | None = setting(
        None, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "Tracing", "an http:// or https:// URL",
        "The OpenTelemetry collector that gets a trace of each request and of each wake; vllm-chill[otel] brings what "
        "is needed. Not set: as OTEL_EXPORTER_OTLP_ENDPOINT says, and without that there are no traces.",
    )  # fmt: skip
    config_file: str | None = setting(
        None, "CONFIG_FILE", "Configuration", "the path of a YAML file",
        "More settings, by the names of their flags: `idle-timeout: 10m`. Flags and variables win over it. What can "
        "change in a running proxy is read again when the file changes, and on SIGHUP; docs/reload.md says what that "
        "is.",
    )  # fmt: skip
    log_format: LogFormat = LOG_FORMAT
    log_level: LogLevel = LOG_LEVEL

    @classmethod
    def environment(
        cls,
        settings_cls: type[BaseSettings],
        found: PydanticBaseSettingsSource,  # noqa: ARG003 - the base class's signature
    ) -> PydanticBaseSettingsSource:
        """The environment's values."""
        return _Environment(settings_cls)


def load_settings(flags: Mapping[str, str]) -> Settings:
    """The settings from flags (field name to text), the environment, and the file that either of them names.

    Raises SettingError with one line for each value that cannot be used.
    """
    path = flags.get("config_file", os.environ.get(env_of(Settings.model_fields["config_file"])))
    file = read_config(Path(path), Settings) if path else {}
    return load(Settings, flags, file, ignored=() if service_link() is None else ("VLLM_PORT",))

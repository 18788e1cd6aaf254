"""Every setting of `vllm-chill controller`, declared once. What llm-d's autoscaler has too keeps its flag and variable.

The rule: what is in the file of --config-file, as `KEY: value` with the variables' names, counts less than the
environment, and that less than a flag.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BeforeValidator, Field

from vllm_chill.errors import SettingError
from vllm_chill.settings.parts import (
    DURATION,
    LOG_FORMAT,
    LOG_LEVEL,
    Declared,
    Label,
    PositiveDuration,
    Url,
    env_of,
    load,
    matches,
    setting,
)
from vllm_chill.telemetry.logs import LogFormat, LogLevel

_ADDRESS = "an address such as :8443 or 127.0.0.1:8443, or 0 for none"
_SWITCH = "true or false"
_FILE = "the path of a file"
_YES = {"true", "1", "yes", "on"}
_NO = {"false", "0", "no", "off"}


def _switch(value: object) -> object:
    return {
        "true": True,
        "1": True,
        "yes": True,
        "on": True,
        "false": False,
        "0": False,
        "no": False,
        "off": False,
    }.get(str(value).strip().lower(), value)


Switch = Annotated[bool, BeforeValidator(_switch)]
Address = Annotated[str, matches(r"0|[^\s/]*:[0-9]{1,5}")]
Name = Annotated[str, Field(max_length=63), matches(r"|[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")]


class ControllerSettings(Declared):
    """What `vllm-chill controller` runs with."""

    kubeconfig: str | None = setting(
        None, "KUBECONFIG", "Cluster", "the path of a kubeconfig file",
        "Credentials for the API server. Not set: in-cluster credentials, else ~/.kube/config.",
    )  # fmt: skip
    watch_namespace: Label | Literal[""] = setting(
        "", "WATCH_NAMESPACE", "Cluster", "a Kubernetes namespace, or nothing for all",
        "The namespace whose variants are scaled. Not set: those of all.",
    )  # fmt: skip
    controller_namespace: Label = setting(
        "workload-variant-autoscaler-system", "POD_NAMESPACE", "Cluster", "a Kubernetes namespace",
        "The controller's own namespace: that of its ConfigMaps and its Lease.",
    )  # fmt: skip
    controller_instance: Name = setting(
        "", "CONTROLLER_INSTANCE", "Cluster", "a value of a label",
        "Where several controllers share a cluster: only variants with the label wva.llmd.ai/controller-instance of "
        "this value are this one's, and its metrics have a label controller_instance. Not set: all are.",
    )  # fmt: skip
    max_concurrent_reconciles: Annotated[int, Field(ge=1, le=1000)] = setting(
        4, "MAX_CONCURRENT_RECONCILES", "Deciding", "a number from 1 to 1000",
        "How many models are looked at at the same time.",
    )  # fmt: skip
    interval: PositiveDuration = setting(
        timedelta(seconds=60), "GLOBAL_OPT_INTERVAL", "Deciding", DURATION,
        "How often it is decided on a model, besides when something of it has changed.",
    )  # fmt: skip
    actuation: Literal["metrics", "direct"] = setting(
        "metrics", "WVA_ACTUATION", "Deciding", "metrics or direct",
        "What becomes of a decision where a variant does not say: metrics tells wva_desired_replicas for a HPA or KEDA "
        "to follow, direct scales the target.",
    )  # fmt: skip
    scale_to_zero: Switch = setting(
        False, "WVA_SCALE_TO_ZERO", "Deciding", _SWITCH,
        "Whether a model that is unused may have no replica, where neither its variants nor the ConfigMap says.",
    )  # fmt: skip
    limited_mode: Switch = setting(
        False, "WVA_LIMITED_MODE", "Deciding", _SWITCH,
        "Whether variants grow only as far as there are GPUs, where the ConfigMap does not say.",
    )  # fmt: skip
    node_selector: str = setting(
        "", "WVA_NODE_SELECTOR", "Deciding", "labels as in pool=gpu,zone=a",
        "Only the GPUs of nodes with these labels count.",
    )  # fmt: skip
    metrics_source: Literal["auto", "prometheus", "pods"] = setting(
        "auto", "METRICS_SOURCE", "Measuring", "auto, prometheus or pods",
        "Where the load of replicas comes from: a Prometheus that scrapes them, or the pods themselves. auto: "
        "Prometheus if --prometheus-base-url is set.",
    )  # fmt: skip
    prometheus_base_url: Url | Literal[""] = setting(
        "", "PROMETHEUS_BASE_URL", "Measuring", "a URL such as https://prometheus:9090",
        "The Prometheus, or what speaks its API.",
    )  # fmt: skip
    prometheus_bearer_token: str = setting(
        "", "PROMETHEUS_BEARER_TOKEN", "Measuring", "a token",
        "What is sent as its bearer token; better is --prometheus-token-path.",
    )  # fmt: skip
    prometheus_token_path: str = setting(
        "", "PROMETHEUS_TOKEN_PATH", "Measuring", _FILE,
        "The file with its bearer token, which is read again when it changes.",
    )  # fmt: skip
    prometheus_ca_cert_path: str = setting(
        "", "PROMETHEUS_CA_CERT_PATH", "Measuring", _FILE,
        "The certificates that it is known by, in place of the system's.",
    )  # fmt: skip
    prometheus_client_cert_path: str = setting(
        "", "PROMETHEUS_CLIENT_CERT_PATH", "Measuring", _FILE,
        "The certificate that it is shown, with --prometheus-client-key-path.",
    )  # fmt: skip
    prometheus_client_key_path: str = setting(
        "", "PROMETHEUS_CLIENT_KEY_PATH", "Measuring", _FILE,
        "The key of that certificate.",
    )  # fmt: skip
    prometheus_server_name: str = setting(
        "", "PROMETHEUS_SERVER_NAME", "Measuring", "a host name",
        "The name that its certificate must have, where that is not the URL's.",
    )  # fmt: skip
    prometheus_tls_insecure_skip_verify: Switch = setting(
        False, "PROMETHEUS_TLS_INSECURE_SKIP_VERIFY", "Measuring", _SWITCH,
        "Take any certificate. For a first try alone.",
    )  # fmt: skip
    demand_urls: str = setting(
        "", "DEMAND_URLS", "Measuring", "URLs with commas between them",
        "Pages of metrics that tell of requests which wait before any replica has them: a proxy's /proxy/metrics, an "
        "endpoint picker's. With a Prometheus they are found there.",
    )  # fmt: skip
    demand_token_path: str = setting(
        "", "DEMAND_TOKEN_PATH", "Measuring", _FILE,
        "The file with the bearer token for these pages.",
    )  # fmt: skip
    leader_elect: Switch = setting(
        False, "LEADER_ELECT", "Leading", _SWITCH,
        "Have but one of several replicas of the controller decide, the one that holds the Lease.",
    )  # fmt: skip
    leader_election_id: Label = setting(
        "vllm-chill-controller", "LEADER_ELECTION_ID", "Leading", "the name of a Lease",
        "The name of the Lease.",
    )  # fmt: skip
    leader_election_lease_duration: PositiveDuration = setting(
        timedelta(seconds=15), "LEADER_ELECTION_LEASE_DURATION", "Leading", DURATION,
        "How long the others wait for a leader that says nothing before one of them takes its place.",
    )  # fmt: skip
    leader_election_renew_deadline: PositiveDuration = setting(
        timedelta(seconds=10), "LEADER_ELECTION_RENEW_DEADLINE", "Leading", DURATION,
        "How long a leader that cannot renew the Lease goes on; less than its duration.",
    )  # fmt: skip
    leader_election_retry_period: PositiveDuration = setting(
        timedelta(seconds=2), "LEADER_ELECTION_RETRY_PERIOD", "Leading", DURATION,
        "How often the Lease is renewed, or tried for.",
    )  # fmt: skip
    metrics_bind_address: Address = setting(
        ":8443", "METRICS_BIND_ADDRESS", "Listening", _ADDRESS,
        "Where the metrics are, under /metrics.",
    )  # fmt: skip
    metrics_secure: Switch = setting(
        True, "METRICS_SECURE", "Listening", _SWITCH,
        "Have the metrics over HTTPS alone, for those whose token may read them; false: over HTTP, for all.",
    )  # fmt: skip
    metrics_cert_path: str = setting(
        "", "METRICS_CERT_PATH", "Listening", "the path of a folder",
        "The folder with the certificate. Not set: one that is made at the start.",
    )  # fmt: skip
    metrics_cert_name: str = setting(
        "tls.crt", "METRICS_CERT_NAME", "Listening", "the name of a file",
        "The certificate's file in that folder.",
    )  # fmt: skip
    metrics_cert_key: str = setting(
        "tls.key", "METRICS_CERT_KEY", "Listening", "the name of a file",
        "The key's file in that folder.",
    )  # fmt: skip
    health_probe_bind_address: Address = setting(
        ":8081", "HEALTH_PROBE_BIND_ADDRESS", "Listening", _ADDRESS,
        "Where /healthz and /readyz are.",
    )  # fmt: skip
    log_format: LogFormat = LOG_FORMAT
    log_level: LogLevel = LOG_LEVEL


def load_controller_settings(flags: Mapping[str, str], config_file: str | None = None) -> ControllerSettings:
    """The settings from flags (field name to text), the environment, and a YAML file of variables' names and values.

    Raises SettingError with one line for each value that cannot be used.
    """
    told = {} if config_file is None else _read(Path(config_file))
    fields = ControllerSettings.model_fields
    known = {env_of(field): name for name, field in fields.items()}
    less = {known[env]: value for env, value in told.items() if env in known and not os.environ.get(env)}
    settings = load(ControllerSettings, {**less, **flags})
    if settings.leader_election_renew_deadline >= settings.leader_election_lease_duration:
        raise SettingError(
            "--leader-election-renew-deadline: it is not below --leader-election-lease-duration, so that two could "
            "lead at a time; give less"
        )
    return settings


def _read(path: Path) -> dict[str, str]:
    try:
        told = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SettingError(f"--config-file: {path} cannot be read: {' '.join(str(error).split())}") from None
    if told is None:
        return {}
    if not isinstance(told, dict) or any(isinstance(value, dict | list) for value in told.values()):
        raise SettingError(f"--config-file: {path} is not a list of names and values, such as WVA_SCALE_TO_ZERO: true")
    return {str(name): str(value) for name, value in told.items() if value is not None}

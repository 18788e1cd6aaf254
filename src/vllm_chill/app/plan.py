"""What `serve` is asked to do: settings and a command, checked as a whole."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vllm_chill.control.lease import Bounds
from vllm_chill.core.catalogue import ModelEntry
from vllm_chill.core.routing import Routes, parse_wake_paths
from vllm_chill.core.switching import Rules, parse_gpu_budget
from vllm_chill.core.target import Limits, TargetRef
from vllm_chill.errors import SettingError
from vllm_chill.proxy.affinity import Affinity
from vllm_chill.proxy.client_limits import ClientLimits
from vllm_chill.proxy.handler import ProxyOptions
from vllm_chill.proxy.hold_terms import HoldOptions, JsonHold
from vllm_chill.proxy.relay import RelayTimeouts

if TYPE_CHECKING:
    from vllm_chill.settings.serve import Settings  # which a proxy that runs has no need to import


@dataclass(frozen=True, slots=True)
class Plan:
    """What `serve` is asked to do, checked as a whole: settings that fit one another, and the command if any."""

    settings: Settings
    command: tuple[str, ...] = ()
    name: str = ""
    """What the command is called; its own name if not given."""

    def __post_init__(self) -> None:
        if self.settings.backend == "kubernetes" and self.command:
            raise SettingError(
                f"a command is given ({self.command[0]} ...), but --backend is kubernetes; "
                "add --backend process to run it"
            )
        if self.settings.backend == "process" and self.settings.models == "crd":
            raise SettingError(
                "--models crd are the VLLMModel objects of a cluster, and with --backend process there is none; "
                "give the path of a YAML file"
            )
        if self.settings.backend == "kubernetes" and self.catalogue not in (None, "crd"):
            raise SettingError(
                f'--models "{self.catalogue}" is a file of commands for this machine; add --backend process to run '
                "them, or give crd for the cluster's VLLMModel objects"
            )
        if self.command and self.catalogue is not None:
            raise SettingError(
                f"a command is given ({self.command[0]} ...), and --models too; give the command in that file"
            )
        if self.settings.backend == "process" and self.settings.model_id is not None and self.catalogue is None:
            raise SettingError("--model-id names one of several models; give them with --models FILE, or leave it out")
        if self.settings.backend == "process" and not self.command and self.catalogue is None:
            raise SettingError(
                "--backend process needs the command to run; give it after --, as in: "
                "vllm-chill serve --backend process -- vllm serve Qwen/Qwen3-0.6B --port {port}"
            )
        if self.settings.backend == "process" and self.settings.readiness == "kubernetes":
            raise SettingError(
                "--readiness kubernetes waits for a pod's Ready condition, and with --backend process there is no pod; "
                "leave it out, and the command is asked by itself"
            )
        if self.settings.backend == "process" and self.settings.route == "service":
            raise SettingError(
                "--route service sends requests to a Service, and with --backend process there is none; leave it out"
            )

        self._check_access()

    def _check_access(self) -> None:
        settings = self.settings
        if settings.admin_auth == "kubernetes" and settings.backend == "process":
            raise SettingError(
                "--admin-auth kubernetes asks a cluster, and with --backend process there is none; give keys or none"
            )
        asked = {
            "--admin-auth": settings.admin_auth,
            "--metrics-readers": settings.metrics_readers,
            "--status-readers": settings.status_readers,
        }
        for flag, value in asked.items():
            if value == "keys" and settings.api_keys_file is None:
                raise SettingError(f"{flag} keys needs --api-keys-file; `vllm-chill keys new NAME` makes a key for it")
            if value == "admin" and settings.admin_auth == "none":
                raise SettingError(f"{flag} admin lets those read whom --admin-auth lets operate; give that too")
        if (settings.tls_cert is None) != (settings.tls_key is None):
            missing = "--tls-key" if settings.tls_key is None else "--tls-cert"
            raise SettingError(f"a certificate and its key belong together; give {missing} too")
        for flag, given in (
            ("--upstream-ca-file", settings.upstream_ca_file),
            ("--upstream-server-name", settings.upstream_server_name),
        ):
            if given is not None and settings.upstream_tls == "off":
                raise SettingError(f"{flag} is of no use without --upstream-tls on")

    @property
    def catalogue(self) -> str | None:
        """Where the models are: "crd", or the path of a file; None where there is but one target."""
        if self.settings.models:
            return self.settings.models
        return "crd" if self.settings.backend == "kubernetes" and self.settings.model_id is not None else None

    @property
    def reads_models_first(self) -> bool:
        """Whether the models are known before the first request, as those of a file are."""
        return self.catalogue not in (None, "crd")

    @property
    def rules(self) -> Rules:
        """How models take turns on the GPUs."""
        return Rules(
            self.settings.min_residency.total_seconds(),
            self.settings.max_switch_wait.total_seconds(),
            parse_gpu_budget(self.settings.gpu_budget),
        )

    @property
    def ref(self) -> TargetRef:
        """The target's name."""
        if self.settings.backend == "process":
            return TargetRef("process", self.name or self.command[0].rpartition("/")[2])
        return TargetRef(self.settings.namespace, self.settings.deployment)

    @property
    def lease_name(self) -> str:
        """The Lease of the proxies that serve the same: those of other targets have another one."""
        if self.settings.lease_name is not None:
            return self.settings.lease_name
        usual = self.catalogue is not None or self.settings.deployment == "vllm"
        return "vllm-chill" if usual else f"vllm-chill-{self.settings.deployment}"

    @property
    def title(self) -> str:
        """What it serves, for a log line."""
        return str(self.ref) if self.catalogue is None else f"models of {self.catalogue}"

    @property
    def routes(self) -> Routes:
        """Which requests wake the target."""
        return Routes(parse_wake_paths(self.settings.wake_paths))

    @property
    def direct(self) -> bool:
        """Whether requests go to the replicas' own addresses, and not to a Service or whatever stands in its place."""
        settings = self.settings
        if settings.backend == "process":
            return True
        if "route" in settings.model_fields_set:
            return settings.route == "pod"
        return is_service_of(settings.namespace, settings.target_host)

    @property
    def limits(self) -> Limits:
        """What bounds the target's life."""
        return Limits(
            math.inf if self.observe_only else self.settings.idle_timeout.total_seconds(),
            self.settings.start_timeout.total_seconds(),
            keep_abandoned=self.settings.wake_abandoned == "keep",
            drain_seconds=self.settings.drain_timeout.total_seconds(),
        )

    @property
    def observe_only(self) -> bool:
        """Whether the number of replicas is for somebody else to write."""
        return self.settings.mode == "recommend"

    @property
    def bounds(self) -> Bounds:
        """How many may wait, and how many a replica has at a time."""
        settings = self.settings
        load_factor = None if self.affinity is None else settings.hash_load_factor
        return Bounds(settings.max_waiting, settings.max_in_flight or None, load_factor)

    @property
    def gpus(self) -> int | None:
        """The GPUs of a replica of the one target, if the settings say; None if not, or where models say."""
        is_said = self.catalogue is None and "gpu_count" in self.settings.model_fields_set
        return self.settings.gpu_count if is_said else None

    @property
    def affinity(self) -> Affinity | None:
        """Which requests should meet at one replica; None if none need to."""
        settings = self.settings
        by_prefix = settings.load_balancing == "prefix-hash"
        if not by_prefix and settings.session_header is None:
            return None
        return Affinity(settings.session_header, settings.prefix_length if by_prefix else 0)

    @property
    def only(self) -> TargetPlan:
        """The one target of a proxy without a catalogue."""
        return TargetPlan(self.ref, self.limits, self.bounds, self.options.hold, self.direct)

    def of_model(self, entry: ModelEntry) -> TargetPlan:
        """A model's target: as the settings have it, but for what the model says of itself."""
        limits, hold, bounds = self.limits, self.options.hold, self.bounds
        if entry.idle_seconds is not None:
            limits = replace(limits, idle_seconds=entry.idle_seconds)
        if entry.min_replicas > 0:
            limits = replace(limits, idle_seconds=math.inf, always_on=True)
        if entry.wake_seconds is not None:
            hold = replace(hold, seconds=entry.wake_seconds)
        if bounds.in_flight is None and entry.max_num_seqs is not None:
            # A little more than it works on at a time, so that it never waits for the next one.
            bounds = replace(bounds, in_flight=entry.max_num_seqs + max(1, entry.max_num_seqs // 4))
        direct = self.settings.backend == "process" or self.settings.route == "pod"
        return TargetPlan(entry.ref, limits, bounds, hold, direct, entry)

    @property
    def client_limits(self) -> ClientLimits:
        """How much of the proxy one client may have."""
        s = self.settings
        return ClientLimits(
            head_seconds=s.request_head_timeout.total_seconds() or None,
            body_seconds=s.request_body_timeout.total_seconds() or None,
            send_seconds=s.send_timeout.total_seconds() or None,
            body_bytes=s.max_body or None,
            connections=s.max_connections or None,
        )

    @property
    def options(self) -> ProxyOptions:
        """How requests are proxied."""
        s = self.settings
        return ProxyOptions(
            hold=HoldOptions(
                seconds=s.wake_timeout.total_seconds(),
                beat_after_seconds=s.hold_heartbeat_after.total_seconds(),
                beat_seconds=s.hold_heartbeat.total_seconds(),
                json=JsonHold(s.hold_json),
                body_budget=s.hold_body_budget,
                key_field=s.fairness_header,
                priority_keys=frozenset(key.strip() for key in s.priority_keys.split(",") if key.strip()),
            ),
            replay_bytes=s.replay_limit,
            timeouts=RelayTimeouts(s.connect_timeout.total_seconds(), s.response_timeout.total_seconds()),
            model_bytes=s.model_limit,
        )


@dataclass(frozen=True, slots=True)
class TargetPlan:
    """How one target is served; `entry` is its model, None where there is no catalogue. `direct`: requests go to the
    replicas' own addresses.
    """

    ref: TargetRef
    limits: Limits
    bounds: Bounds
    hold: HoldOptions
    direct: bool
    entry: ModelEntry | None = None


def is_service_of(namespace: str, host: str) -> bool:
    """Whether a host is named as a Service of the namespace is: its name, NAME.NAMESPACE, NAME.NAMESPACE.svc[.DOMAIN].

    The name alone cannot be an IPv4 address or a name of another domain, as those have dots.
    """
    match host.lower().rstrip(".").split("."):
        case [name]:
            return ":" not in name
        case [_, of, *rest]:
            return of == namespace and (not rest or rest[0] == "svc")
        case _:
            return False

"""What `serve` is asked to do: settings and a command, checked as a whole."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_chill.control.controller import Bounds
from vllm_chill.core.routing import Routes, parse_wake_paths
from vllm_chill.core.target import Limits, TargetRef
from vllm_chill.errors import SettingError
from vllm_chill.proxy.handler import ProxyOptions
from vllm_chill.proxy.hold_terms import HoldOptions, JsonHold
from vllm_chill.proxy.relay import RelayTimeouts
from vllm_chill.settings import Settings


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
        if self.settings.backend == "process" and not self.command:
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

    @property
    def ref(self) -> TargetRef:
        """The target's name."""
        if self.settings.backend == "process":
            return TargetRef("process", self.name or self.command[0].rpartition("/")[2])
        return TargetRef(self.settings.namespace, self.settings.deployment)

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
            self.settings.idle_timeout.total_seconds(),
            self.settings.start_timeout.total_seconds(),
            keep_abandoned=self.settings.wake_abandoned == "keep",
        )

    @property
    def bounds(self) -> Bounds:
        """How many may wait, and how many a replica has at a time."""
        return Bounds(self.settings.max_waiting, self.settings.max_in_flight or None)

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
        )


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

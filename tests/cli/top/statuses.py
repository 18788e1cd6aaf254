"""Statuses to be shown: one of each kind of target."""

from __future__ import annotations

from typing import Any

from vllm_chill.api.status import PastStartStatus, PeersStatus, ProxyStatus, StartStatus, TargetStatus


def target(name: str, phase: Any = "asleep", **more: Any) -> TargetStatus:
    fields = {"waiting": 0, "in_flight": 0, "replicas": 0, "ready_replicas": 0, "phase_seconds": 60.0}
    return TargetStatus(target=f"ns/vllm-{name}", model=name, phase=phase, **(fields | more))


LOADING = StartStatus(stage="loading", elapsed_seconds=32, eta_seconds=32)
LAST = PastStartStatus(
    outcome="ready", total_seconds=73.65, stages={"scheduling": 12.3, "loading": 61.0, "first_token": 0.31}
)
EVERY = ProxyStatus(
    version="9",
    draining=False,
    default_model="coder",
    peers=PeersStatus(identity="me", leads=True, leader="me", others=["you"]),
    targets=[
        target(
            "coder", "ready", served_names=["org/coder"], replicas=3, ready_replicas=2, in_flight=7, last_start=LAST
        ),
        target(
            "idle", "ready", phase_seconds=130, replicas=1, ready_replicas=1, idle_seconds=10, sleeps_in_seconds=290
        ),
        target("big", "waking", phase_seconds=32, replicas=1, waiting=12, start=LOADING),
        target("next", "queued", waiting=3, waits_for=["big"], cause="it waits for its turn on the GPUs"),
        target("bad", "failed", cause="no such image: \x1b[31mregistry\x1b[0m says\nno"),
        target("r1"),
    ],
)

"""Probers for tests: with real sockets round any backend."""

from __future__ import annotations

from vllm_chill.control.prober import Probing, ProbingBackend
from vllm_chill.ports import ClusterBackend
from vllm_chill.proxy.probe import Prober
from vllm_chill.proxy.upstream import UpstreamPool


def probed(inner: ClusterBackend, pool: UpstreamPool) -> ProbingBackend:
    """The backend as the proxy sees it: its replicas are asked whether they are ready."""
    return ProbingBackend(inner, Probing(Prober(pool).ask), direct=True)

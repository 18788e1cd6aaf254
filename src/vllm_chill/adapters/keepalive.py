"""TCP keep-alive: how the kernel notices a peer that is gone without a word, which by default takes it hours."""

from __future__ import annotations

import socket

Option = tuple[int, int, int]


def keepalive(idle_seconds: int, interval_seconds: int, probes: int) -> tuple[Option, ...]:
    """The options of a socket whose peer is taken for gone after so much silence, and so many probes without an answer.

    They are what setsockopt takes; those that this system does not have are left out.
    """
    times = (("TCP_KEEPIDLE", idle_seconds), ("TCP_KEEPINTVL", interval_seconds), ("TCP_KEEPCNT", probes))
    known = ((socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in times if hasattr(socket, name))
    return (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), *known

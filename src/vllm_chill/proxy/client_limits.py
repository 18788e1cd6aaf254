"""How much of the proxy one client may have, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

LEAST_RATE = 240
"""Bytes a second of a body, on the mean of the time that it may be silent: the least that ASP.NET's Kestrel takes."""


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """Limits of a client; None for none. Times are in seconds.

    `head_seconds`: from a head's first bytes to its end. `body_seconds`: how long nothing of a body may come, or less
    than LEAST_RATE. `send_seconds`: how long a client may take nothing of what is there for it. `body_bytes`: how large
    a body may be. `connections`: how many there may be at a time.
    """

    head_seconds: float | None = 30.0
    body_seconds: float | None = 60.0
    send_seconds: float | None = 300.0
    body_bytes: int | None = 256 << 20
    connections: int | None = None

    @property
    def look_seconds(self) -> float | None:
        """How often it has to be looked at what clients do: a quarter of the shortest time, so no limit is exact."""
        times = [t for t in (self.head_seconds, self.body_seconds, self.send_seconds) if t is not None]
        return min(times) / 4 if times else None

"""The replicas of one target that are to go: who they are, and for how long their leases are waited for.

The rule: who is chosen gets no new request from that moment, and goes once it has no lease, or its time is up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from vllm_chill.core.leaving import endpoints_of, to_go
from vllm_chill.core.target import Endpoint, Observation


class Leavers:
    """`leases` is how many there are on a replica; `due` is called when the time for them is up. `ordered` as in
    core.leaving.
    """

    def __init__(self, leases: Callable[[Endpoint], int], due: Callable[[], None], *, ordered: bool) -> None:
        self.names: tuple[str, ...] = ()
        """First to go first."""
        self._leases = leases
        self._due = due
        self._ordered = ordered
        self._ends: asyncio.TimerHandle | None = None

    def __bool__(self) -> bool:
        return bool(self.names)

    def review(self, seen: Observation | None, wanted: int | None, seconds: float) -> bool:
        """Choose who is to go, if so many replicas are wanted (None: nobody is); whether it is others than before.

        They have so many seconds to end their leases.
        """
        chosen = self._chosen(seen, wanted)
        if chosen == self.names:
            return False
        self.names = chosen
        if self._ends is not None:
            self._ends.cancel()
        self._ends = asyncio.get_running_loop().call_later(seconds, self._time_out) if chosen else None
        return True

    def _chosen(self, seen: Observation | None, wanted: int | None) -> tuple[str, ...]:
        if seen is None or not wanted:
            return ()
        if wanted < seen.replicas:
            count = len(seen.members) - wanted
            return to_go(seen.members, count, self._leases, self.names, ordered=self._ordered)
        if len(seen.members) > wanted:
            there = {replica.name for replica in seen.members}
            return tuple(name for name in self.names if name in there)  # they are being ended
        return ()

    def _time_out(self) -> None:
        self._ends = None
        self._due()

    @property
    def have_time(self) -> bool:
        """Whether some are to go, and may still end their leases."""
        return self._ends is not None

    def awaited(self, seen: Observation | None, serving: tuple[Endpoint, ...]) -> bool:
        """Whether one of them has leases, and time for them. `serving` is where requests still go."""
        if not self.names or self._ends is None or seen is None:
            return False
        return any(self._leases(one) for one in endpoints_of(seen.members, self.names) if one not in serving)

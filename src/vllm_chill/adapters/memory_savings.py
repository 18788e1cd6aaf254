"""What was saved, kept nowhere: for proxies of one process."""

from __future__ import annotations

from vllm_chill.core.savings_ledger import KeptText
from vllm_chill.errors import BackendConflict


class MemorySavings:
    """ports.SavingsStore. `kept` is what there is."""

    def __init__(self) -> None:
        self.kept: KeptText | None = None
        self.writes = 0

    async def read(self) -> KeptText | None:
        return self.kept

    async def write(self, text: str, before: KeptText | None) -> None:
        if self.kept != before:
            raise BackendConflict("what was saved could not be written just now: it is another than what was read")
        self.writes += 1
        self.kept = KeptText(text, str(self.writes))

from __future__ import annotations

import pytest

from tests.adapters.savings_contract import SavingsContract
from vllm_chill.adapters.memory_savings import MemorySavings


class TestMemorySavings(SavingsContract):
    @pytest.fixture
    def store(self) -> MemorySavings:
        return MemorySavings()

from __future__ import annotations

import pytest

from tests.adapters.peers_contract import PeersContract
from vllm_chill.adapters.memory_peers import MemoryPeers


class TestMemoryPeers(PeersContract):
    @pytest.fixture
    def store(self) -> MemoryPeers:
        return MemoryPeers()

    @pytest.fixture
    def another(self, store: MemoryPeers) -> MemoryPeers:
        return store

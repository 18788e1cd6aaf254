from __future__ import annotations

import pytest

from tests.adapters.objects_contract import ObjectsContract
from vllm_chill.adapters.memory_objects import MemoryObjects
from vllm_chill.core.objects import Collection, Json


class MemoryObjectsWorld:
    def __init__(self) -> None:
        self.store = MemoryObjects()
        self.deployments = Collection("apps/v1", "Deployment", "deployments", "test")
        self.others = Collection("apps/v1", "Deployment", "deployments", "others")

    async def change(self, name: str, change: Json) -> None:
        self.store.change(self.deployments, name, change)

    async def said(self, name: str) -> list[tuple[str, str, str, int]]:
        said = (each for each in self.store.said if each.about == name)
        return [("Warning" if each.warning else "Normal", each.reason, each.message, each.count) for each in said]


class TestMemoryObjects(ObjectsContract):
    @pytest.fixture
    def world(self) -> MemoryObjectsWorld:
        return MemoryObjectsWorld()

"""What is told of policies, where writing fails or many things happen at once."""

from __future__ import annotations

import asyncio
import json

import pytest
from structlog.testing import capture_logs

from tests.control.model_stage import DEPLOYMENTS
from tests.control.policy_stage import POLL, deployment, policy_object, staged
from vllm_chill.adapters.memory_objects import MemoryObjects
from vllm_chill.control.policy_reports import OVERRIDE
from vllm_chill.errors import BackendRefused, BackendUnavailable

pytestmark = pytest.mark.looptime(start=100)

_ANNOTATED = {"vllm-chill.io/autoscale": "true", "vllm-chill.io/max-replicas": "4"}


async def test_a_status_that_could_not_be_written_is_written_later_and_complained_of_once() -> None:
    with capture_logs() as logs:
        async with staged(deployment(), policy_object()) as stage:
            stage.store.fail_next = [BackendUnavailable("it is away")] * 5
            stage.change({"spec": {"paused": True}})
            await asyncio.sleep(10)
            assert stage.condition("Active") == ("False", "Paused")
    assert [log["cause"] for log in logs if log["event"] == "not reported"] == ["it is away"]


async def test_changes_one_after_the_other_are_an_event_each() -> None:
    async with staged(deployment(), policy_object()) as stage:
        stage.load().queue = 45
        await asyncio.sleep(POLL + 5)
        for replicas in (6, 7):
            stage.store.change(DEPLOYMENTS, "vllm", {"spec": {"replicas": replicas}})
        await asyncio.sleep(1)
        assert [said.message.partition(" it ")[2] for said in stage.said("ScaledElsewhere")] == [
            "from 5 to 6",
            "from 6 to 7",
        ]


async def test_an_adjustment_that_cannot_be_kept_holds_all_the_same() -> None:
    async with staged(deployment(annotations=_ANNOTATED)) as stage:
        stage.store.fail_next = [BackendRefused("it may not")]
        stage.scaler().adjust(3, "bob", 3600)
        await asyncio.sleep(60)
        assert stage.replicas() == 3
        assert ("patch", "vllm") not in stage.store.writes


@pytest.mark.parametrize("kept", ["", "[]", "{", '{"replicas": "many"}', '{"replicas": 3}'])
async def test_an_annotation_that_is_not_ours_is_no_adjustment_and_is_taken_away(kept: str) -> None:
    async with staged(deployment(annotations={**_ANNOTATED, OVERRIDE: kept})) as stage:
        assert stage.scaler().override is None
        stage.scaler().adjust(2, "bob", 60)
        await asyncio.sleep(5)
        item = stage.store.read(DEPLOYMENTS, "vllm")
        assert item is not None
        assert json.loads(item["metadata"]["annotations"][OVERRIDE])["by"] == "bob"
        await asyncio.sleep(100)
        item = stage.store.read(DEPLOYMENTS, "vllm")
        assert item is not None
        assert OVERRIDE not in item["metadata"]["annotations"]


async def test_when_it_was_scaled_last_outlives_a_restart() -> None:
    store = MemoryObjects()
    async with staged(deployment(), policy_object(minReplicas=5), store=store) as stage:
        scaled = stage.status()["lastScaleTime"]
    async with staged(store=store) as stage:
        await asyncio.sleep(60)
        stage.scaler().adjust(5, "alice", 600)
        await asyncio.sleep(5)
        assert stage.status()["override"]["by"] == "alice"
        assert stage.status()["lastScaleTime"] == scaled
        assert len(stage.said("SuccessfulRescale")) == 1

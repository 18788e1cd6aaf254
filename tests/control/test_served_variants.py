"""A variant's number is a recommendation to the controller of the target that is served; zero is the proxy's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from tests.control.nobody import Nobody
from tests.control.scaling_stage import HERE, REF, Clock, Load, policy
from vllm_chill.adapters.memory import MemoryBackend
from vllm_chill.control.autoscaler import Autoscaler, Autoscalers
from vllm_chill.control.controller import ScaleController
from vllm_chill.control.served_variants import ServedVariants
from vllm_chill.core.saturation.spec import VariantSpec, VariantTarget
from vllm_chill.core.target import Asleep, Limits, Ready, TargetRef

pytestmark = pytest.mark.looptime(start=100)

SPEC = VariantSpec(REF.namespace, "v", VariantTarget("apps/v1", "Deployment", REF.name), "llama")
OTHER = TargetRef(REF.namespace, "other")


@dataclass
class Others:
    """Who has the targets that are not served."""

    told: list[tuple[str, int]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def have(self, ref: TargetRef, replicas: int) -> str | None:
        self.told.append((ref.name, replicas))
        return "KEDA scales it too"

    def leave(self, ref: TargetRef) -> None:
        self.left.append(ref.name)


@dataclass
class Stage:
    backend: MemoryBackend
    controller: ScaleController
    scaler: Autoscaler
    others: Others
    variants: ServedVariants


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    backend = MemoryBackend(HERE)
    controller = ScaleController(REF, Limits(300, 1800, drain_seconds=0), backend, Nobody())
    scaler = Autoscaler("vllm", controller, Load(controller), wall=Clock())
    autoscalers, others = Autoscalers(), Others()
    autoscalers.add(scaler)
    running = asyncio.create_task(controller.run())
    await asyncio.sleep(1)
    yield Stage(backend, controller, scaler, others, ServedVariants(autoscalers, others))
    running.cancel()
    await asyncio.wait([running])


async def test_a_served_target_that_is_awake_has_as_many(stage: Stage) -> None:
    await stage.controller.wake(wait=True)
    assert stage.variants.have(REF, 4) is None
    await asyncio.sleep(1)
    assert stage.backend.seen.replicas == 4
    assert stage.others.told == []


async def test_asleep_it_stays_so_until_a_request_comes_and_zero_does_not_put_it_to_sleep(stage: Stage) -> None:
    assert stage.variants.have(REF, 4) is None
    await asyncio.sleep(10)
    assert isinstance(stage.controller.target.phase, Asleep)
    await stage.controller.wake(wait=True)
    assert stage.variants.have(REF, 0) is None
    await asyncio.sleep(10)
    assert isinstance(stage.controller.target.phase, Ready)


async def test_a_policy_comes_first_and_is_named(stage: Stage) -> None:
    await stage.controller.wake(wait=True)
    stage.variants.have(REF, 4)
    stage.scaler.policy = policy()
    stage.scaler.source = "vLLMScalingPolicy ai-apps/chat"
    assert stage.variants.have(REF, 5) == "vLLMScalingPolicy ai-apps/chat scales it"
    stage.controller.recommend("policy", 2)
    await asyncio.sleep(1)
    assert stage.backend.seen.replicas == 2


async def test_what_is_not_served_is_for_others(stage: Stage) -> None:
    assert stage.variants.have(OTHER, 3) == "KEDA scales it too"
    stage.variants.leave(OTHER)
    assert (stage.others.told, stage.others.left) == ([("other", 3)], ["other"])


async def test_who_waits_here_is_known(stage: Stage) -> None:
    assert stage.variants.held(REF.namespace, SPEC) == 0
    waiting = asyncio.create_task(stage.controller.lease(60))
    stage.backend.start_seconds = 30
    await asyncio.sleep(0)
    assert stage.variants.held(REF.namespace, SPEC) == stage.controller.target.waiting
    assert stage.variants.held("elsewhere", SPEC) is None
    (await waiting).release()

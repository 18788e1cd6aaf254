from __future__ import annotations

import pytest

from vllm_chill.core.scaling.figures import measured_replicas
from vllm_chill.core.target import Endpoint, Observation, Progress, Replica, Stage, Target, TargetRef

REF = TargetRef("ai-apps", "vllm")
SERVICE = Endpoint("vllm-svc", 80)
LOADING, ANSWERING = Progress(Stage.LOADING), Progress(Stage.ANSWERING)


def pod(name: str, address: str | None, *, ready: bool = False) -> Replica:
    return Replica(name, None if address is None else Endpoint(address, 8000), ready, LOADING)


def names(*replicas: Replica) -> dict[str, tuple[str | None, bool]]:
    return {one.name: (None if one.endpoint is None else one.endpoint.host, one.ready) for one in replicas}


A, B = pod("a", "10.0.0.1"), pod("b", "10.0.0.2")


@pytest.mark.parametrize(
    ("seen", "replicas"),
    [
        pytest.param(None, {}, id="nothing is seen yet"),
        pytest.param(Observation(0, 1, (SERVICE,), members=(A,)), {}, id="it is told to sleep"),
        pytest.param(
            Observation(2, 2, (SERVICE,), serving=frozenset({"b"}), members=(A, B)),
            {"a": ("10.0.0.1", False), "b": ("10.0.0.2", True)},
            id="pods behind a Service are asked themselves",
        ),
        pytest.param(
            Observation(1, 1, (Endpoint("10.0.0.1", 8000),), serving=frozenset({"a"}), members=(A,)),
            {"a": ("10.0.0.1", True)},
            id="one that a probe has found ready is ready, whatever the backend says of it",
        ),
        pytest.param(
            Observation(2, 2, members=(A, pod("b", None))),
            {"a": ("10.0.0.1", False), "b": (None, False)},
            id="one that has no address yet is there",
        ),
        pytest.param(Observation(1, 1, members=(pod("a", None),)), {"a": (None, False)}, id="none has an address yet"),
        pytest.param(
            Observation(2, 2, (SERVICE,), serving=frozenset({"a"}), members=(pod("a", None, ready=True),)),
            {"ai-apps/vllm": ("vllm-svc", True)},
            id="without any address where requests go is one replica",
        ),
        pytest.param(Observation(1, 1, (SERVICE,)), {"ai-apps/vllm": ("vllm-svc", True)}, id="without any replica too"),
        pytest.param(Observation(1, 0), {}, id="there is none yet"),
    ],
)
def test_the_replicas_that_are_measured(seen: Observation | None, replicas: dict[str, tuple[str | None, bool]]) -> None:
    assert names(*measured_replicas(Target(REF, observed=seen))) == replicas

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.core.doctor.world import ASKED, engine, found, is_fine, named, node, only, pods, sound, target
from vllm_chill.core.doctor.finding import Outcome, Unseen
from vllm_chill.core.doctor.picture import Picture
from vllm_chill.core.doctor.placement import GPUS, NODE, QUOTA
from vllm_chill.core.objects import Json

PLAIN = {"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "4", "nvidia.com/gpu": "0"}}}


def gpus(**limits: str | None) -> Picture:
    return engine(resources={"limits": {f"{name}.com/gpu": amount for name, amount in limits.items()}})


def test_gpus_that_a_node_offers_are_fine() -> None:
    assert is_fine(found(GPUS, sound()))
    assert is_fine(found(GPUS, gpus(nvidia="8")))


@pytest.mark.parametrize(
    ("picture", "says", "does"),
    [
        pytest.param(gpus(nvidia="9"), "asks for 9 nvidia.com/gpu, and no node has more than 8", '"8"', id="too many"),
        pytest.param(
            gpus(nvidia=None, amd="1"),
            "no node offers amd.com/gpu; nodes offer nvidia.com/gpu",
            '"limits":{"amd.com/gpu":null,"nvidia.com/gpu":"1"}',
            id="of another make",
        ),
        pytest.param(
            sound(nodes=(PLAIN,)), "no node offers nvidia.com/gpu, nor any other GPU", "get nodes", id="none at all"
        ),
        pytest.param(sound(nodes=()), "no node offers nvidia.com/gpu", "get nodes", id="no node"),
    ],
)
def test_gpus_that_no_node_has_are_a_failure(picture: Picture, says: str, does: str) -> None:
    finding = only(GPUS, picture)
    assert finding.outcome is Outcome.FAILURE
    assert says in finding.says
    assert does in finding.paste
    patient = only(GPUS, picture, replace(ASKED, unschedulable_seconds=600))
    assert patient.outcome is Outcome.WARNING
    assert "unless an autoscaler adds one" in patient.says


def test_vllm_without_a_gpu_is_told_and_another_engine_is_not() -> None:
    assert only(GPUS, engine(resources=None)).outcome is Outcome.WARNING
    assert is_fine(found(GPUS, engine(resources=None, image="llama.cpp:1")))


TAINT: Json = {"key": "gpu", "value": "yes", "effect": "NoSchedule"}
AFFINITY = {
    "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "pool", "operator": "In", "values": ["h200"]}]}]
        }
    }
}


@pytest.mark.parametrize(
    ("picture", "says", "does"),
    [
        pytest.param(pods(nodeSelector={"pool": "x"}), "nodeSelector pool=x", "label node node-0 pool=x", id="a label"),
        pytest.param(pods(affinity=AFFINITY), "the required node affinity", "describe node", id="an affinity"),
        pytest.param(
            sound(nodes=(node(spec={"taints": [TAINT]}),)), "gpu=yes:NoSchedule of node-0", '"key":"gpu"', id="a taint"
        ),
        pytest.param(sound(nodes=(node(spec={"unschedulable": True}),)), "is cordoned", "uncordon", id="a cordon"),
        pytest.param(
            sound(nodes=(node(status={**node()["status"], "conditions": [{"type": "Ready", "status": "False"}]}),)),
            "is not Ready: node-0", "describe node node-0", id="a node that is not well",
        ),
        pytest.param(engine(resources={"requests": {"memory": "256Gi"}}), "256Gi, and no node", "edit", id="memory"),
    ],
)  # fmt: skip
def test_nodes_that_the_pod_may_not_run_on_are_a_failure(picture: Picture, says: str, does: str) -> None:
    finding = only(NODE, picture)
    assert finding.outcome is Outcome.FAILURE
    assert says in finding.says
    assert does in finding.paste


@pytest.mark.parametrize(
    "toleration",
    [{"operator": "Exists"}, {"key": "gpu", "operator": "Exists"}, {"key": "gpu", "value": "yes"}],
    ids=["all", "the key", "the value"],
)
def test_a_taint_that_is_tolerated_is_fine(toleration: Json) -> None:
    tainted = (node(spec={"taints": [TAINT, {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]}),)
    assert is_fine(found(NODE, replace(pods(tolerations=[toleration]), nodes=tainted)))


def test_a_node_that_will_do_is_named() -> None:
    assert only(NODE, sound(nodes=(node("a", spec={"unschedulable": True}), node("b")))).says == "b can run it"
    assert is_fine(found(NODE, pods(nodeSelector={"pool": "gpu"})))
    assert found(NODE, sound(nodes=(PLAIN,))) == []
    assert only(NODE, sound(nodes=Unseen("no"))).outcome is Outcome.UNKNOWN


def quota(used: str = "0", **hard: str) -> Json:
    told = {name.replace("_", "."): value for name, value in hard.items()}
    return named("q", spec={"hard": told}, status={"used": dict.fromkeys(told, used)})


GPU = "requests.nvidia.com/gpu"


def of_gpus(hard: str, used: str = "0") -> Json:
    return named("q", spec={"hard": {GPU: hard}}, status={"used": {GPU: used}})


@pytest.mark.parametrize(
    ("one", "outcome"),
    [
        pytest.param(of_gpus("0"), Outcome.FAILURE, id="none"),
        pytest.param(of_gpus("2", "2"), Outcome.FAILURE, id="all are taken"),
        pytest.param(of_gpus("2", "1"), Outcome.OK, id="one is left"),
        pytest.param(quota(pods="3", used="3"), Outcome.FAILURE, id="no pod is left"),
        pytest.param(quota(limits_memory="8Gi"), Outcome.FAILURE, id="too little memory"),
        pytest.param(quota(limits_memory="16Gi", cpu="2", services="0"), Outcome.OK, id="just enough"),
        pytest.param({**of_gpus("0"), "spec": {"scopes": ["BestEffort"]}}, Outcome.OK, id="for others"),
    ],
)
def test_a_quota_that_forbids_the_pod_is_a_failure(one: Json, outcome: Outcome) -> None:
    assert only(QUOTA, sound(quotas=(one,))).outcome is outcome


def test_what_an_awake_model_takes_of_a_quota_is_its_own() -> None:
    awake = sound(quotas=(of_gpus("1", "1"),), target=target(replicas=1))
    assert is_fine(found(QUOTA, awake))
    assert f'{{"hard":{{"{GPU}":"2"}}}}' in only(QUOTA, sound(quotas=(of_gpus("1", "1"),))).paste

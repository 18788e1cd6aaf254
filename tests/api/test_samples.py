from __future__ import annotations

import math
from typing import Any

import pytest

from vllm_chill.api.samples import override_of, parse_samples, readings_of, replicas_of
from vllm_chill.core.scaling.override import Override
from vllm_chill.core.scaling.policy import Policy, Rule
from vllm_chill.core.scaling.signals import Aggregation, Metric, Readings, Sample, Signal

QUEUE = Signal(Metric.QUEUE_LENGTH)
TTFT = Signal(Metric.LATENCY, Aggregation.TTFT, 95.0, 60.0)
ITL = Signal(Metric.LATENCY, Aggregation.ITL, 50.0, 60.0)
POLICY = Policy("chat", 1, 9, tuple(Rule(signal, 5, 5) for signal in (QUEUE, TTFT, ITL)))


def readings(moment: dict[str, Any], replicas: int = 2) -> Readings:
    samples, unknown = parse_samples([moment])
    assert not unknown
    return readings_of(samples.moments[0], POLICY, replicas)


def test_replicas_with_what_was_measured_of_them() -> None:
    found = readings(
        {
            "at": 60,
            "held": 7,
            "members": [
                {"queue_length": 4, "age": 20},
                {"ready": False, "queue_length": 9},
                {"ready_since": 50, "gpu_utilization": 90},
            ],
        }
    )
    assert (found.at, found.replicas, found.held) == (60, 2, 7)
    assert [member.ready_since for member in found.members] == [-math.inf, None, 50]
    assert [dict(member.samples) for member in found.members] == [
        {QUEUE: Sample(4, 40)},
        {QUEUE: Sample(9, 60)},
        {},  # the policy has no rule for it
    ]


def test_a_load_is_shared_by_all_replicas() -> None:
    found = readings({"at": 0, "load": {"queue_length": 30}}, replicas=3)
    assert [member.samples[QUEUE].value for member in found.members] == [10, 10, 10]
    assert all(member.ready_since == -math.inf for member in found.members)
    assert readings({"at": 0, "load": {"queue_length": 30}}, replicas=0).members == ()


@pytest.mark.parametrize(
    ("latency", "samples"),
    [
        pytest.param(800, {TTFT: 800, ITL: 800}, id="one value is that of every rule"),
        pytest.param([800, 30], {TTFT: 800, ITL: 30}, id="a list has one for each rule"),
        pytest.param([None, 30], {ITL: 30}, id="null was not measured"),
        pytest.param([800], {TTFT: 800}, id="what the list does not have was not measured"),
        pytest.param(None, {}, id="nothing was measured"),
    ],
)
def test_one_metric_of_several_rules(latency: Any, samples: dict[Signal, float]) -> None:
    found = readings({"at": 10, "target": {"latency": latency, "age": 4}})
    assert found.target == {signal: Sample(value, 6) for signal, value in samples.items()}


def test_replicas_are_those_that_were_decided_unless_they_are_told() -> None:
    samples, _ = parse_samples([{"at": 0, "members": [{}, {}]}, {"at": 1, "replicas": 4}, {"at": 2}])
    first, told, _ = samples.moments
    assert [replicas_of(first, None), replicas_of(told, 9), replicas_of(first, 9)] == [2, 4, 9]
    assert replicas_of(samples.moments[2], None) == 1


def test_an_override() -> None:
    samples, _ = parse_samples([{"at": 5, "override": {"replicas": 4, "by": "alice", "until": 90}}, {"at": 6}])
    assert override_of(samples.moments[0]) == Override(4, "alice", 5, 90)
    assert override_of(samples.moments[1]) is None


MOMENTS = "give a list with a mapping for each moment, such as {at: 0, replicas: 1, held: 5}"
SECONDS = "give a number of seconds"
VALUE = "give a number, or a list with one for each rule of this metric"


@pytest.mark.parametrize(
    ("given", "problems"),
    [
        (None, ["it has no moments; give moments: with a list of them"]),
        ("text", ["it has no moments; give moments: with a list of them"]),
        ({}, [f"moments: it is missing; {MOMENTS}"]),
        ([], ["moments: there is none; give at least one, such as {at: 0, replicas: 1}"]),
        ([{"held": 1}], [f"moments[0].at: it is missing; {SECONDS}"]),
        (
            [{"at": "now", "held": -1}],
            [
                f'moments[0].at: "now" is not accepted; {SECONDS}',
                "moments[0].held: -1 is not accepted; give a number of requests, 0 or more",
            ],
        ),
        (
            [{"at": 0, "members": [{"queue_length": "many"}]}],
            [f'moments[0].members[0].queue_length: "many" is not accepted; {VALUE}'],
        ),
        (
            [{"at": 0, "members": [], "load": {}}],
            ["moments[0].load: there are members too, which have a load of their own; give one of the two"],
        ),
        ([{"at": 5}, {"at": 5}], ["moments[1].at: 5 is not later than 5, the moment before"]),
        (
            {"wall": "2026-01-05T09:00:00", "moments": [{"at": 0}]},
            [
                'wall: "2026-01-05T09:00:00" is not accepted; give a time with its zone, such as '
                "2026-01-05T09:00:00+01:00"
            ],
        ),
    ],
    ids=str,
)  # fmt: skip
def test_everything_that_is_wrong_is_told(given: object, problems: list[str]) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011  (all of its words are compared)
        parse_samples(given)
    assert str(refused.value).splitlines() == problems


def test_what_is_not_known_is_told() -> None:
    _, unknown = parse_samples([{"at": 0, "load": {"queue_lenght": 3}}])
    [told] = unknown
    assert told.startswith("moments[0].load.queue_lenght: there is no such field")

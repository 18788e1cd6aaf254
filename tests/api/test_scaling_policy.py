from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_chill.api.kinds import ANNOTATIONS
from vllm_chill.api.scaling_policy import (
    DEFAULT_RULES,
    ScalingPolicy,
    parse_policy,
    policy_of,
    policy_of_annotations,
    policy_of_model,
    policy_warnings,
)
from vllm_chill.api.scaling_spec import AGGREGATIONS
from vllm_chill.core.catalogue import ModelEntry
from vllm_chill.core.scaling.policy import (
    DOWN,
    UP,
    Fallback,
    Pace,
    Policy,
    Rule,
    Schedule,
    Select,
    Step,
    Unit,
)
from vllm_chill.core.scaling.signals import Aggregation, Metric, Signal
from vllm_chill.core.target import TargetRef
from vllm_chill.errors import InvalidPolicy

Json = dict[str, Any]
ONE_BY_ONE = Pace(300, (Step(Unit.PODS, 1, 300),))

SAMPLE: Json = {
    "apiVersion": "autoscaler.production-stack/v1alpha1",
    "kind": "vLLMScalingPolicy",
    "metadata": {"name": "example-policy"},
    "spec": {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "meta-llama/Llama-2-70b-hf"},
        "minReplicas": 1,
        "maxReplicas": 10,
        "scalingRules": [
            {"metric": "gpu_utilization", "threshold": 75},
            {"metric": "queue_length", "threshold": 10},
            {"metric": "latency", "threshold": 1000},
        ],
    },
}


def obj(**spec: Any) -> Json:
    return {
        "metadata": {"name": "small", "namespace": "ai-apps"},
        "spec": {"scaleTargetRef": {"name": "vllm"}, "maxReplicas": 10, **spec},
    }


def rules(*rules: Json) -> Json:
    return {"scalingRules": [{"metric": "queue_length", "threshold": 10, **rule} for rule in rules]}


def of(**spec: Any) -> Policy:
    return policy_of(parse_policy(obj(**spec)))


def rule_of(**fields: Any) -> Rule:
    [rule] = of(**rules(fields)).rules
    return rule


def problems(given: Any) -> tuple[str, ...]:
    with pytest.raises(InvalidPolicy) as refused:
        parse_policy(given)
    return refused.value.problems


STEP: Json = {"type": "Pods", "value": 2, "periodSeconds": 60}
WORKDAYS: Json = {"start": "0 8 * * mon-fri", "end": "0 18 * * mon-fri", "minReplicas": 3}


class TestPolicy:
    def test_the_sample_is_one(self) -> None:
        assert policy_of(parse_policy(SAMPLE)) == Policy(
            "example-policy",
            1,
            10,
            (
                Rule(Signal(Metric.GPU_UTILIZATION), 75, 75),
                Rule(Signal(Metric.QUEUE_LENGTH), 10, 10),
                Rule(Signal(Metric.LATENCY, Aggregation.TTFT, percentile=95, window_seconds=60), 1000, 1000),
            ),
        )

    def test_one_that_says_little_has_the_defaults(self) -> None:
        assert of() == Policy("small", 0, 10, (Rule(Signal(Metric.QUEUE_LENGTH), 5, 5),), down=ONE_BY_ONE)

    def test_queues_alone_take_replicas_back_one_by_one(self) -> None:
        queues = [{"metric": "queue_length", "threshold": 5}, {"metric": "held_requests", "threshold": 5}]
        assert of(scalingRules=queues).down == ONE_BY_ONE
        assert of(scalingRules=[*queues, {"metric": "running_requests", "threshold": 5}]).down == DOWN
        assert of(scalingRules=[]).down == DOWN
        assert of(behavior={"scaleDown": {"stabilizationWindowSeconds": 9}}).down == Pace(9, ONE_BY_ONE.steps)

    def test_no_rules_are_another_thing_than_rules_left_out(self) -> None:
        assert of(scalingRules=[]).rules == ()
        assert of(scalingRules=None).rules == DEFAULT_RULES

    def test_all_that_can_be_said_is_in_it(self) -> None:
        made = of(
            minReplicas=2,
            tolerance=0.2,
            pollingInterval="1m",
            idleTimeout=600,
            fallback={"replicas": 4, "failureThreshold": 5},
            schedule=[{**WORKDAYS, "timezone": "Europe/Berlin"}, {**WORKDAYS, "end": "0 20 * * *"}],
            paused=True,
        )
        assert made == Policy(
            "small",
            2,
            10,
            DEFAULT_RULES,
            down=ONE_BY_ONE,
            tolerance=0.2,
            polling_seconds=60,
            idle_seconds=600,
            fallback=Fallback(4, 5),
            schedules=(
                Schedule("0 8 * * mon-fri", "0 18 * * mon-fri", "Europe/Berlin", 3),
                Schedule("0 8 * * mon-fri", "0 20 * * *", "UTC", 3),
            ),
            paused=True,
        )

    @pytest.mark.parametrize(
        ("given", "rule"),
        [
            ({"threshold": 10.5}, Rule(Signal(Metric.QUEUE_LENGTH), 10.5, 10.5)),
            ({"target": 6}, Rule(Signal(Metric.QUEUE_LENGTH), 10, 6)),
            ({"aggregation": "max"}, Rule(Signal(Metric.QUEUE_LENGTH, Aggregation.MAX), 10, 10)),
            ({"metric": "held_requests"}, Rule(Signal(Metric.HELD_REQUESTS), 10, 10)),
            (
                {"metric": "latency", "aggregation": "itl", "percentile": 99.9, "window": "5m"},
                Rule(Signal(Metric.LATENCY, Aggregation.ITL, 99.9, 300), 10, 10),
            ),
            ({"metric": "latency", "percentile": 0}, Rule(Signal(Metric.LATENCY, Aggregation.TTFT, 0, 60), 10, 10)),
            ({"metric": "tokens_per_second"}, Rule(Signal(Metric.TOKENS_PER_SECOND, window_seconds=60), 10, 10)),
            (
                {"metric": "promql", "query": "up", "aggregation": "sum"},
                Rule(Signal(Metric.PROMQL, Aggregation.SUM, query="up"), 10, 10),
            ),
        ],
        ids=lambda value: str(value) if isinstance(value, dict) else "",
    )
    def test_a_rule_is_read(self, given: Json, rule: Rule) -> None:
        assert rule_of(**given) == rule

    @pytest.mark.parametrize(
        ("behavior", "up", "down"),
        [
            (None, UP, DOWN),
            ({}, UP, DOWN),
            ({"scaleUp": {}, "scaleDown": {}}, UP, DOWN),
            ({"scaleUp": {"stabilizationWindowSeconds": 60}}, replace(UP, stabilization_seconds=60), DOWN),
            ({"scaleDown": {"stabilizationWindowSeconds": 0}}, UP, replace(DOWN, stabilization_seconds=0)),
            ({"scaleDown": {"selectPolicy": "Disabled"}}, UP, replace(DOWN, select=Select.DISABLED)),
            ({"scaleUp": {"policies": [STEP]}}, Pace(0, (Step(Unit.PODS, 2, 60),)), DOWN),
            (
                {"scaleDown": {"policies": [STEP, {**STEP, "type": "Percent"}], "selectPolicy": "Min"}},
                UP,
                Pace(300, (Step(Unit.PODS, 2, 60), Step(Unit.PERCENT, 2, 60)), Select.MIN),
            ),
        ],
        ids=str,
    )
    def test_a_part_of_the_behavior_that_is_left_out_is_as_hpa_has_it(
        self, behavior: Json | None, up: Pace, down: Pace
    ) -> None:
        made = of(behavior=behavior, scalingRules=[{"metric": "running_requests", "threshold": 5}])
        assert (made.up, made.down) == (up, down)


class TestTarget:
    @pytest.mark.parametrize(
        ("ref", "version"),
        [
            ({}, "apps/v1"),
            ({"kind": "StatefulSet"}, "apps/v1"),
            ({"kind": "VLLMModel"}, "vllm.sir-alfred.io/v1alpha1"),
            ({"kind": "RayCluster", "apiVersion": "ray.io/v1"}, "ray.io/v1"),
            ({"kind": "ReplicationController", "apiVersion": "v1"}, "v1"),
        ],
        ids=str,
    )
    def test_a_kind_is_of_a_group_and_version(self, ref: Json, version: str) -> None:
        target = parse_policy(obj(scaleTargetRef={"name": "vllm", **ref})).spec.scale_target_ref
        assert (target.kind, target.full_api_version) == (ref.get("kind", "Deployment"), version)

    def test_every_field_of_an_object_reference_is_taken(self) -> None:
        ref = {"kind": "Deployment", "namespace": "ai-apps", "name": "vllm", "uid": "1", "apiVersion": "apps/v1"}
        assert parse_policy(obj(scaleTargetRef={**ref, "resourceVersion": "2", "fieldPath": "spec"}))

    def test_nothing_in_another_namespace_is_scaled(self) -> None:
        assert problems(obj(scaleTargetRef={"name": "vllm", "namespace": "kube-system"}, maxReplicas=0)) == (
            "spec.maxReplicas: 0 is not accepted; give a number of replicas, at least 1",
            'spec.scaleTargetRef.namespace: "kube-system" is not the policy\'s own; leave it out, or give ai-apps',
        )


_METRICS = (
    "queue_length, latency, gpu_utilization, kv_cache_usage, running_requests, held_requests, tokens_per_second, promql"
)


class TestProblems:
    @pytest.mark.parametrize(
        ("spec", "problem"),
        [
            ({"minReplicas": 11}, "spec.minReplicas: 11 is more than the 10 of maxReplicas; give at most that"),
            ({"maxReplicas": None}, "spec.maxReplicas: it is missing; give a number of replicas, at least 1"),
            (
                rules({"metric": "queue_lenght"}),
                f'spec.scalingRules[0].metric: "queue_lenght" is not accepted; give one of {_METRICS}',
            ),
            (rules({"threshold": 0}), "spec.scalingRules[0].threshold: 0 is not accepted; give a number above 0"),
            (
                rules({"target": 11}),
                "spec.scalingRules[0].target: 11 is more than the 10 of threshold; give at most that",
            ),
            (
                rules({"metric": "gpu_utilization", "threshold": 101}),
                "spec.scalingRules[0].threshold: 101 percent is never reached; give at most 100",
            ),
            (
                rules({"aggregation": "ttft"}),
                'spec.scalingRules[0].aggregation: "ttft" has no meaning for queue_length; '
                "give one of average, max, sum",
            ),
            (
                rules({"metric": "latency", "aggregation": "max"}),
                'spec.scalingRules[0].aggregation: "max" has no meaning for latency; give one of ttft, e2e, itl',
            ),
            (
                rules({"percentile": 95}),
                "spec.scalingRules[0].percentile: it has no meaning for queue_length; leave it out",
            ),
            (
                rules({"metric": "latency", "percentile": 101}),
                "spec.scalingRules[0].percentile: 101 is not accepted; give a number from 0 to 100",
            ),
            (rules({"window": 60}), "spec.scalingRules[0].window: it has no meaning for queue_length; leave it out"),
            (rules({"query": "up"}), "spec.scalingRules[0].query: it has no meaning for queue_length; leave it out"),
            (
                rules({"metric": "promql"}),
                "spec.scalingRules[0].query: promql needs it; give the expression that Prometheus is asked",
            ),
            (
                rules({}, {"aggregation": "average"}),
                "spec.scalingRules: queue_length is there more than once; give it once",
            ),
            (
                {"scaleTargetRef": {"kind": "RayCluster", "name": "a"}},
                "spec.scaleTargetRef.apiVersion: it is missing, and RayCluster is none of Deployment, StatefulSet, "
                "ReplicaSet, VLLMModel; give its group and version",
            ),
            (
                {"scaleTargetRef": {"kind": "VLLMModel", "name": "a", "namespace": "ai-apps"}},
                "spec.scaleTargetRef.namespace: a VLLMModel is in no namespace; leave it out",
            ),
            (
                {"fallback": {"replicas": 11}},
                "spec.fallback.replicas: 11 is not within minReplicas and maxReplicas; give 1 to 10",
            ),
            (
                {"minReplicas": 2, "fallback": {"replicas": 1}},
                "spec.fallback.replicas: 1 is not within minReplicas and maxReplicas; give 2 to 10",
            ),
            ({"pollingInterval": "500ms"}, 'spec.pollingInterval: "500ms" is too often; give at least 1s'),
            (
                {"idleTimeout": "0h0m"},
                'spec.idleTimeout: "0h0m" is not accepted; give a number of seconds, or a duration such as 90s, 5m or '
                "1h30m",
            ),
            (
                {"schedule": [WORKDAYS, {**WORKDAYS, "timezone": "Mars/Base"}]},
                'spec.schedule[1]: the time zone "Mars/Base" is not known; give one such as Europe/Berlin',
            ),
            (
                {"schedule": [{**WORKDAYS, "start": "0 25 * * *"}]},
                'spec.schedule[0]: start: "0 25 * * *" is not accepted; give a cron expression of 5 fields, such as '
                '"0 8 * * MON-FRI"',
            ),
            (
                {"schedule": [{**WORKDAYS, "minReplicas": 11}]},
                "spec.schedule[0].minReplicas: 11 is more than the 10 of maxReplicas; give at most that",
            ),
            (
                {"behavior": {"scaleUp": {"policies": []}}},
                "spec.behavior.scaleUp.policies: [] is not accepted; give a list of at least one {type: Pods or "
                "Percent, value: NUMBER, periodSeconds: SECONDS}",
            ),
        ],
        ids=lambda value: str(value) if isinstance(value, dict) else "",
    )
    def test_what_cannot_work_is_refused_in_a_sentence(self, spec: Json, problem: str) -> None:
        assert problems(obj(**spec)) == (problem,)

    def test_ten_bad_fields_are_told_each(self) -> None:
        bad = obj(
            minReplicas=-1,
            maxReplicas=0,
            scalingRules=[
                {"metric": "queue", "threshold": "10"},
                {"metric": "promql", "threshold": 0},
                {"metric": "queue_length", "threshold": 10, "percentile": 95, "window": 60},
            ],
            behavior={
                "scaleUp": {"stabilizationWindowSeconds": 3601, "policies": [{**STEP, "type": "pods", "value": 0}]},
                "scaleDown": {"selectPolicy": "max", "policies": [{**STEP, "periodSeconds": 1801}]},
            },
            tolerance=2,
            pollingInterval=0,
            idleTimeout="soon",
            fallback={"replicas": 0},
            schedule=[{"start": "daily", "end": "0 8 * * *", "minReplicas": 0}, {**WORKDAYS, "timezone": "Mars"}],
            paused="yes",
        )
        del bad["spec"]["scaleTargetRef"]
        found = problems({**bad, "kind": "ScalingPolicy"})
        assert [problem.partition(": ")[0] for problem in found] == [
            "kind",
            "spec.scaleTargetRef",
            "spec.minReplicas",
            "spec.maxReplicas",
            "spec.scalingRules[0].metric",
            "spec.scalingRules[0].threshold",
            "spec.scalingRules[1].threshold",
            "spec.scalingRules[2].percentile",
            "spec.scalingRules[2].window",
            "spec.behavior.scaleUp.stabilizationWindowSeconds",
            "spec.behavior.scaleUp.policies[0].type",
            "spec.behavior.scaleUp.policies[0].value",
            "spec.behavior.scaleDown.selectPolicy",
            "spec.behavior.scaleDown.policies[0].periodSeconds",
            "spec.tolerance",
            "spec.pollingInterval",
            "spec.idleTimeout",
            "spec.fallback.replicas",
            "spec.schedule[0].start",
            "spec.schedule[0].minReplicas",
            "spec.schedule[1]",
            "spec.paused",
            "spec.scalingRules[1].query",
        ]

    def test_a_bad_field_is_not_blamed_on_another(self) -> None:
        [problem] = problems(obj(minReplicas=3, maxReplicas=0, fallback={"replicas": 2}))
        assert problem.startswith("spec.maxReplicas: 0")

    def test_what_is_good_by_itself_is_checked_beside_a_bad_field(self) -> None:
        found = problems(obj(minReplicas=11, **rules({"threshold": 0, "query": "up"}, {"metric": "a"})))
        assert [problem.partition(": ")[0] for problem in found] == [
            "spec.scalingRules[0].threshold",
            "spec.scalingRules[1].metric",
            "spec.minReplicas",
            "spec.scalingRules[0].query",
        ]

    def test_the_error_names_the_policy(self) -> None:
        with pytest.raises(InvalidPolicy) as refused:
            parse_policy(obj(maxReplicas=0))
        assert refused.value.name == "small"
        assert refused.value.message.startswith('the scaling policy "small" cannot be used: spec.maxReplicas: 0')


class TestLenience:
    def test_a_field_that_is_null_is_left_out(self) -> None:
        assert of(minReplicas=None, behavior=None, schedule=None, tolerance=None) == of()

    def test_a_field_that_is_not_known_is_let_go_and_told(self) -> None:
        given = obj(maxReplica=3, behavior={"scaleUp": {"tolerance": "0.1"}}, **rules({"treshold": 1}))
        policy = parse_policy(given)
        assert policy_of(policy) == of(**rules({}))
        assert policy_warnings(policy, given) == (
            'spec.maxReplica: there is no such field, and it is ignored; did you mean "maxReplicas"?',
            "spec.behavior.scaleUp.tolerance: there is no such field, and it is ignored",
            'spec.scalingRules[0].treshold: there is no such field, and it is ignored; did you mean "threshold"?',
        )

    def test_a_status_that_cannot_be_read_is_no_obstacle(self) -> None:
        assert parse_policy({**obj(), "status": {"currentReplicas": "many"}}) == parse_policy(obj())
        assert parse_policy({**obj(), "status": {"currentReplicas": 2}}).status.current_replicas == 2

    @pytest.mark.parametrize(
        ("spec", "field"),
        [
            ({"minReplicas": 1, "idleTimeout": "5m"}, "spec.idleTimeout"),
            ({"maxReplicas": 1, **rules({})}, "spec.scalingRules"),
            ({"minReplicas": 3, "schedule": [WORKDAYS]}, "spec.schedule[0]"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_is_without_effect_is_told(self, spec: Json, field: str) -> None:
        [warning] = policy_warnings(parse_policy(obj(**spec)))
        assert warning.startswith(f"{field}: ")


def annotated(**values: str) -> dict[str, str]:
    """Annotations by their names, with _ for -; a metric's as metric__NAME__AGGREGATION."""
    return {
        ANNOTATIONS + (key.replace("__", ".") if key.startswith("metric") else key.replace("_", "-")): value
        for key, value in values.items()
    }


def annotation_problems(**values: str) -> tuple[str, ...]:
    with pytest.raises(InvalidPolicy) as refused:
        policy_of_annotations("vllm", annotated(**values))
    assert refused.value.name == "vllm"
    return tuple(problem.removeprefix(ANNOTATIONS) for problem in refused.value.problems)


class TestAnnotations:
    @pytest.mark.parametrize("values", [{}, {"autoscale": "false"}, {"max_replicas": "4"}], ids=str)
    def test_a_target_that_does_not_ask_has_no_policy(self, values: dict[str, str]) -> None:
        assert policy_of_annotations("vllm", annotated(**values)) is None

    def test_the_least_that_can_be_said(self) -> None:
        assert policy_of_annotations("vllm", annotated(autoscale="true", max_replicas="4")) == Policy(
            "vllm", 0, 4, DEFAULT_RULES, down=ONE_BY_ONE
        )

    def test_all_that_can_be_said(self) -> None:
        made = policy_of_annotations(
            "vllm",
            {
                **annotated(
                    autoscale="true",
                    min_replicas="1",
                    max_replicas="4",
                    metric__queue_length="10",
                    metric__kv_cache_usage__max="80.5",
                    metric__latency="1000",
                    metric__latency__p50="500",
                    metric__promql="3",
                    promql_query="sum(up)",
                    polling_interval="30",
                    idle_timeout="1h",
                    tolerance="0.2",
                    paused="true",
                ),
                "vllm-chill.io/metric.latency.itl.p99.9": "50",
                "vllm-chill.io/start-history": "{}",
                "team": "a",
            },
        )
        assert made == Policy(
            "vllm",
            1,
            4,
            (
                Rule(Signal(Metric.KV_CACHE_USAGE, Aggregation.MAX), 80.5, 80.5),
                Rule(Signal(Metric.LATENCY, Aggregation.TTFT, 95, 60), 1000, 1000),
                Rule(Signal(Metric.LATENCY, Aggregation.ITL, 99.9, 60), 50, 50),
                Rule(Signal(Metric.LATENCY, Aggregation.TTFT, 50, 60), 500, 500),
                Rule(Signal(Metric.PROMQL, query="sum(up)"), 3, 3),
                Rule(Signal(Metric.QUEUE_LENGTH), 10, 10),
            ),
            tolerance=0.2,
            polling_seconds=30,
            idle_seconds=3600,
            paused=True,
        )

    @pytest.mark.parametrize(
        ("values", "problem"),
        [
            ({"autoscale": "yes"}, 'autoscale: "yes" is not accepted; give "true" or "false"'),
            ({"max_replicas": "0"}, "max-replicas: 0 is not accepted; give a number of replicas, at least 1"),
            ({"max_replicas": "many"}, 'max-replicas: "many" is not accepted; give a number of replicas, at least 1'),
            ({"min_replicas": "5"}, "min-replicas: 5 is more than the 4 of max-replicas; give at most that"),
            ({"tolerance": "10%"}, 'tolerance: "10%" is not accepted; give a number from 0 to 1, such as 0.1'),
            (
                {"idle_timeout": "5 min"},
                'idle-timeout: "5 min" is not accepted; give a number of seconds, or a duration such as 90s, 5m or '
                "1h30m",
            ),
            ({"polling_interval": "0.5s"}, 'polling-interval: "0.5s" is too often; give at least 1s'),
            ({"metric__queue": "1"}, f'metric.queue: "queue" is not accepted; give one of {_METRICS}'),
            ({"metric__queue_length": ""}, 'metric.queue_length: "" is not accepted; give a number above 0'),
            (
                {"metric__queue_length__p95": "1"},
                "metric.queue_length.p95: it has no meaning for queue_length; leave it out",
            ),
            (
                {"metric__latency__max": "1"},
                'metric.latency.max: "max" has no meaning for latency; give one of ttft, e2e, itl',
            ),
            (
                {"metric__latency__p101": "1"},
                "metric.latency.p101: 101.0 is not accepted; give a number from 0 to 100",
            ),
            (
                {"metric__latency__p95__ttft": "1"},
                "metric.latency.p95.ttft: there is no such annotation; give metric.NAME, metric.NAME.AGGREGATION or "
                "metric.latency.AGGREGATION.pPERCENTILE",
            ),
            (
                {"metric__latency": "1", "metric__latency__ttft": "2"},
                "metric.*: latency is there more than once; give it once",
            ),
            ({"metric__promql": "1"}, "promql-query: promql needs it; give the expression that Prometheus is asked"),
            (
                {"promql_query": "up"},
                "promql-query: nothing is scaled by it; give its threshold as vllm-chill.io/metric.promql",
            ),
        ],
        ids=lambda value: str(value) if isinstance(value, dict) else "",
    )
    def test_what_cannot_work_is_said_of_the_annotation(self, values: dict[str, str], problem: str) -> None:
        assert annotation_problems(**{"autoscale": "true", "max_replicas": "4", **values}) == (problem,)

    def test_ten_bad_annotations_are_told_each(self) -> None:
        found = annotation_problems(
            autoscale="true",
            min_replicas="-1",
            metric__queue_length="0",
            metric__latency__max="1",
            metric__latency__a__b="1",
            metric__tokens="1",
            promql_query="up",
            polling_interval="0",
            idle_timeout="soon",
            tolerance="2",
            paused="yes",
        )
        assert sorted(problem.partition(": ")[0] for problem in found) == [
            "idle-timeout",
            "max-replicas",
            "metric.latency.a.b",
            "metric.latency.max",
            "metric.queue_length",
            "metric.tokens",
            "min-replicas",
            "paused",
            "polling-interval",
            "promql-query",
            "tolerance",
        ]


_NAMES = [
    *("autoscale", "min-replicas", "max-replicas", "polling-interval", "idle-timeout", "tolerance", "paused"),
    *("promql-query", "metric.", "metric.promql", "metric.latency.p", "metric.latency.p95", "metric.a.b.c", "metric"),
    *(f"metric.{metric}.{one}" for metric, known in AGGREGATIONS.items() for one in known),
]
_TEXTS = ["true", "false", "0", "1", "5", "-1", "0.5", "1e3", "nan", "inf", "5m", "0s", "", " 3 ", "ä", "9" * 30, "up"]


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(_NAMES), st.sampled_from(_TEXTS) | st.text(max_size=8), max_size=6))
def test_of_any_annotations_there_is_a_policy_within_its_bounds_or_a_problem_of_one_of_them(
    values: dict[str, str],
) -> None:
    values = {"autoscale": "true", "max-replicas": "5", **values}
    policy, told = read({f"{ANNOTATIONS}{name}": value for name, value in values.items()})
    if told:
        assert policy is None
        assert all(problem.startswith(ANNOTATIONS) for problem in told)
    elif policy is None:
        assert values["autoscale"] == "false"
    else:
        assert 0 <= policy.min_replicas <= policy.max_replicas
        assert all(0 < rule.target <= rule.threshold for rule in policy.rules)


def read(annotations: dict[str, str]) -> tuple[Policy | None, tuple[str, ...]]:
    try:
        return policy_of_annotations("vllm", annotations), ()
    except InvalidPolicy as refused:
        return None, refused.problems


class TestModel:
    @pytest.mark.parametrize(
        ("least", "most", "has_one"),
        [(0, 1, False), (1, 1, False), (0, 2, True), (1, 4, True), (3, 3, True)],
    )
    def test_a_model_with_more_than_one_replica_has_a_policy(self, least: int, most: int, has_one: bool) -> None:
        ref = TargetRef("ai-apps", "vllm-small")
        entry = ModelEntry("small", ref, "s", "org/small", min_replicas=least, max_replicas=most, idle_seconds=60)
        policy = Policy("small", least, most, (Rule(Signal(Metric.QUEUE_LENGTH), 5, 5),), down=ONE_BY_ONE)
        assert policy_of_model(entry) == (policy if has_one else None)

    def test_one_whose_seats_are_known_is_kept_from_having_them_all_taken(self) -> None:
        ref = TargetRef("ai-apps", "vllm-small")
        policy = policy_of_model(ModelEntry("small", ref, "s", "org/small", max_replicas=4, max_num_seqs=50))
        assert policy is not None
        assert policy.rules == (*DEFAULT_RULES, Rule(Signal(Metric.RUNNING_REQUESTS), 40, 30))
        assert policy.down == DOWN


def test_a_policy_that_was_read_is_the_same_when_it_is_written_and_read_again() -> None:
    policy = parse_policy(SAMPLE)
    written = policy.model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert written["spec"] == SAMPLE["spec"]
    assert ScalingPolicy.model_validate(written).spec == policy.spec

"""The ConfigMaps of the controller: llm-d's as they are, layers, and what becomes of what cannot be used."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.api.variant_config import (
    NAMES,
    ControllerConfig,
    Problem,
    Role,
    by_place,
    place_of,
    read_configs,
)
from vllm_chill.core.saturation.config import DEFAULT, Analyzer, Config
from vllm_chill.core.saturation.fleet import Zero
from vllm_chill.core.saturation.spec import VariantSpec, VariantTarget

Json = dict[str, Any]
MODEL, OTHER, SPACE = "meta/llama-3.1-70b", "org/other", "prod"
UPSTREAM = """
kvCacheThreshold: 0.80
queueLengthThreshold: 5
kvSpareTrigger: 0.1
queueSpareTrigger: 3
"""


def maps(**data: Json) -> dict[str, Json]:
    """ConfigMaps by place; `saturation__prod` is that of the namespace prod."""
    return {place.replace("__", "/"): {"data": said} for place, said in data.items()}


def read(before: ControllerConfig | None = None, **data: Json) -> ControllerConfig:
    made, problems = read_configs(maps(**data), before)
    assert problems == ()
    return made


def problem(before: ControllerConfig | None = None, **data: Json) -> tuple[ControllerConfig, Problem]:
    made, problems = read_configs(maps(**data), before)
    assert len(problems) == 1, problems
    return made, problems[0]


def config(**data: Json) -> Config:
    return read(None, **data).config_for(SPACE, MODEL)


def default(**said: Any) -> Json:
    return {"default": json.dumps(said)}


def spec(**more: Any) -> VariantSpec:
    return VariantSpec(SPACE, "a", VariantTarget("apps/v1", "Deployment", "vllm"), MODEL, **more)


class TestSaturation:
    def test_without_any_there_are_the_defaults(self) -> None:
        assert config() == config(saturation={}) == DEFAULT

    def test_llm_ds_default_is_ours(self) -> None:
        assert config(saturation={"default": UPSTREAM}) == DEFAULT

    def test_llm_ds_second_analyzer_is_that_of_saturation(self) -> None:
        text = f"{UPSTREAM}analyzerName: saturation\nscaleUpThreshold: 0.9\nscaleDownBoundary: 0.6\n"
        assert config(saturation={"default": text}) == replace(
            DEFAULT, analyzer=Analyzer.SATURATION, scale_up_threshold=0.9, scale_down_boundary=0.6
        )

    def test_llm_ds_first_analyzer_has_no_name(self) -> None:
        over = {**default(analyzer="saturation"), "a": json.dumps({"model_id": MODEL, "analyzerName": ""})}
        assert config(saturation=over).analyzer is Analyzer.SPARE_CAPACITY

    def test_every_key_is_read(self) -> None:
        said = default(
            analyzer="saturation",
            kvCacheThreshold=0.9,
            queueLengthThreshold=8,
            kvSpareTrigger=0.2,
            queueSpareTrigger=4,
            maxQueueLength=12,
            scaleUpThreshold=0.8,
            scaleDownBoundary=0.5,
            compat="upstream",
            hysteresis=0.2,
            scaleUpIncrement=2,
            scaleUpPeriod="30s",
            scaleUpStabilization=15,
            scaleDownIncrement=3,
            scaleDownPeriod="2m",
            scaleDownStabilization="7m",
            transitionTimeout="20m",
            enableLimiter=True,
        )
        expected = Config(
            *(Analyzer.SATURATION, 0.9, 8, 0.2, 4, 12, 0.8, 0.5, True, 0.2),
            *(2, 30, 15, 3, 120, 420, 1200, True),
        )
        assert config(saturation=said) == expected
        assert not {name for name in Config.__slots__ if getattr(expected, name) == getattr(DEFAULT, name)}

    def test_numbers_and_switches_may_be_in_quotes_as_templates_leave_them(self) -> None:
        said = default(kvCacheThreshold="0.9", scaleUpIncrement="2", enableLimiter="True", scaleUpPeriod="45")
        made = config(saturation=said)
        assert (made.kv_cache_threshold, made.scale_up_increment, made.enable_limiter) == (0.9, 2, True)
        assert made.scale_up_period == 45

    def test_limited_mode_is_the_limiter_where_nothing_else_says_it(self) -> None:
        main = {"WVA_LIMITED_MODE": "true"}
        assert config(main=main).enable_limiter
        assert not config(main=main, saturation=default(enableLimiter=False)).enable_limiter

    @pytest.mark.parametrize(
        ("said", "words"),
        [
            ({"kvCacheThreshold": 1.1}, "kvCacheThreshold: 1.1 is not accepted; give a number from 0 to 1"),
            ({"kvSpareTrigger": -0.1}, "kvSpareTrigger: -0.1 is not accepted; give a number from 0 to 1"),
            ({"queueLengthThreshold": -1}, "queueLengthThreshold: -1 is not accepted; give a number, 0 or more"),
            ({"queueSpareTrigger": "few"}, 'queueSpareTrigger: "few" is not accepted; give a number, 0 or more'),
            ({"kvCacheThreshold": True}, "kvCacheThreshold: true is not accepted; give a number from 0 to 1"),
            ({"scaleUpThreshold": 0}, "scaleUpThreshold: 0 is not accepted; give a number above 0, at most 1"),
            ({"scaleDownBoundary": 1.5}, "scaleDownBoundary: 1.5 is not accepted; give a number above 0, at most 1"),
            ({"maxQueueLength": 0}, "maxQueueLength: 0 is not accepted; give a number above 0"),
            ({"scaleUpIncrement": 0}, "scaleUpIncrement: 0 is not accepted; give a whole number, at least 1"),
            ({"scaleUpIncrement": 1.5}, "scaleUpIncrement: 1.5 is not accepted; give a whole number, at least 1"),
            ({"enableLimiter": 2}, "enableLimiter: 2 is not accepted; give true or false"),
            (
                {"scaleDownPeriod": "0s"},
                'scaleDownPeriod: "0s" is not accepted; give a number of seconds, or a duration such as 90s, 5m or '
                "1h30m",
            ),
            (
                {"transitionTimeout": "999999999d999999999d"},
                'transitionTimeout: "999999999d999999999d" is not accepted; give a number of seconds, or a duration '
                "such as 90s, 5m or 1h30m",
            ),
            ({"analyzer": "v2"}, 'analyzer: "v2" is not accepted; give saturation or spare-capacity'),
            ({"analyzerName": "throughput"}, 'analyzerName: "throughput" is not accepted; give "" or saturation'),
            ({"compat": "llm-d"}, 'compat: "llm-d" is not accepted; give none or upstream'),
            (
                {"analyzer": "spare-capacity", "analyzerName": "saturation"},
                "analyzerName: it means saturation, and analyzer is spare-capacity; leave it out",
            ),
            (
                {"kvCacheThreshold": 0.05},
                "kvCacheThreshold: 0.05 is less than the 0.1 of kvSpareTrigger; give at least that",
            ),
            (
                {"queueLengthThreshold": 2},
                "queueLengthThreshold: 2 is less than the 3 of queueSpareTrigger; give at least that",
            ),
            (
                {"analyzer": "saturation", "scaleUpThreshold": 0.7},
                "scaleUpThreshold: 0.7 is not more than the 0.7 of scaleDownBoundary; give more than that",
            ),
        ],
    )
    def test_what_cannot_be_is_told_and_does_not_count(self, said: Json, words: str) -> None:
        made, told = problem(saturation=default(**said))
        assert told == Problem("saturation", "default", f"{words}; until then it does not count")
        assert made.config_for(SPACE, MODEL) == DEFAULT

    @pytest.mark.parametrize(
        "said",
        [
            {"kvCacheThreshold": 0.1},
            {"kvCacheThreshold": 1, "kvSpareTrigger": 1},
            {"queueLengthThreshold": 3},
            {"queueLengthThreshold": 0, "queueSpareTrigger": 0},
            {"scaleUpThreshold": 0.5},
            {"analyzer": "saturation", "scaleUpThreshold": 1, "scaleDownBoundary": 0.99},
            {"hysteresis": 0, "scaleUpStabilization": "0s", "scaleDownStabilization": 0},
        ],
    )
    def test_what_is_just_good_is_taken(self, said: Json) -> None:
        assert config(saturation=default(**said)) != DEFAULT

    def test_several_mistakes_of_one_entry_are_one_problem(self) -> None:
        _, told = problem(saturation=default(kvCacheThreshold=2, scaleUpIncrement="x"))
        assert told.text == (
            "kvCacheThreshold: 2 is not accepted; give a number from 0 to 1; "
            'scaleUpIncrement: "x" is not accepted; give a whole number, at least 1; until then it does not count'
        )

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("a: [", "it is not YAML in line "),
            ("kvCacheThreshold: .nan", "kvCacheThreshold: NaN is not accepted; give a number from 0 to 1"),
            ("a: b: c", "it is not YAML in line 1: "),
            ("a: \x07", "it is not YAML: it has characters"),
            ("- 1", "it is no mapping; give model_id, namespace, analyzer and so on"),
            ("0.8", "it is no mapping; give model_id, namespace, analyzer and so on"),
            ("a: &x [1]\nb: *x", "it has a reference such as *name; write out what it stands for"),
            ("[" * 30 + "]" * 30, "it is more than 20 levels deep"),
            ("#" * 65537, "it is longer than 64 KiB"),
            ("kvCacheThreshold: " + "9" * 5000, "it has a date that there is not, or a number that is too long; put "),
            ("kvCacheThreshold: 2026-02-31", "it has a date that there is not, or a number that is too long; put it "),
            ("kvCacheThreshold: " + "9" * 4000, "kvCacheThreshold: 9999"),
            ("kvCacheThreshold: {2026-01-01: [2026-01-02]}", "kvCacheThreshold: "),
            ("? [a]\n: b", "it is not YAML"),
        ],
    )
    def test_what_is_no_entry_is_told(self, text: str, words: str) -> None:
        made, told = problem(saturation={"default": text})
        assert told.text.startswith(words)
        assert not told.warning
        assert made.config_for(SPACE, MODEL) == DEFAULT

    def test_a_value_that_stands_by_itself_is_told_where_to_put_it(self) -> None:
        _, told = problem(saturation={"kvCacheThreshold": "0.9"})
        assert str(told) == (
            "kvCacheThreshold: it stands by itself; put it into a key, as default: 'kvCacheThreshold: …'; until then "
            "it does not count"
        )

    def test_a_key_without_a_value_is_one_that_is_left_out(self) -> None:
        assert config(saturation={"default": "kvCacheThreshold:\nhysteresis: 0.2\n"}).kv_cache_threshold == 0.8
        assert read(classes={"a": "{priority: 1, data: }"}).priority_of(SPACE, MODEL) == 100

    def test_an_entry_that_says_nothing_changes_nothing(self) -> None:
        assert config(saturation={"default": "", "a": f"model_id: {MODEL}"}) == DEFAULT

    def test_a_key_that_is_not_known_is_told_and_the_rest_counts(self) -> None:
        made, told = problem(saturation=default(scale_up_threshold=0.9, queueSpareTrigger=2))
        assert told == Problem(
            "saturation",
            "default",
            'scale_up_threshold: there is no such field, and it is ignored; did you mean "scaleUpThreshold"?',
            warning=True,
        )
        assert made.config_for(SPACE, MODEL) == replace(DEFAULT, queue_spare_trigger=2)


class TestLayers:
    LAYERED: ClassVar[Json] = {
        "default": "{queueLengthThreshold: 10, queueSpareTrigger: 1, hysteresis: 0.5}",
        "model": f"{{model_id: {MODEL}, queueSpareTrigger: 2, hysteresis: 0.4}}",
        "in-prod": f"{{model_id: {MODEL}, namespace: {SPACE}, hysteresis: 0.3}}",
    }

    def of(self, made: ControllerConfig, namespace: str, model: str) -> tuple[float, float, float]:
        found = made.config_for(namespace, model)
        return found.queue_length_threshold, found.queue_spare_trigger, found.hysteresis

    def test_an_entry_counts_over_the_default_and_one_for_a_namespace_over_both(self) -> None:
        made = read(saturation=self.LAYERED)
        assert self.of(made, SPACE, MODEL) == (10, 2, 0.3)
        assert self.of(made, "dev", MODEL) == (10, 2, 0.4)
        assert self.of(made, SPACE, OTHER) == (10, 1, 0.5)

    def test_the_order_of_keys_does_not_matter(self) -> None:
        turned = dict(reversed([(f"{10 - n}", text) for n, text in enumerate(self.LAYERED.values()) if n]))
        made = read(saturation={**turned, "default": self.LAYERED["default"]})
        assert self.of(made, SPACE, MODEL) == (10, 2, 0.3)

    def test_a_namespaces_own_counts_over_all_of_it_and_leaves_the_rest(self) -> None:
        own = {"default": "hysteresis: 0.2", "a": f"{{model_id: {OTHER}, queueSpareTrigger: 0}}"}
        made = read(saturation=self.LAYERED, saturation__prod=own)
        assert self.of(made, SPACE, MODEL) == (10, 2, 0.2)
        assert self.of(made, SPACE, OTHER) == (10, 0, 0.2)
        assert self.of(made, "dev", OTHER) == (10, 1, 0.5)

    def test_a_namespaces_own_is_about_no_other(self) -> None:
        made, told = problem(saturation__prod={"a": f"{{model_id: {MODEL}, namespace: dev, hysteresis: 0.2}}"})
        assert told.text.startswith(
            "namespace: dev is another than that of the ConfigMap; leave it out, or give prod; "
        )
        assert made.config_for("dev", MODEL) == made.config_for(SPACE, MODEL) == DEFAULT

    def test_an_entry_needs_its_model(self) -> None:
        _, told = problem(saturation={"a": "{hysteresis: 0.2}"})
        assert told.text.startswith("model_id: it is missing; give the model's name, or call the key default for all")

    def test_the_default_has_no_model(self) -> None:
        made, told = problem(saturation={"default": f"{{model_id: {MODEL}, hysteresis: 0.2}}"})
        assert told.warning
        assert made.config_for(SPACE, OTHER).hysteresis == 0.2

    def test_of_two_entries_about_the_same_the_first_by_its_key_counts(self) -> None:
        entries = {"b": f"{{model_id: {MODEL}, hysteresis: 0.2}}", "a": f"{{model_id: {MODEL}, hysteresis: 0.3}}"}
        made, told = problem(saturation=entries)
        assert told == Problem("saturation", "b", "it is about the same as a, which counts; delete one")
        assert made.config_for(SPACE, MODEL).hysteresis == 0.3

    def test_an_entry_that_does_not_fit_the_default_is_left_out_where_it_does_not(self) -> None:
        entries = {"default": "kvSpareTrigger: 0.3", "a": f"{{model_id: {MODEL}, kvCacheThreshold: 0.2}}"}
        made, told = problem(saturation=entries)
        assert (told.key, told.text) == (
            "a",
            "kvCacheThreshold: 0.2 is less than the 0.3 of kvSpareTrigger; give at least that; until then it does not "
            "count",
        )
        assert made.config_for(SPACE, MODEL) == made.config_for(SPACE, OTHER) == replace(DEFAULT, kv_spare_trigger=0.3)

    def test_a_default_of_a_namespace_that_fits_all_but_one_model_counts_for_the_others(self) -> None:
        entries = {"a": f"{{model_id: {MODEL}, kvCacheThreshold: 0.2}}"}
        made, told = problem(saturation=entries, saturation__prod={"default": "kvSpareTrigger: 0.3"})
        assert (told.place, told.key) == ("saturation/prod", "default")
        assert made.config_for(SPACE, MODEL) == replace(DEFAULT, kv_cache_threshold=0.2)
        assert made.config_for(SPACE, OTHER) == replace(DEFAULT, kv_spare_trigger=0.3)


class TestReload:
    def test_a_bad_entry_is_what_it_last_was(self) -> None:
        first = read(saturation={**default(hysteresis=0.2), "a": f"{{model_id: {MODEL}, hysteresis: 0.3}}"})
        second, told = problem(
            first, saturation={**default(hysteresis=0.4), "a": f"{{model_id: {MODEL}, hysteresis: x}}"}
        )
        assert (told.key, told.text.rpartition("; ")[2]) == ("a", "what it was before stays in force")
        assert second.config_for(SPACE, MODEL).hysteresis == 0.3
        assert second.config_for(SPACE, OTHER).hysteresis == 0.4

    def test_so_is_one_that_no_longer_fits(self) -> None:
        first = read(saturation=default(kvCacheThreshold=0.9))
        second, told = problem(first, saturation=default(kvCacheThreshold=0.05))
        assert told.text.endswith("; what it was before stays in force")
        assert second.config_for(SPACE, MODEL).kv_cache_threshold == 0.9

    def test_it_stays_for_as_long_as_the_mistake_does(self) -> None:
        made = read(saturation=default(hysteresis=0.2))
        for _ in range(3):
            made, _told = problem(made, saturation=default(hysteresis=7))
            assert made.config_for(SPACE, MODEL).hysteresis == 0.2

    def test_a_key_that_is_gone_is_gone_and_so_is_a_map(self) -> None:
        first = read(saturation=default(hysteresis=0.2), zero=default(enable_scale_to_zero=True), main={})
        assert read(first, saturation={}).config_for(SPACE, MODEL) == DEFAULT
        assert read(first).zero_for(SPACE, MODEL) == Zero()

    def test_every_role_has_its_own_last_good_value(self) -> None:
        first = read(
            main={"GLOBAL_OPT_INTERVAL": "45s"},
            zero=default(enable_scale_to_zero=True, retention_period="15m"),
            costs={"H100": "50"},
            classes={"a": "{priority: 1, data: [{model: org/other}]}"},
            saturation__prod=default(hysteresis=0.2),
        )
        second, problems = read_configs(
            maps(
                main={"GLOBAL_OPT_INTERVAL": "often"},
                zero=default(enable_scale_to_zero="perhaps"),
                costs={"H100": "much"},
                classes={"a": "{priority: high}"},
                saturation__prod=default(hysteresis=2),
            ),
            first,
        )
        assert second == first
        assert [(one.place, one.key) for one in problems] == [
            ("zero", "default"),
            ("saturation/prod", "default"),
            ("main", "GLOBAL_OPT_INTERVAL"),
            ("costs", "H100"),
            ("classes", "a"),
        ]
        assert all(one.text.endswith("; what it was before stays in force") for one in problems)


class TestZero:
    def test_it_is_off_unless_something_says_it(self) -> None:
        assert read().zero_for(SPACE, MODEL) == Zero(enabled=False, retention_seconds=600.0)
        assert read(main={"WVA_SCALE_TO_ZERO": "true"}).zero_for(SPACE, MODEL).enabled

    def test_llm_ds_map_is_read(self) -> None:
        made = read(
            zero={
                "default": "enable_scale_to_zero: true\nretention_period: 15m\n",
                "llama": f"model_id: {MODEL}\nenable_scale_to_zero: false\n",
                "llama-prod": f"model_id: {MODEL}\nnamespace: {SPACE}\nretention_period: 1h\n",
            },
            zero__dev={"default": "enable_scale_to_zero: false"},
        )
        assert made.zero_for(SPACE, OTHER) == Zero(enabled=True, retention_seconds=900)
        assert made.zero_for("test", MODEL) == Zero(enabled=False, retention_seconds=900)
        assert made.zero_for(SPACE, MODEL) == Zero(enabled=False, retention_seconds=3600)
        assert not made.zero_for("dev", OTHER).enabled

    def test_what_variants_say_comes_first(self) -> None:
        made = read(zero=default(enable_scale_to_zero=True))
        on, off = spec(scale_to_zero=True, retention_seconds=60.0), spec(scale_to_zero=False, retention_seconds=90.0)
        assert made.zero_for(SPACE, MODEL, spec()) == Zero(enabled=True, retention_seconds=600)
        assert read().zero_for(SPACE, MODEL, on, spec()) == Zero(enabled=True, retention_seconds=60)
        assert made.zero_for(SPACE, MODEL, on, off) == Zero(enabled=False, retention_seconds=90)

    @pytest.mark.parametrize("period", ["0s", "-5m", "soon"])
    def test_a_period_that_is_none_is_told(self, period: str) -> None:
        _, told = problem(zero=default(retention_period=period))
        assert told.text.startswith(f'retention_period: "{period}" is not accepted; give a number of seconds, or a ')


class TestCosts:
    def test_a_cost_is_a_number_or_has_more_said_of_it(self) -> None:
        made = read(
            costs={
                "A100": "40.0",
                "H100": '"80"',
                "L4": '{"device": "NVIDIA-L4", "cost": "5.5"}',
                "T4": "# cheap\ncost: 2\n",
            }
        )
        assert made.costs == {"A100": 40.0, "H100": 80.0, "L4": 5.5, "NVIDIA-L4": 5.5, "T4": 2.0}

    def test_a_replica_costs_what_it_says_or_what_its_accelerators_do_or_ten(self) -> None:
        made = read(costs={"H100": "50"})
        assert made.cost_of(spec(cost=7.0), "H100", 4) == 7
        assert made.cost_of(spec(), "H100", 4) == 200
        assert made.cost_of(spec(), "H100") == 50
        assert made.cost_of(spec(), "A100", 4) == made.cost_of(spec(), "") == 10

    @pytest.mark.parametrize("text", ["-1", "much", "[1]", "true", "{device: a}", ".inf", ".nan", ""])
    def test_what_is_no_cost_is_told(self, text: str) -> None:
        made, told = problem(costs={"H100": text})
        assert (told.place, told.key) == ("costs", "H100")
        assert made.costs == {}


class TestClasses:
    UPSTREAM: ClassVar[Json] = {
        "premium.yaml": f"""
            name: Premium
            priority: 1
            data:
              - model: default/default
                slo-tpot: 24
                slo-ttft: 500
              - model: {MODEL}
                slo-tpot: 80
                slo-ttft: 500
        """,
        "freemium.yaml": "{name: Freemium, priority: 10, data: [{model: org/other, slo-tpot: 200, slo-ttft: 2000}]}",
    }

    def test_llm_ds_classes_say_whose_turn_it_is(self) -> None:
        made = read(classes=self.UPSTREAM)
        assert [made.priority_of(SPACE, model) for model in (MODEL, OTHER, "org/unknown")] == [1, 10, 100]

    def test_what_is_promised_is_kept(self) -> None:
        first = read(classes=self.UPSTREAM).classes["premium.yaml"]
        assert (first.name, first.data[1].slo_tpot, first.data[1].slo_ttft) == ("Premium", 80, 500)

    def test_a_model_of_two_classes_is_of_the_first_by_its_key(self) -> None:
        made, told = problem(classes={**self.UPSTREAM, "z": f"{{priority: 0, data: [{{model: {MODEL}}}]}}"})
        assert told == Problem("classes", "z", f"data: {MODEL} is in premium.yaml too, which counts; delete one")
        assert made.priority_of(SPACE, MODEL) == 1


MAIN: Json = {
    "PROMETHEUS_BASE_URL": "https://prometheus:9090",
    "PROMETHEUS_BEARER_TOKEN": "secret",
    "PROMETHEUS_TOKEN_PATH": "/var/run/token",
    "PROMETHEUS_TLS_INSECURE_SKIP_VERIFY": "true",
    "PROMETHEUS_CA_CERT_PATH": "/ca",
    "PROMETHEUS_CLIENT_CERT_PATH": "/cert",
    "PROMETHEUS_CLIENT_KEY_PATH": "/key",
    "PROMETHEUS_SERVER_NAME": "prometheus",
    "GLOBAL_OPT_INTERVAL": "60s",
    "WVA_SCALE_TO_ZERO": "false",
    "WVA_LIMITED_MODE": "true",
    "WVA_NODE_SELECTOR": "pool=gpu",
    "SCALE_FROM_ZERO_ENGINE_MAX_CONCURRENCY": "10",
    "EPP_METRIC_READER_BEARER_TOKEN": "secret",
    "PROMETHEUS_METRICS_CACHE_TTL": "30s",
    "PROMETHEUS_METRICS_CACHE_CLEANUP_INTERVAL": "1m",
    "PROMETHEUS_METRICS_CACHE_FETCH_INTERVAL": "30s",
    "PROMETHEUS_METRICS_CACHE_FRESH_THRESHOLD": "1m",
    "PROMETHEUS_METRICS_CACHE_STALE_THRESHOLD": "2m",
    "PROMETHEUS_METRICS_CACHE_UNAVAILABLE_THRESHOLD": "5m",
}


class TestMain:
    def test_every_key_of_llm_ds_is_known_as_keys_and_as_a_file(self) -> None:
        plain, file = read(main=MAIN).main, read(main={"config.yaml": json.dumps(MAIN)}).main
        assert plain == file
        assert plain.model_dump(by_alias=True).keys() == MAIN.keys()
        assert None not in plain.model_dump().values()
        assert (plain.interval_seconds, plain.gone_seconds, plain.from_zero_concurrency) == (60, 300, 10)
        assert (plain.prometheus_tls_insecure_skip_verify, plain.scale_to_zero) == (True, False)

    def test_a_secret_is_not_shown(self) -> None:
        assert "secret" not in repr(read(main=MAIN))

    def test_what_is_not_given_is_not_set(self) -> None:
        made = read(main={"WVA_NODE_SELECTOR": "", "config.yaml": "GLOBAL_OPT_INTERVAL:\nWVA_SCALE_TO_ZERO: true\n"})
        assert made.main.model_dump(exclude_none=True) == {"scale_to_zero": True}

    def test_a_key_counts_over_the_file(self) -> None:
        made = read(main={"config.yaml": "{GLOBAL_OPT_INTERVAL: 30s}", "GLOBAL_OPT_INTERVAL": "45s"})
        assert made.main.interval_seconds == 45

    def test_a_key_that_is_not_known_is_told(self) -> None:
        made, told = problem(main={"GLOBAL_OPTIM_INTERVAL": "30s", "WVA_SCALE_TO_ZERO": "true"})
        assert told == Problem(
            "main",
            "GLOBAL_OPTIM_INTERVAL",
            'there is no such key, and it is ignored; did you mean "GLOBAL_OPT_INTERVAL"?',
            warning=True,
        )
        assert made.main.scale_to_zero

    def test_a_bad_value_is_told_and_the_others_count(self) -> None:
        made, told = problem(main={**MAIN, "PROMETHEUS_BASE_URL": "prometheus:9090"})
        assert str(told) == (
            'PROMETHEUS_BASE_URL: "prometheus:9090" is not accepted; give a URL, such as https://prometheus:9090; '
            "until then it does not count"
        )
        assert made.main.prometheus_base_url is None
        assert made.main.interval_seconds == 60

    def test_a_file_that_is_none_leaves_everything_as_it_was_and_shows_nothing_of_it(self) -> None:
        first = read(main={"config.yaml": json.dumps(MAIN)})
        second, told = problem(first, main={"config.yaml": "PROMETHEUS_BEARER_TOKEN: secret: secret"})
        assert second == first
        assert told.key == "config.yaml"
        assert "secret" not in told.text

    def test_fresh_is_no_longer_than_known(self) -> None:
        first = read(main={"PROMETHEUS_METRICS_CACHE_FRESH_THRESHOLD": "2m"})
        second, told = problem(first, main={"PROMETHEUS_METRICS_CACHE_FRESH_THRESHOLD": "6m"})
        assert str(told) == (
            "PROMETHEUS_METRICS_CACHE_FRESH_THRESHOLD: 360 seconds are more than the 300 of "
            "PROMETHEUS_METRICS_CACHE_UNAVAILABLE_THRESHOLD; give at most that; what it was before stays in force"
        )
        assert second.main.fresh_seconds == 120


def config_map(name: str, namespace: str = "wva", **data: str) -> Json:
    return {"metadata": {"name": name, "namespace": namespace}, "data": data}


class TestPlaces:
    @pytest.mark.parametrize(
        ("role", "name"), [(role, name) for role, names in NAMES.items() for name in names], ids=lambda one: str(one)
    )
    def test_each_role_is_known_by_every_name(self, role: Role, name: str) -> None:
        item = config_map(name)
        assert by_place([item, config_map("kube-root-ca.crt")], "wva") == ({place_of(role): item}, ())

    def test_a_namespace_has_its_own_of_two_roles_only(self) -> None:
        own = [config_map(name, SPACE) for names in NAMES.values() for name in names[:1]]
        found, problems = by_place(own, "wva")
        assert found.keys() == {"saturation/prod", "zero/prod"}
        assert problems == ()

    def test_of_two_for_the_same_the_first_name_counts(self) -> None:
        items = [config_map("wva-saturation-scaling-config"), config_map("saturation-scaling-config")]
        found, problems = by_place(items, "wva")
        assert found == {"saturation": items[1]}
        assert problems == (
            Problem(
                "saturation",
                "",
                "wva-saturation-scaling-config is ignored, as saturation-scaling-config is there too; delete one of "
                "them",
                warning=True,
            ),
        )

    def test_names_can_be_given(self) -> None:
        item = config_map("release-variantautoscaling-config")
        names = {**NAMES, Role.MAIN: ("release-variantautoscaling-config",)}
        assert by_place([item, config_map("wva-configmap")], "wva", names)[0] == {"main": item}


_TEXTS = st.one_of(
    st.text(max_size=20),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(
                    ["model_id", "namespace", "kvCacheThreshold", "cost", "priority", "data", "model", "x"]
                ),
                inner,
                max_size=3,
            )
        ),
        max_leaves=6,
    ).map(json.dumps),
)
_DATA = st.dictionaries(st.sampled_from(["default", "a", "b", "config.yaml", "WVA_SCALE_TO_ZERO"]), _TEXTS, max_size=3)
_PLACES = st.sampled_from([*Role, "saturation/prod", "zero/prod"])


@given(st.dictionaries(_PLACES, _DATA), st.dictionaries(_PLACES, _DATA))
def test_whatever_is_in_them_is_read_or_told(first: dict[str, Json], second: dict[str, Json]) -> None:
    before, _ = read_configs({place: {"data": data} for place, data in first.items()})
    made, problems = read_configs({place: {"data": data} for place, data in second.items()}, before)
    again, told = read_configs({place: {"data": data} for place, data in second.items()}, made)
    assert again == made
    assert [(one.place, one.key, one.warning) for one in told] == [
        (one.place, one.key, one.warning) for one in problems
    ]
    for one in problems:
        assert one.text
        assert one.place in second
    for model in (MODEL, "a"):
        found = made.config_for(SPACE, model)
        assert found.kv_cache_threshold >= found.kv_spare_trigger
        assert made.zero_for(SPACE, model).retention_seconds > 0
        assert made.priority_of(SPACE, model) >= 0
        assert made.cost_of(spec(), "a") >= 0

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_chill.core.saturation.analysis import Analysis
from vllm_chill.core.saturation.decision import ModelDecision, Reason, VariantDecision
from vllm_chill.core.saturation.fleet import Fleet, Variant
from vllm_chill.core.saturation.limit import limit

Wish = tuple[Fleet, ModelDecision]


def wish(
    model: str, *variants: tuple[Variant, int], priority: int = 0, slack: float = 0.0, namespace: str = "prod"
) -> Wish:
    """A model of which each variant is to have so many replicas."""
    decided = {
        variant.key: VariantDecision(variant.key, 0.0, variant.replicas, number, Reason.SATURATED, ())
        for variant, number in variants
    }
    fleet = Fleet(namespace, model, tuple(variant for variant, _ in variants), priority=priority)
    return fleet, ModelDecision(namespace, model, Analysis(1.0, 0.0, "", slack=slack), decided)


def on(accelerator: str, key: str, replicas: int = 0, gpus: int = 1, cost: float = 10.0) -> Variant:
    return Variant(key, cost, accelerator, replicas, gpus=gpus)


def numbers(decisions: Sequence[ModelDecision]) -> list[dict[str, int]]:
    return [{key: one.replicas for key, one in decision.variants.items()} for decision in decisions]


class TestLimiting:
    def test_growth_is_whole_replicas(self) -> None:
        [decision] = limit([wish("chat", (on("H100", "a", 1, gpus=2), 4))], {"H100": 5})
        one = decision.variants["a"]
        assert (one.replicas, one.reason) == (3, Reason.LIMITED)
        assert one.words == "2 of 3 more replicas, for 5 H100 are free and it needs 2 for each replica"

    def test_what_fits_is_left_as_it_was(self) -> None:
        before = wish("chat", (on("H100", "a", 1), 4))
        assert limit([before], {"H100": 3}) == (before[1],)

    def test_each_accelerator_for_itself(self) -> None:
        before = wish("chat", (on("H100", "a"), 2), (on("A100", "b"), 2))
        assert numbers(limit([before], {"H100": 1, "A100": 9})) == [{"a": 1, "b": 2}]

    def test_shrinking_passes_and_what_it_frees_is_not_there_yet(self) -> None:
        before = [wish("chat", (on("H100", "a", 4), 1)), wish("code", (on("H100", "b", 1), 3))]
        assert numbers(limit(before, {"H100": 1})) == [{"a": 1}, {"b": 2}]

    def test_more_gpus_in_use_than_there_are_is_none_free(self) -> None:
        assert numbers(limit([wish("chat", (on("H100", "a", 1), 2))], {"H100": -3})) == [{"a": 1}]

    def test_what_was_asked_for_and_has_no_node_yet_takes_what_is_free(self) -> None:
        coming = replace(on("H100", "a", 2, gpus=2), unplaced=1)
        assert numbers(limit([wish("chat", (coming, 4))], {"H100": 5})) == [{"a": 3}]
        others = wish("code", (replace(on("H100", "b", 9), unplaced=7), 9))
        assert numbers(limit([others, wish("chat", (on("H100", "a", 2), 4))], {"H100": 5})) == [{"b": 9}, {"a": 2}]

    def test_without_gpus_none_are_needed(self) -> None:
        before = wish("chat", (on("H100", "a", gpus=0), 2))
        assert limit([before], {"H100": 0}) == (before[1],)

    def test_an_accelerator_that_is_not_known_or_not_counted_is_said_and_not_limited(self) -> None:
        [decision] = limit([wish("chat", (on("", "a"), 2), (on("TPU", "b"), 2))], {"H100": 0})
        assert [one.replicas for one in decision.variants.values()] == [2, 2]
        assert [one.words for one in decision.variants.values()] == [
            "not limited, for its accelerator is not known",
            "not limited, for no node has a TPU that is counted",
        ]

    def test_a_variant_that_has_no_decision_is_no_matter(self) -> None:
        fleet, decision = wish("chat", (on("H100", "a"), 2))
        other = Fleet("prod", "chat", (*fleet.variants, on("H100", "new")))
        assert numbers(limit([(other, decision)], {"H100": 1})) == [{"a": 1}]


class TestTheTurn:
    def test_a_lower_number_comes_first(self) -> None:
        before = [
            wish("free", (on("H100", "a"), 2), priority=10),
            wish("paid", (on("H100", "b"), 2), priority=1),
        ]
        assert numbers(limit(before, {"H100": 3})) == [{"a": 1}, {"b": 2}]

    def test_then_the_least_slack_then_the_cost_then_the_key(self) -> None:
        before = [
            wish("roomy", (on("H100", "a", cost=1.0), 1), slack=2.0),
            wish("tight", (on("H100", "d", cost=9.0), 1), (on("H100", "c"), 1), (on("H100", "b"), 1), slack=0.5),
        ]
        granted = [numbers(limit(before, {"H100": count})) for count in range(5)]
        order = [
            key
            for less, more in pairwise(granted)
            for one, other in zip(less, more, strict=True)
            for key in one
            if other[key] > one[key]
        ]
        assert order == ["d", "b", "c", "a"]

    def test_what_is_left_is_kept_for_the_higher_priority(self) -> None:
        """Or the small ones of a lower priority took each GPU that comes free, and eight at a time never were."""
        before = [
            wish("large", (on("H100", "a", gpus=8), 1), priority=1),
            wish("small", (on("H100", "b"), 2), priority=2),
        ]
        large, small = limit(before, {"H100": 6})
        assert (large.variants["a"].replicas, small.variants["b"].replicas) == (0, 0)
        assert small.variants["b"].words.endswith("the 6 H100 that are free are kept for a model of a higher priority")

    def test_within_a_priority_what_is_left_is_used(self) -> None:
        before = [wish("large", (on("H100", "a", gpus=8), 1)), wish("small", (on("H100", "b"), 2), slack=1.0)]
        assert numbers(limit(before, {"H100": 6})) == [{"a": 0}, {"b": 2}]


@st.composite
def wishes(draw: st.DrawFn) -> Wish:
    model = draw(st.sampled_from(["chat", "code", "embed"]))
    variants = [
        (
            Variant(
                f"{model}-{index}",
                cost=draw(st.sampled_from([5.0, 10.0])),
                accelerator=draw(st.sampled_from(["H100", "A100", ""])),
                replicas=draw(st.integers(0, 3)),
                gpus=draw(st.integers(0, 4)),
            ),
            draw(st.integers(0, 6)),
        )
        for index in range(draw(st.integers(1, 3)))
    ]
    slack = draw(st.sampled_from([0.0, 0.5]))
    return wish(model, *variants, priority=draw(st.integers(0, 2)), slack=slack, namespace=draw(st.sampled_from("nm")))


FREE = st.fixed_dictionaries({"H100": st.integers(-1, 9)}, optional={"A100": st.integers(0, 9)})


@settings(max_examples=200, deadline=None)
@given(st.lists(wishes(), max_size=4), FREE)
def test_no_more_is_granted_than_is_free_and_nobody_starves_for_a_lower_priority(
    before: list[Wish], free: dict[str, int]
) -> None:
    after = limit(before, free)
    moves = [
        (fleet.priority, variant, wanted.variants[variant.key], decision.variants[variant.key])
        for (fleet, wanted), decision in zip(before, after, strict=True)
        for variant in fleet.variants
    ]
    for accelerator, count in free.items():
        own = [move for move in moves if move[1].accelerator == accelerator and move[1].gpus]
        taken = sum(max(0, after.replicas - after.before) * variant.gpus for _, variant, _, after in own)
        assert taken <= max(0, count)
        left = count - taken
        short = [priority for priority, _, wanted, after in own if after.replicas < wanted.replicas]
        for priority, _, _, got in own:
            assert got.replicas <= got.before or priority <= min(short, default=priority), "a higher one was first"
        for priority, variant, wanted, got in own:
            if got.replicas < wanted.replicas and priority == min(short):
                assert left < variant.gpus, "what fits is granted"
    for _, variant, wanted, got in moves:
        assert min(wanted.replicas, wanted.before) <= got.replicas <= wanted.replicas
        if wanted.replicas <= wanted.before or variant.accelerator not in free:
            assert got.replicas == wanted.replicas

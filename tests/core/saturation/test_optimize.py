from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_chill.core.saturation.fleet import Variant
from vllm_chill.core.saturation.optimize import cheapest, grow, shrink

A100 = Variant("a100", cost=40.0)
H100 = Variant("h100", cost=80.0)
PAIR = Variant("pair", cost=70.0, capacity=2.0)
LAW = settings(max_examples=150, deadline=None)


@st.composite
def fleets(draw: st.DrawFn) -> tuple[list[Variant], dict[str, int]]:
    variants = [
        Variant(
            key,
            cost=draw(st.sampled_from([0.0, 5.0, 10.0, 10.0, 25.0, 31.0, 70.0])),
            capacity=draw(st.sampled_from([0.5, 1.0, 1.0, 1.0, 2.0, 2.5])),
            min_replicas=draw(st.integers(0, 2)),
            max_replicas=draw(st.integers(0, 4)),
        )
        for key in "abc"[: draw(st.integers(1, 3))]
    ]
    return variants, {variant.key: draw(st.integers(0, 4)) for variant in variants}


CAPACITIES = st.sampled_from([0.1, 0.5, 1.0, 1.2, 2.0, 2.5, 3.0, 4.7, 6.0, 50.0])
MOST = st.none() | st.integers(0, 5)


def ways(rooms: Sequence[int]) -> list[tuple[int, ...]]:
    return list(product(*(range(room + 1) for room in rooms)))


def cost(variants: Sequence[Variant], counts: Sequence[int]) -> float:
    return sum(variant.cost * count for variant, count in zip(variants, counts, strict=True))


def capacity(variants: Sequence[Variant], counts: Sequence[int]) -> float:
    return sum(variant.capacity * count for variant, count in zip(variants, counts, strict=True))


def counts_of(variants: Sequence[Variant], moved: Mapping[str, int]) -> list[int]:
    return [moved.get(variant.key, 0) for variant in variants]


class TestGrowing:
    @pytest.mark.parametrize(
        ("required", "most", "grown"),
        [
            pytest.param(0.0, None, {}, id="nothing is lacking"),
            pytest.param(0.2, None, {"a100": 1}, id="a little is one of the cheapest"),
            pytest.param(1.0, None, {"a100": 1}, id="one is one and no more"),
            pytest.param(1.000001, None, {"pair": 1}, id="two in one are cheaper than two"),
            pytest.param(3.0, None, {"a100": 1, "pair": 1}, id="the mix that costs the least"),
            pytest.param(6.0, 2, {"pair": 2}, id="no more than may come"),
            pytest.param(6.0, 0, {}, id="none may come"),
        ],
    )
    def test_takes_what_costs_the_least(self, required: float, most: int | None, grown: dict[str, int]) -> None:
        assert grow([H100, A100, PAIR], {"a100": 1}, required, most) == grown

    def test_at_the_same_cost_the_first_by_key_comes(self) -> None:
        assert grow([Variant("b"), Variant("a")], {}, 1.0) == {"a": 1}

    def test_at_the_same_cost_more_capacity_comes(self) -> None:
        assert grow([Variant("a"), Variant("b", capacity=2.0)], {}, 1.0) == {"b": 1}

    def test_a_pace_does_not_make_it_dearer(self) -> None:
        """Two large ones would give at once what is lacking, and eight small ones give it for less."""
        small, large = Variant("small", cost=10.0), Variant("large", cost=50.0, capacity=4.0)
        assert grow([small, large], {}, 8.0, most=4) == {"small": 4}

    def test_a_variant_at_its_most_leaves_it_to_the_next(self) -> None:
        full = Variant("a100", cost=40.0, max_replicas=3)
        assert grow([full, H100], {"a100": 2}, 2.0) == {"a100": 1, "h100": 1}

    def test_where_all_are_at_their_most_it_gives_what_there_is(self) -> None:
        assert grow([Variant("a", max_replicas=2)], {"a": 1}, 9.0) == {"a": 1}

    def test_what_takes_nothing_on_is_never_taken(self) -> None:
        assert grow([Variant("a", cost=1.0, capacity=0.0), H100], {}, 1.0) == {"h100": 1}
        assert grow([Variant("a", capacity=0.0)], {}, 1.0) == {}

    def test_replicas_that_cost_nothing_come_no_more_than_needed(self) -> None:
        assert grow([Variant("a", cost=0.0), Variant("b", cost=0.0)], {}, 2.0) == {"a": 2}

    def test_with_too_many_ways_the_cheapest_for_its_capacity_comes_first(self) -> None:
        many = [Variant(f"v{n:02}", cost=10.0 + n * 0.7919, capacity=1 + n * 0.1373) for n in range(40)]
        best = min(many, key=lambda variant: variant.cost / variant.capacity)
        grown = grow(many, {}, 1000.0)
        assert list(grown) == [best.key]
        assert grown[best.key] * best.capacity >= 1000.0 > (grown[best.key] - 1) * best.capacity
        assert sum(grow(many, {}, 5000.0, most=700).values()) == 700

    @LAW
    @given(fleets(), CAPACITIES, MOST)
    def test_no_cheaper_way_gives_as_much(
        self, fleet: tuple[list[Variant], dict[str, int]], required: float, most: int | None
    ) -> None:
        variants, numbers = fleet
        rooms = [max(0, (variant.max_replicas or 0) - numbers[variant.key]) for variant in variants]
        grown = counts_of(variants, grow(variants, numbers, required, most))
        given_capacity = capacity(variants, grown)
        assert all(count <= room for count, room in zip(grown, rooms, strict=True))
        assert most is None or sum(grown) <= most
        wanted = min(required, given_capacity)
        others = [way for way in ways(rooms) if capacity(variants, way) >= wanted]
        assert cost(variants, grown) == min(cost(variants, way) for way in others)
        if most is None:
            assert given_capacity >= min(required, capacity(variants, rooms))
        elif most and any(rooms):
            assert any(grown), "it comes nearer"

    @LAW
    @given(fleets(), CAPACITIES, CAPACITIES, MOST)
    def test_more_that_is_lacking_never_gives_less(
        self, fleet: tuple[list[Variant], dict[str, int]], one: float, other: float, most: int | None
    ) -> None:
        variants, numbers = fleet
        less, more = (
            capacity(variants, counts_of(variants, grow(variants, numbers, required, most)))
            for required in sorted((one, other))
        )
        assert less <= more


class TestShrinking:
    @pytest.mark.parametrize(
        ("spare", "most", "shrunk"),
        [
            pytest.param(0.0, None, {}, id="nothing is spare"),
            pytest.param(0.99, None, {}, id="less than one replica"),
            pytest.param(1.0, None, {"h100": 1}, id="the dearest goes first"),
            pytest.param(2.0, None, {"h100": 2}, id="as many as are spare"),
            pytest.param(3.0, None, {"a100": 1, "h100": 2}, id="then the next"),
            pytest.param(9.0, None, {"a100": 1, "h100": 2, "pair": 1}, id="never the last one"),
            pytest.param(9.0, 1, {"h100": 1}, id="no more than may go"),
        ],
    )
    def test_removes_what_saves_the_most(self, spare: float, most: int | None, shrunk: dict[str, int]) -> None:
        pair = Variant("pair", cost=70.0, capacity=2.0)
        assert shrink([A100, H100, pair], {"a100": 2, "h100": 2, "pair": 1}, spare, most) == shrunk

    def test_at_the_same_cost_the_last_by_key_goes(self) -> None:
        assert shrink([Variant("a"), Variant("b")], {"a": 2, "b": 2}, 1.0) == {"b": 1}

    def test_none_goes_below_its_least(self) -> None:
        kept = Variant("h100", cost=80.0, min_replicas=2)
        assert shrink([A100, kept], {"a100": 2, "h100": 2}, 2.0) == {"a100": 2}

    def test_those_that_may_not_shrink_still_serve(self) -> None:
        """The last one of those that may go can go, if there is another that may not."""
        assert shrink([A100], {"a100": 1, "h100": 1}, 1.0) == {"a100": 1}
        assert shrink([A100], {"a100": 1, "h100": 0}, 1.0) == {}

    def test_with_too_many_ways_the_dearest_for_its_capacity_goes_first(self) -> None:
        many = [Variant(f"v{n:02}", cost=10.0 + n * 0.7919, capacity=1 + n * 0.1373) for n in range(40)]
        worst = max(many, key=lambda variant: variant.cost / variant.capacity)
        shrunk = shrink(many, {variant.key: 30 for variant in many}, 100.0)
        assert worst.key in shrunk
        assert sum(variant.capacity * shrunk.get(variant.key, 0) for variant in many) <= 100.0

    @LAW
    @given(fleets(), CAPACITIES, MOST)
    def test_nothing_else_within_what_is_spare_saves_more(
        self, fleet: tuple[list[Variant], dict[str, int]], spare: float, most: int | None
    ) -> None:
        variants, numbers = fleet
        rooms = [max(0, numbers[variant.key] - variant.min_replicas) for variant in variants]
        gone = counts_of(variants, shrink(variants, numbers, spare, most))
        allowed = max(0, sum(numbers.values()) - 1)
        allowed = allowed if most is None else min(allowed, most)
        possible = [way for way in ways(rooms) if capacity(variants, way) <= spare and sum(way) <= allowed]
        assert tuple(gone) in possible
        assert cost(variants, gone) == max(cost(variants, way) for way in possible)

    @LAW
    @given(fleets(), CAPACITIES, CAPACITIES, MOST)
    def test_less_that_is_spare_never_takes_more(
        self, fleet: tuple[list[Variant], dict[str, int]], one: float, other: float, most: int | None
    ) -> None:
        variants, numbers = fleet
        less, more = (
            capacity(variants, counts_of(variants, shrink(variants, numbers, spare, most)))
            for spare in sorted((one, other))
        )
        assert less <= more


def test_the_cheapest_is_one_that_may_have_a_replica() -> None:
    assert cheapest([H100, A100, Variant("free", cost=0.0, max_replicas=0)]) == A100
    assert cheapest([Variant("b"), Variant("a")]) == Variant("a")
    assert cheapest([Variant("a", max_replicas=0)]) is None

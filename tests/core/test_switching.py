from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.switching import (
    Claim,
    Plan,
    Rules,
    Standing,
    excludes,
    most_replicas,
    parse_gpu_budget,
    plan,
    too_large,
)

RULES = Rules(residency_seconds=60, most_wait_seconds=300)
A, B, C = (Claim(name, group="rtx") for name in "abc")
BUDGET = Rules(60, 300, {"": 4})


def asleep(claim: Claim) -> Standing:
    return Standing(claim)


def wanting(claim: Claim, since: float) -> Standing:
    return Standing(claim, wants_since=since)


def unused(claim: Claim, since: float, ready: float = 0) -> Standing:
    return Standing(claim, holds=True, ready_since=ready, unused_since=since)


def used(claim: Claim, ready: float = 0) -> Standing:
    return Standing(claim, holds=True, ready_since=ready)


def leaving(claim: Claim) -> Standing:
    return Standing(claim, holds=True, leaving=True)


class TestGroups:
    def test_alone_it_starts_at_once(self) -> None:
        assert plan([wanting(A, 5), asleep(B)], RULES, 5) == Plan(start=("a",))

    def test_of_two_that_exclude_each_other_the_first_come_starts(self) -> None:
        decided = plan([wanting(B, 6), wanting(A, 5)], RULES, 7)
        assert decided.start == ("a",)
        assert decided.waits_for == {"b": ("a",)}
        assert not decided.leave

    def test_an_unused_one_gives_way_once_it_has_resided(self) -> None:
        assert plan([unused(A, 30), wanting(B, 40)], RULES, 59) == Plan(waits_for={"b": ("a",)}, look_again_at=60)
        assert plan([unused(A, 30), wanting(B, 40)], RULES, 60) == Plan(leave={"a": "b"}, waits_for={"b": ("a",)})

    def test_a_used_one_gives_way_only_when_the_other_has_waited_too_long(self) -> None:
        assert plan([used(A), wanting(B, 40)], RULES, 339).look_again_at == 340
        assert not plan([used(A), wanting(B, 40)], RULES, 339).leave
        assert plan([used(A), wanting(B, 40)], RULES, 340).leave == {"a": "b"}

    def test_too_long_a_wait_does_not_shorten_the_residency(self) -> None:
        decided = plan([used(A, ready=330), wanting(B, 0)], RULES, 340)
        assert not decided.leave
        assert decided.look_again_at == 390

    def test_one_on_its_way_out_is_waited_for(self) -> None:
        assert plan([leaving(A), wanting(B, 40)], RULES, 41) == Plan(waits_for={"b": ("a",)})

    def test_one_that_is_loading_for_callers_is_never_disturbed(self) -> None:
        loading = Standing(A, holds=True)
        assert plan([loading, wanting(B, 0)], RULES, 10_000) == Plan(waits_for={"b": ("a",)})

    def test_one_that_loads_for_nobody_gives_way_at_once(self) -> None:
        assert plan([Standing(A, holds=True, unused_since=5), wanting(B, 6)], RULES, 7).leave == {"a": "b"}

    def test_one_that_is_kept_stays(self) -> None:
        kept = Claim("a", group="rtx", kept=True)
        assert plan([unused(kept, 0), wanting(B, 0)], RULES, 10_000) == Plan(waits_for={"b": ("a",)})

    def test_the_younger_of_two_that_wait_does_not_get_in_first(self) -> None:
        decided = plan([leaving(A), wanting(C, 9), wanting(B, 8)], RULES, 10)
        assert decided.waits_for == {"b": ("a",), "c": ("b", "a")}

    def test_models_without_a_group_do_not_mind_each_other(self) -> None:
        lone = Claim("x")
        assert plan([used(A), wanting(lone, 3)], RULES, 3).start == ("x",)


class TestBudgets:
    def test_what_fits_starts_beside_the_others(self) -> None:
        assert plan([used(Claim("x", gpus=2)), wanting(Claim("y", gpus=2), 0)], BUDGET, 0).start == ("y",)

    def test_two_at_once_do_not_take_the_same_gpus(self) -> None:
        decided = plan([wanting(Claim("x", gpus=3), 0), wanting(Claim("y", gpus=2), 1)], BUDGET, 1)
        assert decided.start == ("x",)
        assert decided.waits_for == {"y": ("x",)}

    def test_the_longest_unused_that_is_enough_makes_room(self) -> None:
        here = [unused(Claim("one", gpus=1), 10), unused(Claim("two", gpus=2), 20), unused(Claim("three", gpus=1), 5)]
        assert plan([*here, wanting(Claim("y", gpus=2), 100)], BUDGET, 100).leave == {"two": "y"}
        assert plan([*here, wanting(Claim("y", gpus=1), 100)], BUDGET, 100).leave == {"three": "y"}

    def test_several_make_room_where_one_is_not_enough(self) -> None:
        here = [unused(Claim("one", gpus=1), 10), unused(Claim("two", gpus=2), 20), unused(Claim("three", gpus=1), 5)]
        assert set(plan([*here, wanting(Claim("y", gpus=4), 100)], BUDGET, 100).leave) == {"one", "two", "three"}

    def test_a_busy_one_is_never_put_to_sleep_and_nobody_is_for_nothing(self) -> None:
        here = [unused(Claim("one", gpus=1), 10), used(Claim("two", gpus=3))]
        assert not plan([*here, wanting(Claim("y", gpus=4), 0)], BUDGET, 10_000).leave

    def test_nobody_more_is_asked_while_one_is_on_its_way_out(self) -> None:
        here = [leaving(Claim("one", gpus=2)), unused(Claim("two", gpus=2), 0)]
        assert not plan([*here, wanting(Claim("y", gpus=2), 100)], BUDGET, 100).leave

    def test_a_small_one_passes_a_large_one_until_that_has_waited_too_long(self) -> None:
        here = [used(Claim("x", gpus=3)), wanting(Claim("large", gpus=4), 0)]
        assert plan([*here, wanting(Claim("small", gpus=1), 10)], BUDGET, 10).start == ("small",)
        assert plan([*here, wanting(Claim("small", gpus=1), 10)], BUDGET, 300).start == ()

    def test_what_can_never_fit_is_said_and_passed_over(self) -> None:
        vast = Claim("vast", gpus=8)
        assert too_large(vast, BUDGET) == "it needs 8 GPUs, and --gpu-budget has 4"
        assert plan([wanting(vast, 0), wanting(Claim("y", gpus=4), 1)], BUDGET, 1).start == ("y",)

    def test_pools_are_apart(self) -> None:
        rules = Rules(60, 300, {"a100": 1, "l4": 1})
        here = [used(Claim("x", pool="a100")), wanting(Claim("y", pool="l4"), 0), wanting(Claim("z", pool="cpu"), 0)]
        assert plan(here, rules, 0).start == ("y", "z")

    @pytest.mark.parametrize(
        ("text", "budgets"),
        [("", {}), ("8", {"": 8}), ("a100=8, l4 = 4", {"a100": 8, "l4": 4}), ("0", {"": 0})],
    )
    def test_a_budget_is_read(self, text: str, budgets: dict[str, int]) -> None:
        assert parse_gpu_budget(text) == budgets

    @pytest.mark.parametrize("text", ["many", "a100=", "-1", "=4", "a100=1=2", "1.5"])
    def test_what_is_no_budget_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="neither"):
            parse_gpu_budget(text)


times = st.floats(0, 1000)


@st.composite
def standings(draw: st.DrawFn) -> list[Standing]:
    found = []
    for number in range(draw(st.integers(0, 6))):
        claim = Claim(
            f"m{number}",
            group=draw(st.sampled_from([None, "g", "h"])),
            gpus=draw(st.integers(0, 5)),
            pool=draw(st.sampled_from(["", "p"])),
            kept=draw(st.booleans()),
        )
        kind = draw(st.sampled_from(["asleep", "wanting", "unused", "used", "leaving", "loading"]))
        match kind:
            case "wanting":
                found.append(wanting(claim, draw(times)))
            case "unused":
                ready = draw(times)
                found.append(unused(claim, draw(st.floats(ready, 1001)), ready))
            case "used":
                found.append(used(claim, draw(times)))
            case "leaving":
                found.append(leaving(claim))
            case "loading":
                found.append(Standing(claim, holds=True))
            case _:
                found.append(asleep(claim))
    return found


rules_of = st.builds(
    Rules,
    residency_seconds=st.sampled_from([0.0, 60.0]),
    most_wait_seconds=st.sampled_from([0.0, 300.0]),
    budgets=st.sampled_from([{}, {"": 4}, {"": 4, "p": 2}]),
)


class TestLaws:
    @given(standings(), rules_of, times)
    def test_nobody_starts_beside_one_that_it_excludes(self, here: list[Standing], rules: Rules, now: float) -> None:
        starting = set(plan(here, rules, now).start)
        awake = [one.claim for one in here if one.holds or one.claim.name in starting]
        for one in awake:
            for other in awake:
                if one.name in starting and one is not other:
                    assert not excludes(one, other, rules)

    @given(standings(), rules_of, times)
    def test_no_budget_is_overdrawn_by_a_start(self, here: list[Standing], rules: Rules, now: float) -> None:
        starting = set(plan(here, rules, now).start)
        for pool, budget in rules.budgets.items():
            taken = [one.claim for one in here if one.claim.pool == pool and (one.holds or one.claim.name in starting)]
            if any(claim.name in starting and claim.gpus for claim in taken):
                assert sum(claim.gpus for claim in taken) <= budget

    @given(standings(), rules_of, times)
    def test_who_gives_way_is_ready_or_wanted_by_nobody_and_has_resided(
        self, here: list[Standing], rules: Rules, now: float
    ) -> None:
        by_name = {one.claim.name: one for one in here}
        for name, beneficiary in plan(here, rules, now).leave.items():
            one, wanted = by_name[name], by_name[beneficiary].wants_since
            assert one.holds
            assert not one.leaving
            assert not one.claim.kept
            assert one.ready_since is None or one.ready_since + rules.residency_seconds <= now
            assert wanted is not None
            if one.unused_since is None:
                assert one.ready_since is not None
                assert one.claim.group is not None
                assert wanted + rules.most_wait_seconds <= now

    @given(standings(), rules_of, times)
    def test_who_wants_starts_or_knows_for_whom_it_waits(self, here: list[Standing], rules: Rules, now: float) -> None:
        decided = plan(here, rules, now)
        for one in here:
            if one.wants_since is not None and too_large(one.claim, rules) is None:
                assert (one.claim.name in decided.start) != bool(decided.waits_for.get(one.claim.name))

    @given(standings(), rules_of, times)
    def test_time_alone_is_looked_at_later_never_now(self, here: list[Standing], rules: Rules, now: float) -> None:
        again = plan(here, rules, now).look_again_at
        assert again is None or again > now

    @given(standings(), rules_of, times)
    def test_a_plan_does_not_depend_on_the_order_that_it_is_told_in(
        self, here: list[Standing], rules: Rules, now: float
    ) -> None:
        one, other = plan(here, rules, now), plan(here[::-1], rules, now)
        assert set(one.start) == set(other.start)
        assert one.leave == other.leave


class TestReplicas:
    RULES = Rules(budgets={"": 8})
    OWN = Claim("own", gpus=2)

    def test_where_there_is_no_budget_there_may_be_any_number(self) -> None:
        assert most_replicas(self.OWN, [], Rules()) is None
        assert most_replicas(Claim("own", gpus=0), [], self.RULES) is None

    def test_it_may_have_what_others_leave_of_the_budget(self) -> None:
        assert most_replicas(self.OWN, [], self.RULES) == 4
        assert most_replicas(self.OWN, [Standing(Claim("a", gpus=3), holds=True)], self.RULES) == 2
        assert most_replicas(self.OWN, [Standing(Claim("a", gpus=3))], self.RULES) == 4
        assert most_replicas(self.OWN, [Standing(Claim("a", gpus=3, pool="l4"), holds=True)], self.RULES) == 4

    def test_a_model_that_waits_is_more_than_a_second_replica(self) -> None:
        assert most_replicas(self.OWN, [Standing(Claim("a", gpus=6), wants_since=9.0)], self.RULES) == 1

    def test_one_may_always_be_there(self) -> None:
        assert most_replicas(self.OWN, [Standing(Claim("a", gpus=8), holds=True)], self.RULES) == 1

from __future__ import annotations

import pytest

from vllm_chill.core.saturation.fleet import Variant
from vllm_chill.core.saturation.transition import Decided, Place, adopted, place, untouched

NOW, TIMEOUT = 1000.0, 600.0
YOUNG, OLD = NOW - 599, NOW - 600


def at(replicas: int, ready: int, before: Decided | None) -> Place:
    return place(Variant("a", replicas=replicas, ready=ready), before, TIMEOUT, NOW)


class TestWhatWasDecided:
    def test_of_a_variant_that_is_new_is_what_its_target_has(self) -> None:
        assert at(3, 3, None).decided == Decided(3, 3, NOW)

    def test_stands_while_its_target_has_not_followed(self) -> None:
        assert at(3, 3, Decided(5, 3, YOUNG)).decided == Decided(5, 3, YOUNG)

    def test_stands_while_its_target_comes_nearer_which_begins_the_wait_anew(self) -> None:
        assert at(4, 3, Decided(5, 3, YOUNG)).decided == Decided(5, 4, NOW)
        assert at(4, 5, Decided(3, 5, YOUNG)).decided == Decided(3, 4, NOW)

    @pytest.mark.parametrize(("seen", "decided", "replicas"), [(3, 5, 2), (3, 5, 6), (5, 5, 7), (5, 5, 0), (5, 3, 6)])
    def test_gives_way_to_what_somebody_else_asks_for(self, seen: int, decided: int, replicas: int) -> None:
        assert at(replicas, seen, Decided(decided, seen, YOUNG)).decided == Decided(replicas, replicas, NOW)

    def test_has_arrived_when_all_is_one(self) -> None:
        found = at(3, 3, Decided(3, 3, OLD, refused=1))
        assert (found.arrived, found.decided) == (True, Decided(3, 3, NOW, refused=1))
        assert found.step(TIMEOUT) is None

    def test_of_a_restart_stands_but_for_who_sleeps(self) -> None:
        assert at(2, 2, Decided(4, None, YOUNG)).decided == Decided(4, 2, YOUNG)
        assert at(0, 0, Decided(4, None, YOUNG)).decided.replicas == 0
        assert at(1, 1, Decided(0, None, YOUNG)).decided.replicas == 1

    def test_is_what_upstream_goes_by_whoever_asks_for_what(self) -> None:
        variant = Variant("a", replicas=7, ready=7)
        assert untouched(variant, Decided(3, 3, OLD), NOW) == Decided(3, 7, OLD)
        assert untouched(variant, None, NOW) == Decided(7, 7, NOW)

    def test_can_be_what_its_target_has(self) -> None:
        found = adopted(at(2, 1, Decided(0, 2, YOUNG)), NOW)
        assert (found.decided, found.arrived, found.anticipated) == (Decided(2, 2, NOW), False, 2)


class TestOnItsWay:
    def test_it_counts_as_the_most_of_what_it_is_asked_to_have_and_what_was_decided(self) -> None:
        up, down = at(3, 2, Decided(5, 3, YOUNG)), at(3, 3, Decided(2, 3, YOUNG))
        assert (up.anticipated, up.base, up.going, up.starting) == (5, 5, 0, True)
        assert (down.anticipated, down.base, down.going, down.starting) == (3, 3, 1, False)

    def test_it_does_not_shrink_further_and_may_grow(self) -> None:
        found = at(3, 2, Decided(5, 3, YOUNG))
        assert not found.may_shrink
        assert not found.grows_last

    def test_it_says_so(self) -> None:
        step = at(3, 2, Decided(5, 3, NOW - 90)).step(TIMEOUT)
        assert step is not None
        assert step.text == "5 decided, 3 asked for, 2 ready since 1m30s, so it counts as 5 for now"
        assert step.replicas == 5


class TestTooLong:
    def test_pods_that_do_not_come_are_not_counted_and_stay_asked_for(self) -> None:
        found = at(4, 2, Decided(4, 4, OLD))
        assert (found.decided.replicas, found.anticipated, found.base) == (4, 2, 2)
        assert found.grows_last
        assert found.may_shrink
        assert not found.starting
        step = found.step(TIMEOUT)
        assert step is not None
        assert step.text == "4 decided, 4 asked for, 2 ready for more than 10m, so it counts as 2"

    def test_a_target_that_does_not_follow_is_taken_as_it_is_and_grows_last_until_it_changes(self) -> None:
        found = at(5, 5, Decided(10, 5, OLD))
        assert (found.decided.replicas, found.arrived, found.grows_last) == (5, True, True)
        after = place(Variant("a", replicas=5, ready=5), found.decided, TIMEOUT, NOW + 30)
        assert after.grows_last
        assert not place(Variant("a", replicas=6, ready=6), after.decided, TIMEOUT, NOW + 60).grows_last

    def test_one_that_does_not_shrink_gives_last(self) -> None:
        found = at(3, 3, Decided(1, 3, OLD))
        assert (found.decided.replicas, found.shrinks_last, found.going) == (3, True, 0)

    def test_a_step_that_hpa_took_for_too_small_is_added_to(self) -> None:
        up, down = at(11, 11, Decided(12, 11, OLD)), at(10, 10, Decided(9, 10, OLD))
        assert (up.decided.replicas, up.anticipated, up.base, up.grows_last) == (12, 11, 12, False)
        assert (down.decided.replicas, down.anticipated, down.going, down.shrinks_last) == (9, 10, 1, False)

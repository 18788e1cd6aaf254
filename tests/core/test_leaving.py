from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.leaving import endpoints_of, to_go, without
from vllm_chill.core.target import Endpoint, Observation, Progress, Replica, Stage

READY, LOADING = Progress(Stage.ANSWERING), Progress(Stage.LOADING)


def replica(number: int, *, ready: bool = True, name: str | None = None) -> Replica:
    endpoint = Endpoint("127.0.0.1", 8000 + number)
    return Replica(name or f"vllm-{number}", endpoint, ready=ready, progress=READY if ready else LOADING)


THREE = (replica(0), replica(1), replica(2))
LEASES = {8000: 4, 8001: 1, 8002: 3}


def leases(endpoint: Endpoint) -> int:
    return LEASES.get(endpoint.port, 0)


class TestWhoGoes:
    def test_who_has_the_fewest_leases_goes_first(self) -> None:
        assert to_go(THREE, 2, leases) == ("vllm-1", "vllm-2")

    def test_what_serves_nobody_yet_goes_before(self) -> None:
        assert to_go((*THREE, replica(3, ready=False)), 2, leases) == ("vllm-3", "vllm-1")

    def test_of_those_that_start_who_is_not_so_far_goes(self) -> None:
        far = Replica("far", None, ready=False, progress=LOADING)
        near = Replica("near", None, ready=False, progress=Progress(Stage.PULLING))
        assert to_go((far, near), 1, leases) == ("near",)

    def test_who_was_chosen_stays_so_though_others_have_less_to_do_by_now(self) -> None:
        assert to_go(THREE, 1, leases, ["vllm-0"]) == ("vllm-0",)

    def test_in_order_the_last_go(self) -> None:
        members = tuple(replica(n) for n in range(12))
        assert to_go(members, 2, leases, ordered=True) == ("vllm-11", "vllm-10")


class TestSeeingOff:
    def test_they_get_no_new_request(self) -> None:
        seen = Observation(3, 3, endpoints_of(THREE, ["vllm-0", "vllm-1", "vllm-2"]), members=THREE)
        assert without(seen, ["vllm-1"]).endpoints == (Endpoint("127.0.0.1", 8000), Endpoint("127.0.0.1", 8002))

    def test_where_there_is_nowhere_else_to_go_nothing_changes(self) -> None:
        service = Observation(3, 3, (Endpoint("vllm", 80),), members=THREE)
        assert without(service, ["vllm-1"]) is service
        one = Observation(1, 1, endpoints_of(THREE, ["vllm-1"]), members=THREE)
        assert without(one, ["vllm-1"]) is one


@given(st.lists(st.booleans(), max_size=8), st.integers(-1, 9), st.lists(st.integers(0, 5), min_size=8, max_size=8))
def test_never_more_go_than_are_to_and_a_second_look_chooses_the_same(
    ready: list[bool], count: int, taken: list[int]
) -> None:
    members = [replica(n, ready=is_ready) for n, is_ready in enumerate(ready)]

    def busy(endpoint: Endpoint) -> int:
        return taken[endpoint.port - 8000]

    chosen = to_go(members, count, busy)
    assert len(chosen) == min(max(0, count), len(members)) == len(set(chosen))
    assert set(to_go(members, count, lambda _: 0, chosen)) == set(chosen)

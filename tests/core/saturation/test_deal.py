from __future__ import annotations

from vllm_chill.core.saturation.analysis import Analysis
from vllm_chill.core.saturation.config import Config
from vllm_chill.core.saturation.deal import dealt
from vllm_chill.core.saturation.decision import Reason
from vllm_chill.core.saturation.draft import Draft
from vllm_chill.core.saturation.fleet import Variant
from vllm_chill.core.saturation.transition import place

PLACES = [place(Variant(key, cost, replicas=3, ready=3), None, 600.0, 0.0) for key, cost in (("a", 10.0), ("b", 40.0))]
DRAFT = Draft.begun({"a": 3, "b": 3}, {"a": Reason.STEADY, "b": Reason.STEADY})


def test_what_is_known_in_part_takes_nothing_away_whatever_an_analyzer_says() -> None:
    assert dealt(Config(), PLACES, Analysis(0.0, 2.0, "", complete=False), (), DRAFT, 0.0) == DRAFT
    assert dealt(Config(), PLACES, Analysis(0.0, 2.0, ""), (), DRAFT, 0.0).numbers == {"a": 3, "b": 2}


def test_what_is_not_known_gives_nothing_and_takes_nothing() -> None:
    found = dealt(Config(), PLACES, Analysis(2.0, 0.0, "", measured=False), (), DRAFT, 0.0)
    assert found.numbers == DRAFT.numbers
    assert found.trails["a"][-1].text == "nothing is known of its load, so all stays as it is"


def test_no_replica_that_fits_is_said() -> None:
    found = dealt(Config(), PLACES, Analysis(0.0, 0.5, ""), (), DRAFT, 0.0)
    assert found.numbers == DRAFT.numbers
    assert found.trails["a"][-1].text == "a capacity of 0.5 could go, and no replica fits that may"

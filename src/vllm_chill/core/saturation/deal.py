"""Who gets what is lacking, and who gives what is spare: by where each variant is, and by the pace. Pure.

The rule: what did not come, or did not go, when it was to, comes or goes last. A variant that is on its way may get
more, and does not give before it has arrived. Nobody waits for another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from vllm_chill.core.cold_start import duration
from vllm_chill.core.saturation.analysis import Analysis
from vllm_chill.core.saturation.config import Config
from vllm_chill.core.saturation.decision import Reason
from vllm_chill.core.saturation.draft import Draft, listed
from vllm_chill.core.saturation.optimize import grow, shrink
from vllm_chill.core.saturation.pace import Change, left_down, left_up
from vllm_chill.core.saturation.survey import number
from vllm_chill.core.saturation.transition import Place

_STAGE = "optimize"
_ANY = 10**6  # replicas


def dealt(
    config: Config, places: Sequence[Place], analysis: Analysis, changes: Iterable[Change], draft: Draft, now: float
) -> Draft:
    """The draft with what is lacking come, or what is spare gone, as far as the pace and the bounds let it."""
    if not analysis.measured:
        return draft.told(_STAGE, "nothing is known of its load, so all stays as it is")
    if analysis.required > 0:
        return _grown(config, places, analysis.required, left_up(config, changes, now), draft)
    if analysis.spare > 0 and analysis.complete:
        return _shrunk(config, places, analysis.spare, left_down(config, changes, now), draft)
    return draft


def _grown(config: Config, places: Sequence[Place], required: float, left: int, draft: Draft) -> Draft:
    numbers = _added(places, required, left)
    bases = {place.variant.key: max(place.base, draft.numbers[place.variant.key]) for place in places}
    moves = {key: to - bases[key] for key, to in numbers.items() if to > bases[key]}
    whole = numbers == _added(places, required, _ANY)
    pace = "" if whole else f"; no more than {config.scale_up_increment} come within {duration(config.scale_up_period)}"
    text = f"a capacity of {number(required)} is lacking"
    if moves:
        draft = draft.told(_STAGE, f"{text}, for which {listed(moves, 'more')} cost the least{pace}")
    else:
        draft = draft.told(_STAGE, f"{text}{pace or ', and no variant may have more'}")
    costs = {place.variant.key: place.variant.cost for place in places}
    for key, count in moves.items():
        text = f"{count} more at a cost of {costs[key]:g} each{pace}"
        draft = draft.moved(key, numbers[key], Reason.SATURATED, _STAGE, text)
    for place in places:
        key = place.variant.key
        if bases[key] > draft.numbers[key]:
            text = "those that were to go stay, for capacity is lacking"
            draft = draft.moved(key, bases[key], Reason.SATURATED, _STAGE, text)
    return draft


def _added(places: Sequence[Place], required: float, left: int) -> dict[str, int]:
    """The numbers of those that get more."""
    first = [place for place in places if not place.grows_last]
    added = _more(first, required, left)
    numbers = {place.variant.key: place.base + added.get(place.variant.key, 0) for place in first}
    numbers = {key: count for key, count in numbers.items() if added.get(key)}
    left -= sum(added.values())
    rest = required - _capacity(first, _more(first, required, None))
    last = [place for place in places if place.grows_last]
    ordered = sum(max(0, place.decided.replicas - place.base) for place in last)
    for key, count in _more(last, rest, left + ordered).items():
        [place] = [place for place in last if place.variant.key == key]
        decided = place.decided.replicas
        numbers[key] = min(max(decided, place.base + count), decided + left)
        left -= numbers[key] - decided
    return numbers


def _more(places: Sequence[Place], required: float, most: int | None) -> dict[str, int]:
    return grow(
        [place.variant for place in places], {place.variant.key: place.base for place in places}, required, most
    )


def _capacity(places: Sequence[Place], counts: Mapping[str, int]) -> float:
    return sum(place.variant.capacity * counts.get(place.variant.key, 0) for place in places)


def _shrunk(config: Config, places: Sequence[Place], spare: float, left: int, draft: Draft) -> Draft:
    there = {place.variant.key: min(place.decided.replicas, place.variant.ready) for place in places}
    spare -= sum(place.going * place.variant.capacity for place in places)
    if spare < min(place.variant.capacity for place in places) and any(place.going for place in places):
        return draft.told(_STAGE, "what could go is on its way already")
    able = [place for place in places if place.may_shrink]
    removed: dict[str, int] = {}
    for some in ([place for place in able if not place.shrinks_last], [place for place in able if place.shrinks_last]):
        removed = removed or shrink([place.variant for place in some], there, spare, left)
    text = f"a capacity of {number(spare)} could go"
    if not removed:
        pace = f"but no more than {config.scale_down_increment} go within {duration(config.scale_down_period)}"
        return draft.told(_STAGE, f"{text}, {'and no replica fits that may' if left else pace}")
    draft = draft.told(_STAGE, f"{text}, and {listed(removed, 'less')} saves the most")
    costs = {place.variant.key: place.variant.cost for place in places}
    for key, count in removed.items():
        text = f"{count} less, which saves a cost of {costs[key] * count:g}"
        draft = draft.moved(key, there[key] - count, Reason.SPARE, _STAGE, text)
    return draft

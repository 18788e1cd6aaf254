"""Label selectors as text, as queries and scales have them: which labels they select. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_KEY = r"[A-Za-z0-9](?:[-A-Za-z0-9_./]*[A-Za-z0-9])?"
_COMMA = re.compile(r",(?![^()]*\))")
_TERM = re.compile(
    rf"(?P<key>{_KEY})(?:\s*(?P<is>==?|!=)\s*(?P<value>[-A-Za-z0-9_.]*)|\s+(?P<among>in|notin)\s*\((?P<values>[^()]*)\))"
    rf"|!\s*(?P<absent>{_KEY})|(?P<present>{_KEY})"
)


@dataclass(frozen=True, slots=True)
class _Term:
    """The label must have one of `values`, or any if that is None; `negated`: it must not, or not be there."""

    key: str
    values: frozenset[str] | None
    negated: bool

    def holds(self, labels: Mapping[str, str]) -> bool:
        among = self.key in labels if self.values is None else labels.get(self.key) in self.values
        return among is not self.negated


@dataclass(frozen=True, slots=True)
class Selector:
    """What selects labels: all of its terms have to hold, and without any it selects everything."""

    terms: tuple[_Term, ...] = ()

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether these are labels that it selects."""
        return all(term.holds(labels) for term in self.terms)


def selector(text: str) -> Selector:
    """The selector that a text such as `pool=gpu,zone in (a,b),!spot` is. Raises ValueError with a sentence."""
    return Selector(tuple(_term(part.strip(), text) for part in _COMMA.split(text) if text.strip()))


def _term(part: str, text: str) -> _Term:
    found = _TERM.fullmatch(part)
    if found is None:
        raise ValueError(f'"{text}" is no label selector: write it as in pool=gpu,zone in (a,b),!spot')
    if found["among"]:
        values = frozenset(value.strip() for value in found["values"].split(","))
        return _Term(found["key"], values, negated=found["among"] == "notin")
    if found["is"]:
        return _Term(found["key"], frozenset({found["value"]}), negated=found["is"] == "!=")
    return _Term(found["absent"] or found["present"], None, negated=found["absent"] is not None)

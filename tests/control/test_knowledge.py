from __future__ import annotations

import json

from vllm_chill.control.knowledge import ModelKnowledge
from vllm_chill.core.models import Models


def listing(*names: str) -> bytes:
    return json.dumps({"data": [{"id": name, "owned_by": "vllm"} for name in names]}).encode()


def names(knowledge: ModelKnowledge) -> list[str]:
    return [model.id for model in knowledge.models.models]


class Template:
    """What a start runs, which somebody may change."""

    def __init__(self) -> None:
        self.now: tuple[list[str], str] | None = (["vllm", "serve", "org/a"], "1")

    def __call__(self) -> tuple[list[str], str] | None:
        return self.now


def test_at_first_the_command_tells() -> None:
    knowledge = ModelKnowledge(Template())
    assert names(knowledge) == ["org/a"]
    assert knowledge.models.closed


def test_without_a_command_and_a_list_nothing_is_known() -> None:
    assert ModelKnowledge().models == Models()


def test_an_engines_list_wins_until_the_template_is_another_one() -> None:
    template = Template()
    knowledge = ModelKnowledge(template)
    knowledge.listed(listing("a", "b"))
    assert names(knowledge) == ["a", "b"]
    template.now = (["vllm", "serve", "org/c"], "2")
    assert names(knowledge) == ["org/c"]
    template.now = (["vllm", "serve", "org/a"], "1")
    assert names(knowledge) == ["org/a"]
    knowledge.listed(listing("d"))
    assert names(knowledge) == ["d"]


def test_a_template_may_change_in_another_thing_than_its_command() -> None:
    template = Template()
    knowledge = ModelKnowledge(template)
    knowledge.listed(listing("a"))
    template.now = (["vllm", "serve", "org/a"], "2")
    assert names(knowledge) == ["org/a"]


def test_a_template_that_is_not_known_for_a_while_is_none_that_has_changed() -> None:
    template = Template()
    known, template.now = template.now, None
    knowledge = ModelKnowledge(template)
    knowledge.listed(listing("a"))
    assert names(knowledge) == ["a"]
    template.now = known
    assert names(knowledge) == ["a"]
    template.now = None
    assert names(knowledge) == ["a"]
    template.now = (["vllm", "serve", "org/a"], "2")
    assert names(knowledge) == ["org/a"]


def test_a_newer_list_takes_the_place_of_an_older_one_and_what_is_none_does_not() -> None:
    knowledge = ModelKnowledge(Template())
    knowledge.listed(listing("a"))
    knowledge.listed(listing("b"))
    for nothing in (b"oh no", listing()):
        knowledge.listed(nothing)
    assert names(knowledge) == ["b"]

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.call import Call
from vllm_chill.core.models import Model, Models, check_model, known_models, listed_models
from vllm_chill.errors import ModelNotFound

CARD = {"object": "model", "created": 1, "owned_by": "vllm", "root": "org/a", "parent": None, "max_model_len": 256}


def body(*cards: object, **more: object) -> bytes:
    return json.dumps({"object": "list", "data": list(cards), **more}).encode()


def of(*names: str, closed: bool = True) -> Models:
    return Models(tuple(Model(name) for name in names), closed)


class TestListed:
    def test_vllms_list_is_closed_and_its_fields_are_kept(self) -> None:
        models = listed_models(body({"id": "a", **CARD}, {"id": "b", **CARD}))
        assert models is not None
        assert [model.id for model in models.models] == ["a", "b"]
        assert models.models[0].card == CARD
        assert models.closed

    def test_an_adapter_may_not_be_the_only_one(self) -> None:
        models = listed_models(body({"id": "a", **CARD}, {"id": "lora", **CARD, "parent": "a"}))
        assert models is not None
        assert not models.closed

    def test_llama_cpp_takes_any_name(self) -> None:
        models = listed_models(body({"id": "a", "owned_by": "llamacpp"}, models=[{"name": "a"}]))
        assert models == Models((Model("a", {"owned_by": "llamacpp"}),), closed=False)

    @pytest.mark.parametrize("text", [b"", b"no", b"[]", b"{}", b'{"data": {}}', b"[" * 100_000, b" " * (2 << 20)])
    def test_what_is_no_list_is_none(self, text: bytes) -> None:
        assert listed_models(text) is None

    def test_entries_that_are_no_models_are_left_out_and_then_it_is_not_closed(self) -> None:
        models = listed_models(body(1, {}, {"id": ""}, {"id": 3}, {"id": "x" * 2000}, {"id": "a", **CARD}))
        assert models is not None
        assert [model.id for model in models.models] == ["a"]
        assert not models.closed

    def test_a_list_is_bounded(self) -> None:
        models = listed_models(body(*({"id": str(n), "owned_by": "vllm"} for n in range(2000))))
        assert models is not None
        assert len(models.models) == 1000
        assert not models.closed

    @given(st.recursive(st.none() | st.booleans() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
    def test_any_json_in_the_list_is_survived(self, value: Any) -> None:
        for text in (body(value), json.dumps(value).encode(), json.dumps({"data": value}).encode()):
            models = listed_models(text)
            assert models is None or all(model.id for model in models.models)


class TestKnown:
    def test_an_engines_list_wins_over_the_command(self) -> None:
        assert known_models(of("listed"), of("started")) == of("listed")
        assert known_models(None, of("started")) == of("started")
        assert known_models(None, None) == Models()

    def test_a_name_is_wrong_only_where_both_would_refuse_it(self) -> None:
        assert not known_models(of("a"), of("a", closed=False)).closed
        assert not known_models(of("a", closed=False), of("a")).closed
        assert known_models(of("a"), None).closed


class TestCheck:
    @pytest.mark.parametrize(
        ("call", "known"),
        [
            pytest.param(Call("a"), of("b", "a"), id="one of them"),
            pytest.param(Call(None), of("a"), id="none named"),
            pytest.param(Call(""), of("a"), id="an empty name, which is none to vLLM"),
            pytest.param(Call("x"), Models(), id="nothing known"),
            pytest.param(Call("x"), of("a", closed=False), id="an engine that takes any"),
        ],
    )
    def test_what_may_be_right_passes(self, call: Call, known: Models) -> None:
        check_model(call, known)

    def test_what_is_not_there_is_404_in_openais_words_with_what_is(self) -> None:
        with pytest.raises(ModelNotFound) as error:
            check_model(Call("x"), of("a", "b"))
        assert error.value.message == 'The model "x" does not exist; known: a, b.'
        assert (error.value.status, error.value.code) == (404, "model_not_found")
        assert error.value.type == "invalid_request_error"

    def test_the_sentence_is_bounded(self) -> None:
        with pytest.raises(ModelNotFound) as error:
            check_model(Call("x" * 10_000), of(*(f"{n}" * 300 for n in range(100))))
        assert len(error.value.message) < 5000
        assert error.value.message.endswith(" and 80 more.")

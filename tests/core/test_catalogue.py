from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vllm_chill.core.catalogue import Adapter, Catalogue, Clash, ModelEntry
from vllm_chill.core.target import TargetRef


def entry(name: str, served: str, *aliases: str, created: str = "", adapters: tuple[str, ...] = ()) -> ModelEntry:
    return ModelEntry(
        name,
        TargetRef("ai", name),
        served,
        f"org/{name}",
        aliases,
        tuple(Adapter(adapter, f"/{adapter}") for adapter in adapters),
        created=created,
    )


def test_a_model_is_found_by_each_of_its_names() -> None:
    one = entry("a", "alpha", "first", adapters=("sql",))
    catalogue = Catalogue([one])
    assert [catalogue.find(name) for name in ("alpha", "first", "sql", "a")] == [one] * 4
    assert catalogue.find("beta") is None
    assert one.adapter("sql") == Adapter("sql", "/sql")
    assert one.adapter("first") is None


def test_a_name_that_two_claim_is_the_olders_and_the_other_is_told() -> None:
    catalogue = Catalogue([entry("new", "alpha", created="2026-02"), entry("old", "alpha", created="2026-01")])
    found = catalogue.find("alpha")
    assert found is not None
    assert found.name == "old"
    assert catalogue.clashes == (Clash("alpha", "new", "old"),)
    assert catalogue.names_of(catalogue.entries[1]) == ("new",)


def test_a_served_name_goes_before_anothers_object_name() -> None:
    catalogue = Catalogue([entry("alpha", "one", created="2026-01"), entry("b", "alpha", created="2026-02")])
    found = catalogue.find("alpha")
    assert found is not None
    assert found.name == "b"
    assert catalogue.clashes == ()


def test_many_names_are_cut_in_a_sentence() -> None:
    catalogue = Catalogue([entry(f"m{number:02}", f"s{number:02}") for number in range(25)])
    assert catalogue.names.startswith("s00, s01")
    assert catalogue.names.endswith(" and 5 more")


entries = st.lists(
    st.builds(
        entry,
        st.sampled_from("abcdef"),
        st.sampled_from("uvwxyzabc"),
        st.sampled_from("uvwxyzabc"),
        created=st.sampled_from(["1", "2", "3"]),
    ),
    max_size=6,
    unique_by=lambda one: one.name,
)


@given(entries)
def test_every_name_leads_to_one_model_whatever_the_order_that_they_are_told_in(models: list[ModelEntry]) -> None:
    one, other = Catalogue(models), Catalogue(models[::-1])
    for name in "abcdefuvwxyz":
        assert one.find(name) == other.find(name)
        claims = [model for model in one if name in model.names]
        if claims:
            assert one.find(name) == claims[0]
    assert one.clashes == other.clashes


@given(entries)
def test_each_claim_is_good_or_told(models: list[ModelEntry]) -> None:
    catalogue = Catalogue(models)
    told = {(clash.name, clash.claimed_by) for clash in catalogue.clashes}
    for model in catalogue:
        for name in model.names:
            assert (catalogue.find(name) == model) != ((name, model.name) in told)

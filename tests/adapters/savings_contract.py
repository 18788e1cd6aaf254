"""What every store of what was saved must do, as tests: a subclass gives a fresh one in `store`, and pytest runs it."""

from __future__ import annotations

import asyncio

import pytest

from vllm_chill.core.savings_ledger import MOST_BYTES
from vllm_chill.errors import BackendConflict
from vllm_chill.ports import SavingsStore


class SavingsContract:
    """Inherit, and give a fixture `store` that is a SavingsStore in which there is nothing yet."""

    async def test_there_is_none_until_it_is_written_and_then_it_says_what_was_written(
        self, store: SavingsStore
    ) -> None:
        assert await store.read() is None
        await store.write('{"a": "1"}', None)
        kept = await store.read()
        assert kept is not None
        assert kept.text == '{"a": "1"}'
        await store.write("2", kept)
        again = await store.read()
        assert again is not None
        assert again.text == "2"
        assert again.version != kept.version

    async def test_of_two_that_write_first_one_does(self, store: SavingsStore) -> None:
        wrote = await asyncio.gather(*(store.write(text, None) for text in "abcd"), return_exceptions=True)
        assert sum(isinstance(each, BackendConflict) for each in wrote) == 3
        kept = await store.read()
        assert kept is not None
        assert wrote["abcd".index(kept.text)] is None

    async def test_of_two_that_write_over_the_same_one_does(self, store: SavingsStore) -> None:
        await store.write("first", None)
        before = await store.read()
        wrote = await asyncio.gather(*(store.write(text, before) for text in "abcd"), return_exceptions=True)
        assert sum(isinstance(each, BackendConflict) for each in wrote) == 3
        kept = await store.read()
        assert kept is not None
        assert wrote["abcd".index(kept.text)] is None

    async def test_what_was_written_meanwhile_is_not_written_over(self, store: SavingsStore) -> None:
        await store.write("1", None)
        before = await store.read()
        await store.write("2", before)
        with pytest.raises(BackendConflict):
            await store.write("3", before)
        with pytest.raises(BackendConflict):
            await store.write("3", None)

    async def test_it_takes_as_much_as_there_can_be(self, store: SavingsStore) -> None:
        await store.write("x" * MOST_BYTES, None)
        kept = await store.read()
        assert kept is not None
        assert len(kept.text) == MOST_BYTES

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.adapters.savings_contract import SavingsContract
from vllm_chill.adapters.savings_file import SavingsFile
from vllm_chill.errors import BackendConflict, BackendRefused

_ADDS = """
import asyncio, sys
from pathlib import Path
from vllm_chill.adapters.savings_file import SavingsFile
from vllm_chill.errors import BackendConflict

async def add():
    store = SavingsFile(Path(sys.argv[1]), "vllm", ("a",))
    for _ in range(20):
        while True:
            kept = await store.read()
            try:
                await store.write(str(int(kept.text if kept else "0") + 1), kept)
                break
            except BackendConflict:
                pass

asyncio.run(add())
"""


def file_in(folder: Path, name: str = "vllm", *identity: str) -> SavingsFile:
    return SavingsFile(folder, name, identity or ("process/vllm", "org/a"))


class TestSavingsFile(SavingsContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> SavingsFile:
        return file_in(tmp_path / "not there yet")


async def test_it_is_one_private_file_and_what_else_is_served_has_another(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    assert await file_in(folder).read() is None
    assert not folder.exists(), "nothing is made before there is something to keep"
    await file_in(folder).write("1", None)
    assert folder.stat().st_mode & 0o077 == 0
    [file] = folder.iterdir()
    assert file.name.startswith("savings-vllm-")
    assert file.stat().st_mode & 0o077 == 0
    assert await file_in(folder, "vllm", "process/vllm", "org/b").read() is None


@pytest.mark.parametrize("name", ["../../etc/passwd", "a b/c", ".hidden", "x" * 300, "ü"])
async def test_whatever_it_is_called_it_is_in_the_folder(tmp_path: Path, name: str) -> None:
    await file_in(tmp_path / "state", name).write("1", None)
    assert file_in(tmp_path / "state", name).path.parent == tmp_path / "state"


async def test_a_folder_that_cannot_be_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = file_in(tmp_path / "file" / "folder")
    with pytest.raises(BackendRefused, match='Not a directory; give another --state-dir, or --state-dir ""'):
        await store.read()
    with pytest.raises(BackendRefused, match=r"cannot be written .* Not a directory"):
        await store.write("1", None)


async def test_what_is_no_text_is_told_and_not_written_over(tmp_path: Path) -> None:
    store = file_in(tmp_path)
    store.path.write_bytes(b"\xff\xfe")
    with pytest.raises(BackendRefused, match="is no text; move it away"):
        await store.read()
    with pytest.raises(BackendRefused):
        await store.write("1", None)
    assert store.path.read_bytes() == b"\xff\xfe"


async def test_what_was_removed_meanwhile_is_another(tmp_path: Path) -> None:
    store = file_in(tmp_path)
    await store.write("1", None)
    kept = await store.read()
    store.path.unlink()
    with pytest.raises(BackendConflict):
        await store.write("2", kept)


async def test_processes_that_add_to_one_file_lose_nothing(tmp_path: Path) -> None:
    adding = [await asyncio.create_subprocess_exec(sys.executable, "-c", _ADDS, str(tmp_path)) for _ in range(3)]
    assert [await process.wait() for process in adding] == [0, 0, 0]
    kept = await SavingsFile(tmp_path, "vllm", ("a",)).read()
    assert kept is not None
    assert kept.text == "60"

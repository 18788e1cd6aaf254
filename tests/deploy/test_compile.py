"""What the image has of a module: all of it but the texts that nobody reads there."""

from __future__ import annotations

import importlib.util
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "compile.py"
COMPILE = SimpleNamespace(**runpy.run_path(str(SCRIPT)))

SOURCE = '''"""Of the module."""
from __future__ import annotations
class Noun:
    """Of the class."""
def verb(x: int) -> str:
    """Of the function."""
    assert x > 0, "positive"
    return """Not one."""
async def wait():
    "Of the coroutine."
'''
PRINTS = """
import sys
sys.path.insert(0, sys.argv[1])
import module
print([one.__doc__ for one in (module, module.Noun, module.verb, module.wait)], module.verb(1))
try:
    module.verb(0)
except AssertionError as error:
    print(error, module.__cached__)
"""


@pytest.mark.parametrize(
    ("package", "docstrings"),
    [
        pytest.param("theirs", "[None, None, None, None]", id="others"),
        pytest.param(
            "vllm_chill",
            "['Of the module.', 'Of the class.', 'Of the function.', 'Of the coroutine.']",
            id="our own, of which the help is made",
        ),
    ],
)
def test_docstrings_are_left_out_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, docstrings: str
) -> None:
    file, kept = tmp_path / package / "module.py", tmp_path / "kept"
    file.parent.mkdir()
    file.write_text(SOURCE)
    monkeypatch.setattr(sys, "pycache_prefix", str(kept))
    COMPILE.keep(file)
    # What is run is what was compiled: it is not looked whether the file has changed since.
    file.write_text("raise SystemExit(9)")
    result = subprocess.run(
        [sys.executable, "-X", f"pycache_prefix={kept}", "-c", PRINTS, str(file.parent)],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    place = importlib.util.cache_from_source(str(file))
    assert result.stdout.splitlines() == [f"{docstrings} Not one.", f"positive {place}"]


def test_what_is_no_python_is_told_of_and_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "template.py"
    file.write_text("{{ name }} = ")
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path / "kept"))
    COMPILE.keep(file)
    assert str(file) in capsys.readouterr().err
    assert not Path(importlib.util.cache_from_source(str(file))).exists()


def test_the_library_and_the_packages_are_compiled_but_for_what_is_not_run() -> None:
    names = {Path(file).as_posix() for file in COMPILE.files()}
    assert any(name.endswith("/asyncio/base_events.py") for name in names)
    assert any(name.endswith("/site-packages/aiohttp/web.py") for name in names)
    assert not any("/idlelib/" in name for name in names)

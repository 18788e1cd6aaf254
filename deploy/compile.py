"""Compiles what the image runs, once: Python's own library, which the base image has in source only, and the
environment's packages. It imports nothing but the standard library.

    PYTHONPYCACHEPREFIX=FOLDER python compile.py

The rule: docstrings are left out, which are 2 MB of the memory of a proxy that idles and which nobody reads there; but
not those of vllm-chill, of which its help is made. Nothing else is: asserts stay, unlike with `python -OO`. Neither the
time stamps of the files nor the files themselves are looked at afterwards, so copying them does not matter.
"""

from __future__ import annotations

import ast
import importlib.util
import marshal
import os
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

_WHOLE = "vllm_chill"
_NOT_RUN = {"test", "tests", "idlelib", "lib2to3", "tkinter", "turtledemo", "ensurepip", "pydoc_data", "site-packages"}
"""Folders of the library that are left in source."""

_UNCHECKED = (1).to_bytes(4, "little")
_WITH_DOCSTRING = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def without_docstrings(source: bytes, name: str) -> ast.Module:
    """The tree of a module, without them. Raises SyntaxError."""
    tree = ast.parse(source, name)
    for node in ast.walk(tree):
        if isinstance(node, _WITH_DOCSTRING) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
            if not node.body and not isinstance(node, ast.Module):
                node.body = [ast.copy_location(ast.Pass(), node)]
    return tree


def compiled(file: Path, *, whole: bool) -> bytes:
    """What Python keeps of a module. Raises SyntaxError for a file that is none, as templates are."""
    source = file.read_bytes()
    tree = source if whole else without_docstrings(source, str(file))
    code = compile(tree, str(file), "exec", dont_inherit=True)
    return importlib.util.MAGIC_NUMBER + _UNCHECKED + importlib.util.source_hash(source) + marshal.dumps(code)


def keep(file: Path) -> None:
    """Compile a file to where Python looks for it."""
    place = Path(importlib.util.cache_from_source(str(file)))
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        place.write_bytes(compiled(file, whole=_WHOLE in file.parts))
    except (SyntaxError, ValueError) as error:
        sys.stderr.write(f"{file} is left as it is: {error}\n")


def files() -> Iterator[Path]:
    """Every file that may be imported."""
    library = Path(sysconfig.get_path("stdlib"))
    for file in library.rglob("*.py"):
        if not _NOT_RUN.intersection(file.relative_to(library).parts):
            yield file
    yield from Path(sysconfig.get_path("purelib")).rglob("*.py")


def main() -> None:
    """Compile all of them, on every core."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(keep, sorted(files()), chunksize=50):
            pass


if __name__ == "__main__":
    main()

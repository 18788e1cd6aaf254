"""The site, as .ci/run builds it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORGE = "https://forge.example/me/it"


def build_site(folder: Path) -> Path:
    """Build it into a folder, strictly: no page, link or anchor is missing."""
    pytest.importorskip("mkdocs", reason="needs MkDocs: pip install --group site")
    command = [sys.executable, "-m", "mkdocs", "--quiet", "build", "--strict", "--site-dir", str(folder)]
    there = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "SITE_REPOSITORY": FORGE, "SITE_URL": "https://site.example/"}
    done = subprocess.run(command, cwd=ROOT, env=there, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return folder

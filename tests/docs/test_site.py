"""The site has every page, each once, and loads nothing from elsewhere; .ci/run's section `site` builds it strictly."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.docs.built_site import FORGE, build_site

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


class _Loader(yaml.SafeLoader):
    """YAML with the tags of MkDocs, which say nothing of the nav."""


_LOADED = "tag:yaml.org,2002:python/"
_Loader.add_multi_constructor(_LOADED, lambda loader, suffix, node: None)
_Loader.add_constructor("!ENV", lambda loader, node: "")
CONFIG: dict[str, Any] = yaml.load((ROOT / "mkdocs.yml").read_text(), _Loader)


def pages_of(nav: Any) -> Iterator[str]:
    """Every page that a part of the nav names."""
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict):
        for part in nav.values():
            yield from pages_of(part)
    else:
        for part in nav:
            yield from pages_of(part)


def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", DOCS / "site" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOKS = hooks()
NAV = list(pages_of(CONFIG["nav"]))


# --- the nav ---


def test_every_page_is_in_the_nav_once_and_every_entry_is_a_page() -> None:
    there = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} | set(HOOKS.PROJECT.values())
    assert sorted(NAV) == sorted(there)


def test_the_nav_has_the_four_kinds_of_page() -> None:
    assert [next(iter(part)) for part in CONFIG["nav"]] == [
        "Home", "Tutorials", "How-to", "Reference", "Explanation", "Project"
    ]  # fmt: skip


def test_the_projects_own_files_are_there() -> None:
    assert all((ROOT / name).exists() for name in HOOKS.PROJECT)


# --- links ---


@pytest.mark.parametrize(
    ("target", "source", "site"),
    [
        pytest.param("hold.md#settings", "docs/access.md", "hold.md#settings", id="a page beside it"),
        pytest.param("../hold.md", "docs/how-to/ingress.md", "../hold.md", id="a page above it"),
        pytest.param("docs/hold.md", "CHANGELOG.md", "hold.md", id="a page, from a file of the project"),
        pytest.param("SECURITY.md", "CONTRIBUTING.md", "weakness.md", id="a file of the project, from another"),
        pytest.param("../CHANGELOG.md", "docs/releases.md", "changelog.md", id="a file of the project"),
        pytest.param("../README.md", "docs/access.md", "index.md", id="the README"),
        pytest.param("#here", "docs/access.md", "#here", id="a heading of the same page"),
        pytest.param("https://vllm.ai", "docs/access.md", "https://vllm.ai", id="somewhere else"),
        pytest.param("../deploy/ingress.yaml", "docs/access.md", f"{FORGE}/blob/main/deploy/ingress.yaml", id="a file"),
        pytest.param("../../deploy", "docs/how-to/ingress.md", f"{FORGE}/tree/main/deploy", id="a folder"),
        pytest.param(
            "../README.md#in-kubernetes-in-five-minutes", "docs/variants.md", "tutorials/a-cluster.md",
            id="what the site tells at length",
        ),
    ],
)  # fmt: skip
def test_a_link_leads_to_the_same_on_the_site(target: str, source: str, site: str) -> None:
    assert HOOKS.target_on_site(target, source, FORGE) == site


def test_without_a_repository_what_is_not_on_the_site_is_no_link() -> None:
    text = "see [`deploy/`](../deploy) and [the hold](hold.md), not `[x](../deploy)`"
    assert HOOKS.with_links(text, "docs/access.md", "") == "see `deploy/` and [the hold](hold.md), not `[x](../deploy)`"


def test_code_keeps_its_links() -> None:
    text = "```md\n[x](../deploy)\n```\n"
    assert HOOKS.with_links(text, "docs/access.md", FORGE) == text


# --- the forge's Markdown in Python-Markdown's words ---


def test_what_belongs_to_an_item_is_indented_for_it() -> None:
    before = "1. one\n\n   ```sh\n   a\n     b\n   ```\n\n   more\n\n2. two\n\nno item\n\n    code\n"
    after = "1. one\n\n    ```sh\n    a\n      b\n    ```\n\n    more\n\n2. two\n\nno item\n\n    code\n"
    assert HOOKS.as_python_markdown(before) == after


def test_a_list_has_an_empty_line_before_it() -> None:
    assert HOOKS.as_python_markdown("such as\n- one\n- two\n") == "such as\n\n- one\n- two\n"


def test_what_looks_like_a_list_within_code_is_left_alone() -> None:
    text = "```yaml\na:\n- b\n- c\n  d: 1\n```\n"
    assert HOOKS.as_python_markdown(text) == text


def test_a_pipe_within_code_needs_no_backslash() -> None:
    assert HOOKS.as_python_markdown(r"| `a \| b` | c \| d |" + "\n") == r"| `a | b` | c \| d |" + "\n"


def test_the_lifecycle_is_drawn_whole() -> None:
    page = (DOCS / "lifecycle.md").read_text()
    drawn = HOOKS.drawn(page)
    assert "```mermaid" not in drawn
    assert drawn.count('class="arrow"') == len(re.findall(r"^\s*(?!\[)\S+ --> \w+$", page, re.MULTILINE))


# --- what is built ---


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_site(tmp_path_factory.mktemp("site"))


@pytest.mark.slow
def test_no_page_loads_anything_from_elsewhere(built: Path) -> None:
    pages = list(built.rglob("*.html"))
    assert len(pages) > len(NAV)  # and one for what is not found
    for page in pages:
        text = page.read_text()
        loaded = re.findall(r'<(?:script|img|source|iframe)\b[^>]*\b(?:src|srcset)="?([^"\s>]+)', text)
        loaded += re.findall(r'<link\b[^>]*\brel="?(?:stylesheet|icon|preconnect)"?[^>]*\bhref="?([^"\s>]+)', text)
        loaded += re.findall(r'<link\b[^>]*\bhref="?([^"\s>]+)"?[^>]*\brel="?(?:stylesheet|icon|preconnect)', text)
        assert loaded
        assert not [target for target in loaded if re.match(r"(https?:)?//", target)], page
        assert 'data-md-component="source"' not in text, "the theme asks the forge for its stars"


@pytest.mark.slow
def test_the_source_of_the_site_is_not_on_it(built: Path) -> None:
    assert not list(built.rglob("*.py"))
    assert not (built / "site").exists()

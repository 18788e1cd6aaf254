"""What the site does to the pages: they are written for the forge, whose Markdown and whose links are not MkDocs'.

The rule: a page is right on the forge as it stands. What Python-Markdown reads otherwise is put into its words here,
and a link that leaves docs/ leads to the repository, if `repo_url` says where that is, or to nowhere: its text stays.
"""

from __future__ import annotations

import html
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BRANCH = "main"

PROJECT = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "weakness.md",
    "LICENSE": "licence.md",
}
"""Files beside docs/ that are pages of the site too, and their names there."""

README = {"": "index.md", "in-kubernetes-in-five-minutes": "tutorials/a-cluster.md"}
"""What the site has in place of the README, by its anchors; its beginning for all others."""

_FENCED = re.compile(r"^(?P<fence> *(?:```|~~~)).*?^(?P=fence) *$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)\s]+)\)")
_ITEM = re.compile(r"(?P<marker>(?:\d+\.|[-*]) +)\S")


# --- where a link leads ---


def target_on_site(target: str, source: str, repository: str) -> str | None:
    """Where a link of the page at `source`, a path in the repository, leads on the site; None if it leads nowhere."""
    if re.match(r"[a-z]+:|#", target):
        return target
    path, _, anchor = target.partition("#")
    there = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    page = _page_of(there, anchor)
    if page is not None:
        here = posixpath.dirname(_page_of(source, "") or source)
        kept = f"#{anchor}" if anchor and there != "README.md" else ""
        return posixpath.relpath(page, here or ".") + kept
    if not repository:
        return None
    kind = "tree" if (ROOT / there).is_dir() else "blob"
    return f"{repository.rstrip('/')}/{kind}/{BRANCH}/{there}{'#' if anchor else ''}{anchor}"


def _page_of(path: str, anchor: str) -> str | None:
    """The page of the site that a file of the repository is, by its path in docs/."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path == "README.md":
        return README.get(anchor, README[""])
    return PROJECT.get(path)


def with_links(text: str, source: str, repository: str) -> str:
    """A page with its links as the site needs them; code is left alone."""

    def replaced(found: re.Match[str]) -> str:
        target = target_on_site(found["target"], source, repository)
        label = _LINK.sub(replaced, found["text"])
        return label if target is None else f"{found['image']}[{label}]({target})"

    return _outside_code(text, lambda prose: _LINK.sub(replaced, prose))


# --- what the forge's Markdown is in Python-Markdown's ---


def as_python_markdown(text: str) -> str:
    """A page in the words of Python-Markdown: what belongs to a list's item is indented by four there, a list has an
    empty line before it, and a pipe within code needs no backslash in a table.
    """
    return "\n".join(_pipes(_lists(text.splitlines()))) + "\n"


def _lists(lines: list[str]) -> Iterator[str]:
    width, fence, before = 0, "", ""
    for line in lines:
        bare = line.strip()
        opens = re.match(r"```|~~~", bare)
        item = None if fence else _ITEM.match(line)
        if item is not None:
            if not width and before.strip():
                yield ""
            width = len(item["marker"])
        elif bare and not line.startswith(" ") and not fence and not before.strip():
            width = 0
        indent = len(line) - len(line.lstrip(" "))
        yield " " * (4 - width) + line if width and item is None and bare and indent >= width else line
        if opens and (not fence or bare == fence):
            fence = "" if fence else bare[:3]
        before = line


def _pipes(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if line.startswith("|"):
            line = re.sub(r"`[^`]*`", lambda code: code[0].replace(r"\|", "|"), line)
        yield line


def _outside_code(text: str, change: Callable[[str], str]) -> str:
    """The text with what is no code changed."""
    kept: list[str] = []

    def keep(found: re.Match[str]) -> str:
        kept.append(found[0])
        return f"\0{len(kept) - 1}\0"

    hidden = re.sub(r"`[^`\n]+`", keep, _FENCED.sub(keep, text))
    shown = change(hidden)
    while "\0" in shown:
        shown = re.sub(r"\0(\d+)\0", lambda found: kept[int(found[1])], shown)
    return shown


# --- the lifecycle, drawn without a script ---

_WIDTH, _HEIGHT, _BOX_WIDTH, _BOX_HEIGHT = 720, 380, 112, 44
_PLACES = {
    "Unknown": (90, 60),
    "Asleep": (90, 250),
    "Waking": (360, 60),
    "Draining": (360, 250),
    "Ready": (630, 155),
    "Failed": (630, 340),
}


def drawn(text: str) -> str:
    """A page whose state diagram is a picture, which takes the colours of the page that it is in."""
    return re.sub(r"^```mermaid\n(.*?)^```$", lambda found: _picture(found[1]), text, flags=re.DOTALL | re.MULTILINE)


def _picture(source: str) -> str:
    edges = re.findall(r"^\s*(\w+) --> (\w+)$", source, re.MULTILINE)
    unknown = {state for edge in edges for state in edge} - set(_PLACES)
    if not edges or unknown:
        raise ValueError(
            f"docs/site/hooks.py does not know where to draw {', '.join(sorted(unknown)) or 'this diagram'}"
        )
    arrows = "".join(_arrow(begin, end, (end, begin) in edges) for begin, end in edges)
    boxes = "".join(
        f'<g><rect x="{x - _BOX_WIDTH / 2:g}" y="{y - _BOX_HEIGHT / 2:g}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" '
        f'rx="8"/><text x="{x}" y="{y + 5}">{html.escape(state)}</text></g>'
        for state, (x, y) in _PLACES.items()
    )
    marker = (
        '<marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        'orient="auto-start-reverse"><path d="M0 0 10 5 0 10z"/></marker>'
    )
    label = f"State diagram: {'; '.join(f'{begin} to {end}' for begin, end in edges)}"
    return (
        f'<svg class="states" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        f"<defs>{marker}</defs>{arrows}{boxes}</svg>"
    )


def _arrow(begin: str, end: str, returns: bool) -> str:
    """A curve from the edge of one box to that of another; two that return bend away from one another."""
    (x1, y1), (x2, y2) = _PLACES[begin], _PLACES[end]
    length = ((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5
    bend = 26 if returns else 0
    middle = ((x1 + x2) / 2 - (y2 - y1) / length * bend, (y1 + y2) / 2 + (x2 - x1) / length * bend)
    (ax, ay), (bx, by) = _at_edge((x1, y1), middle), _at_edge((x2, y2), middle)
    return f'<path class="arrow" d="M{ax:.0f} {ay:.0f}Q{middle[0]:.0f} {middle[1]:.0f} {bx:.0f} {by:.0f}"/>'


def _at_edge(centre: tuple[float, float], towards: tuple[float, float]) -> tuple[float, float]:
    dx, dy = towards[0] - centre[0], towards[1] - centre[1]
    part = min(_BOX_WIDTH / 2 / abs(dx) if dx else 1, _BOX_HEIGHT / 2 / abs(dy) if dy else 1)
    return centre[0] + dx * part, centre[1] + dy * part


# --- what MkDocs calls ---


def on_files(files: Any, config: Any) -> Any:
    """Add the project's own pages."""
    from mkdocs.structure.files import File

    for name, page in PROJECT.items():
        text = (ROOT / name).read_text()
        if not name.endswith(".md"):
            text = f"# Licence\n\n```text\n{text.strip()}\n```\n"
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Put a page into the site's words."""
    place = {there: name for name, there in PROJECT.items()}
    source = place.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return as_python_markdown(drawn(with_links(markdown, source, config["repo_url"] or "")))

"""The rows of docs/reliability.md: one for each scenario, of what a run has measured."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.load import Latency, Load

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"


@dataclass(frozen=True, slots=True)
class Row:
    """One scenario. `table` is the name of its table on the page, `cells` the text of its columns by their heads."""

    table: str
    scenario: str
    cells: dict[str, str]


def load_cells(load: Load) -> dict[str, str]:
    """What came of a load, and how long its plain requests took in each interval."""
    intervals = ("before", "during", "after")
    return {**came(load), **{interval: latency(load.latency(interval)) for interval in intervals}}


def came(*loads: Load) -> dict[str, str]:
    """What came of some loads together."""
    sent = sum(len(load.sent) for load in loads)
    failures = sum((load.failures() for load in loads), Counter[str]())
    failed = ", ".join(f"{count} {kind}" for kind, count in sorted(failures.items())) or "0"
    return {"sent": str(sent), "answered": str(sent - failures.total()), "failed": failed}


def latency(measured: Latency) -> str:
    """Milliseconds: the median, and the 99th of 100."""
    return f"{measured.p50 * 1000:.1f} / {measured.p99 * 1000:.0f}"


def in_words(rows: list[Row]) -> str:
    """The tables as Markdown, one after another."""
    names = dict.fromkeys(row.table for row in rows)
    return "\n\n".join(_table([row for row in rows if row.table == name]) for name in names)


def write(rows: list[Row], page: Path = PAGE) -> Path:
    """Put rows into the tables of the page, each in place of the one of its scenario; the page."""
    text = page.read_text()
    for name in dict.fromkeys(row.table for row in rows):
        mark = re.compile(rf"(<!-- {re.escape(name)} -->\n)(.*?)(<!-- end -->)", re.DOTALL)
        found = mark.search(text)
        if found is None:
            raise ValueError(f"{page} has no table {name!r}: write <!-- {name} --> and <!-- end --> where it belongs")
        lines = _merged(found[2].strip().splitlines(), _table([row for row in rows if row.table == name]).splitlines())
        text = text[: found.start(2)] + "\n".join(lines) + "\n" + text[found.start(3) :]
    page.write_text(text)
    return page


def _merged(old: list[str], new: list[str]) -> list[str]:
    """The new lines, and those of scenarios that were not run this time, if the columns are the same."""
    if old[:2] != new[:2]:
        return new
    measured = {_scenario(line): line for line in new[2:]}
    kept = [measured.pop(_scenario(line), line) for line in old[2:]]
    return [*new[:2], *kept, *measured.values()]


def _scenario(line: str) -> str:
    return line.split("|")[1].strip()


def _table(rows: list[Row]) -> str:
    heads = ["scenario", *rows[0].cells]
    lines = [heads, ["---"] * len(heads), *([row.scenario, *row.cells.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

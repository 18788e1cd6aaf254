"""docs/reliability.md has a row for each scenario of the chaos suite, and none of a run in which one failed."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from tests.chaos.load import ANSWERED, Load, Sent
from tests.chaos.table import PAGE, Row, load_cells, write
from tests.chaos.test_api_server import FAILURES, RECOVERY_SECONDS
from tests.chaos.test_proxies import FAILURES as OF_ONE


def rows(table: str) -> dict[str, dict[str, str]]:
    """The rows of a table on the page, by their scenario."""
    found = re.search(rf"<!-- {table} -->\n(.*?)<!-- end -->", PAGE.read_text(), re.DOTALL)
    assert found is not None
    head, _, *lines = ([cell.strip() for cell in line.split("|")[1:-1]] for line in found[1].strip().splitlines())
    return {cells[0]: dict(zip(head, cells, strict=True)) for cells in lines}


def test_every_way_to_fail_is_measured() -> None:
    measured = rows("api server")
    assert list(measured) == [failure.name for failure in FAILURES]
    for row in measured.values():
        assert (row["failed"], row["sent"]) == ("0", row["answered"])
        assert max(float(row[name]) for name in ("wakes", "sleeps", "sees")) < RECOVERY_SECONDS


def test_a_clock_that_jumps_is_measured() -> None:
    assert [row["failed"] for row in rows("clock").values()] == ["0", "0"]


def test_what_happens_to_one_of_two_proxies_is_measured() -> None:
    measured = rows("proxies")
    assert set(measured) == {*(failure.name for failure in OF_ONE), "both are called at zero", "both are replaced"}
    for name, row in measured.items():
        assert (row["failed"], row["sent"]) == ("0", row["answered"]), name
        assert row["writes"] in {"0", "1"}
    assert all(measured[failure.name]["its failed"] == "0" for failure in OF_ONE if not failure.ends_it)


async def test_a_load_is_told_with_what_failed_by_class() -> None:
    load = Load("http://127.0.0.1:1")
    load.sent = [Sent("before", False, ANSWERED, 0.001 * i) for i in range(1, 101)]
    load.sent += [Sent("during", False, "refused", 1.0), *[Sent("during", True, "503", 1.0)] * 2]
    cells = load_cells(load)
    assert (cells["sent"], cells["answered"], cells["failed"]) == ("103", "100", "2 503, 1 refused")
    assert (cells["before"], cells["during"]) == ("50.0 / 99", "nan / nan")


def test_what_is_measured_again_replaces_its_row_and_leaves_the_others(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\n<!-- end -->\nafter\n")
    write([Row("a", "one", {"sent": "1"}), Row("a", "two", {"sent": "2"})], page)
    write([Row("a", "one", {"sent": "3"}), Row("a", "three", {"sent": "4"})], page)
    table = "| scenario | sent |\n| --- | --- |\n| one | 3 |\n| two | 2 |\n| three | 4 |\n"
    assert page.read_text() == f"before\n<!-- a -->\n{table}<!-- end -->\nafter\n"


async def test_a_request_that_nobody_takes_is_refused() -> None:
    async with Load("http://127.0.0.1:1", per_second=50, streams=1) as load:
        await asyncio.sleep(0.05)
    assert set(load.failures()) == {"refused"}
    assert len(load.failures()) == 1 <= len(load.sent)

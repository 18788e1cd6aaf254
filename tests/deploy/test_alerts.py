"""Each alert fires when its state has lasted for its time, and none of them in a life as it should be.

Debian's promtool plays series of hours through the rules; tests/deploy/test_alerts_live.py has a real Prometheus scrape
real proxies.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.alerting import ALERTS, DASHBOARD, GROUPS, metrics_of, queries
from tests.deploy.kustomized import DEPLOY

PAGE = (DEPLOY.parent / "docs/alerts.md").read_text()
METRICS = (DEPLOY.parent / "docs/metrics.md").read_text()

# Of others, which come with what they tell of.
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool, which Debian's package prometheus has"
)

PROXY = 'namespace="ai-apps", job="vllm-chill-svc", instance="a"'
TARGET = f'{PROXY}, target="ai-apps/vllm"'
OTHER = TARGET.replace('"a"', '"b"')


def scaled(direction: str, outcome: str) -> str:
    return f'vllm_chill_scale_operations_total{{{TARGET}, direction="{direction}", outcome="{outcome}"}}'


def ended(status: int) -> str:
    return f'vllm_chill_requests_total{{{PROXY}, route="proxied", method="POST", status="{status}"}}'


def at(name: str, labels: str = PROXY) -> str:
    return f"{name}{{{labels}}}"


WAKES, WAKE_SECONDS = (at(f"vllm_chill_wake_duration_seconds_{part}", TARGET) for part in ("count", "sum"))
STATE, WAITING = (at(f"vllm_chill_{name}", TARGET) for name in ("vllm_state", "requests_waiting"))
FAILURES, SEES = (at(f"vllm_chill_{name}", TARGET) for name in ("wake_failures_total", "backend_up"))
REPLICAS, RELOADED = at("vllm_chill_current_replicas", TARGET), at("vllm_chill_config_last_reload_successful")
BUILD, LEADS, UP = at("vllm_chill_build_info"), at("vllm_chill_leader"), at("up")

# A day, a value a minute: every hour it wakes within 3 minutes, works for half an hour, and sleeps.
DAY = 24
HEALTHY: dict[str, str] = {
    UP: "1x1440",
    BUILD: "1x1440",
    LEADS: "1x1440",
    SEES: "1x1440",
    RELOADED: "1x1440",
    STATE: " ".join(["0x25 1x2 2x29 3x0 0x0"] * DAY),
    WAITING: " ".join(["0x25 4x2 0x30"] * DAY),
    REPLICAS: " ".join(["0x25 1x32 0x0"] * DAY),
    WAKES: " ".join(f"{n}x28 {n + 1}x30" for n in range(DAY)),
    WAKE_SECONDS: " ".join(f"{180 * n}x28 {180 * (n + 1)}x30" for n in range(DAY)),
    FAILURES: "0x1440",
    scaled("up", "success"): " ".join(f"{n}x25 {n + 1}x33" for n in range(DAY)),
    scaled("down", "success"): " ".join(f"{n}x58 {n + 1}x0" for n in range(DAY)),
    scaled("down", "failure"): "0x1440",
    ended(200): "0+30x1440",
    # A caller in fifty does not wait for as long as it takes.
    ended(503): "0+0.6x1440",
}


@dataclass(frozen=True)
class Planted:
    """A state: what is other than in a healthy run, a minute at which its alert fires, and one at which not yet."""

    series: dict[str, str | None]
    fires: int
    not_before: int
    labels: dict[str, str]


OF_TARGET = {"namespace": "ai-apps", "target": "ai-apps/vllm"}
OF_JOB = {"namespace": "ai-apps", "job": "vllm-chill-svc"}
OF_PROXY = {**OF_JOB, "instance": "a"}

PLANTED: dict[str, Planted] = {
    "VllmChillDown": Planted({UP: "1x60 0x60", BUILD: "1x60 stale", LEADS: "1x60 stale"}, 65, 62, OF_PROXY),
    "VllmChillNotScraped": Planted({BUILD: None, LEADS: "1x60 stale", UP: "1x60 stale"}, 75, 69, {}),
    "VllmChillBackendUnavailable": Planted({SEES: "1x60 0x60"}, 64, 62, OF_TARGET),
    "VllmChillNoLeader": Planted({LEADS: "1x60 0x60", at("vllm_chill_leader", OTHER): "0x120"}, 64, 62, OF_JOB),
    "VllmChillReloadFailed": Planted({RELOADED: "1x60 0x60"}, 63, 61, OF_PROXY),
    "VllmChillWakeFailing": Planted(
        {FAILURES: "0x90 1 2 3 4x60", WAKES: "1x200", STATE: "0x200", WAITING: "0x200", REPLICAS: "0x200"},
        93, 91, OF_TARGET),
    "VllmChillColdStartSlow": Planted(
        # After a day at 3 minutes each, 10 minutes.
        {WAKES: f"{HEALTHY[WAKES]} {DAY}x10 {DAY + 1}x60",
         WAKE_SECONDS: f"{HEALTHY[WAKE_SECONDS]} {180 * DAY}x10 {180 * DAY + 600}x60"},
        60 * DAY + 40, 60 * DAY, OF_TARGET),
    "VllmChillStartLong": Planted({STATE: "0x60 1x60"}, 82, 80, OF_TARGET),
    "VllmChillWaitingTooLong": Planted({WAITING: "0x60 3x60"}, 72, 70, OF_TARGET),
    "VllmChillRequestsRejected": Planted({ended(503): "0x60 0+3x60"}, 75, 65, OF_JOB),
    "VllmChillSleepFailing": Planted({scaled("down", "failure"): "0x60 0+1x60"}, 73, 70, OF_TARGET),
    "VllmChillScaleConflict": Planted(
        {REPLICAS: "1x60 0 1 0 1 0 1 0 1 0 1x20", scaled("up", "success"): "1x61 2x30",
         scaled("down", "success"): "1x100"},
        70, 60, OF_TARGET),
}  # fmt: skip


def series(given: dict[str, str | None]) -> list[dict[str, str]]:
    whole = {**HEALTHY, **given}
    return [{"series": name, "values": values} for name, values in whole.items() if values is not None]


def played(cases: list[dict[str, Any]], folder: Path) -> str:
    """What promtool says of these cases; empty if all is as expected."""
    (folder / "rules.yml").write_text(json.dumps({"groups": GROUPS}))
    (folder / "tests.yml").write_text(
        json.dumps({"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": cases})
    )
    done = subprocess.run(
        ["promtool", "test", "rules", "tests.yml"], cwd=folder, capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def expectation(alert: str, labels: dict[str, str] | None) -> dict[str, Any]:
    """That it fires with these labels, whatever it says; that it does not with None."""
    if labels is None:
        return {"alertname": alert, "exp_alerts": []}
    return {"alertname": alert, "exp_alerts": [{"exp_labels": {**labels, **ALERTS[alert]["labels"]}}]}


def case(given: dict[str, str | None], checks: Sequence[tuple[str, int, dict[str, str] | None]]) -> dict[str, Any]:
    tests = [{"eval_time": f"{minute}m", **expectation(alert, labels)} for alert, minute, labels in checks]
    return {"interval": "1m", "input_series": series(given), "alert_rule_test": tests}


@needs_promtool
def test_prometheus_takes_the_rules(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": GROUPS}))
    done = subprocess.run(["promtool", "check", "rules", tmp_path / "rules.yml"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@needs_promtool
def test_in_a_day_as_it_should_be_nothing_fires(tmp_path: Path) -> None:
    checks = [(alert, minute, None) for alert in ALERTS for minute in range(5, 60 * DAY, 11)]
    assert played([case({}, checks)], tmp_path) == ""


@needs_promtool
@pytest.mark.parametrize("alert", ALERTS)
def test_it_fires_once_its_state_has_lasted_and_not_before(alert: str, tmp_path: Path) -> None:
    planted = PLANTED[alert]
    assert played([case(planted.series, [(alert, planted.not_before, None)])], tmp_path) == ""
    said = played([case(planted.series, [(alert, planted.fires, planted.labels)])], tmp_path)
    assert got(said), said


def got(said: str) -> bool:
    """Whether an alert came with the labels that it was to have, and its words, which are not expected, are whole."""
    expected, came = re.findall(r"Labels:(\{.*?\})$", said, re.MULTILINE)
    return expected == came and "<no value>" not in said and "%!" not in said and "<error" not in said


def test_every_alert_says_what_it_is_and_where_to_read_on() -> None:
    told = re.findall(r"^\| \[(\w+)\]\(#(\w+)\) \| (\w+) \| (.+) \|$", PAGE, re.MULTILINE)
    assert [(name, anchor) for name, anchor, _, _ in told] == [(name, name.lower()) for name in ALERTS]
    for name, _, severity, after in told:
        assert (ALERTS[name]["labels"]["severity"], ALERTS[name].get("for", "at once")) == (severity, after)
        notes = ALERTS[name]["annotations"]
        assert notes["runbook"] == f"docs/alerts.md#{name.lower()}"
        assert all(notes[part].endswith(".") for part in ("summary", "description"))
        section = PAGE.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert all(f"**{heading}**" in section for heading in ("What it means.", "What to look at.", "What to do."))


def test_every_metric_that_is_asked_for_is_told() -> None:
    asked = {name for query in queries() for name in query.metrics}
    asked |= {name for rule in ALERTS.values() for name in metrics_of(rule["expr"])}
    own = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked if name.startswith("vllm_chill_")}
    assert own <= set(re.findall(r"^\| `(\w+)` \|", METRICS, re.MULTILINE))


def test_every_panel_has_a_place_of_its_own_and_says_what_it_shows() -> None:
    taken: set[tuple[int, int]] = set()
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"].endswith("."), panel["title"]
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}

"""What `vllm-chill explain variant` makes of objects, whatever their status has, and what it says if it cannot ask."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from vllm_chill.cli import cli
from vllm_chill.cli.explain import describe, table
from vllm_chill.errors import AskFailed, SettingError

ITEM: dict[str, Any] = {
    "metadata": {"name": "dear", "namespace": "llm"},
    "spec": {"modelID": "llama", "scaleTargetRef": {"kind": "Deployment", "name": "llama-h100"}, "maxReplicas": 5},
    "status": {
        "desiredOptimizedAlloc": {"numReplicas": 3, "accelerator": "H100", "lastRunTime": "2026-03-02T12:00:00Z"},
        "currentReplicas": 2,
        "saturation": 0.914,
        "decision": {
            "time": "2026-03-02T12:00:00Z",
            "reason": "Saturated",
            "trail": [
                {"stage": "collect", "text": "2 of 2 replicas have told their load, 4 s ago"},
                {"stage": "analyze", "text": "KV spare 0.02 is below 0.10"},
                {"stage": "optimize", "text": "one more, as it is the cheapest", "replicas": 3},
            ],
        },
        "conditions": [
            {"type": "TargetResolved", "status": "True", "reason": "TargetFound", "message": "it was found"},
            {"type": "MetricsAvailable", "status": "False", "reason": "MetricsMissing", "message": "none came"},
        ],
    },
}


def test_a_decision_is_told_step_by_step() -> None:
    told = describe(ITEM)
    assert told.splitlines()[:7] == [
        "variant     llm/dear",
        "model       llama",
        "target      Deployment llama-h100",
        "accelerator H100",
        "replicas    2, 3 wanted",
        "bounds      0 to 5",
        "saturation  91%",
    ]
    assert "decided     2026-03-02T12:00:00Z (Saturated)" in told
    assert "optimize  3  one more, as it is the cheapest" in told
    assert "MetricsAvailable  False  MetricsMissing  none came" in told


def test_a_row_says_why() -> None:
    heading, row = table([ITEM]).splitlines()
    assert heading.split()[:3] == ["NAMESPACE", "VARIANT", "MODEL"]
    assert row.split()[:2] == ["llm", "dear"]
    assert row.endswith("one more, as it is the cheapest")


def test_without_a_decision_the_row_says_what_is_wrong() -> None:
    item = {**ITEM, "status": {"conditions": ITEM["status"]["conditions"]}}
    assert table([item]).endswith("none came")


@pytest.mark.parametrize("status", [None, {}])
def test_an_object_that_nobody_has_looked_at_says_so(status: object) -> None:
    item = {**ITEM, "status": status}
    assert "none: no controller has looked at it yet" in describe(item)
    assert table([item]).splitlines()[1].split()[:2] == ["llm", "dear"]


def test_an_api_server_that_is_away_is_one_sentence(tmp_path: Any) -> None:
    config = tmp_path / "config"
    config.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts: [{name: a, context: {cluster: a, user: a}}]\n"
        "clusters: [{name: a, cluster: {server: 'http://127.0.0.1:1'}}]\nusers: [{name: a, user: {}}]\n"
    )
    result = CliRunner().invoke(cli, ["explain", "variant", "dear", "--kubeconfig", str(config)])
    assert isinstance(result.exception, AskFailed)
    assert "cannot be reached" in result.exception.message


def test_a_kubeconfig_that_is_not_there_is_one_sentence(tmp_path: Any) -> None:
    result = CliRunner().invoke(cli, ["explain", "variant", "--kubeconfig", str(tmp_path / "none")])
    assert isinstance(result.exception, SettingError | AskFailed)

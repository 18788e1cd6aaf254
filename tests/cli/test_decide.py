from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from vllm_chill.cli import cli, main

POLICY = """
apiVersion: autoscaler.production-stack/v1alpha1
kind: vLLMScalingPolicy
metadata: {name: chat}
spec:
  scaleTargetRef: {kind: Deployment, name: chat}
  minReplicas: 1
  maxReplicas: 8
  scalingRules:
    - {metric: queue_length, threshold: 5}
  behavior:
    scaleDown: {policies: [{type: Percent, value: 100, periodSeconds: 15}]}
  schedule:
    - {start: "0 8 * * *", end: "0 18 * * *", timezone: Europe/Berlin, minReplicas: 3}
"""
SAMPLES = """
wall: 2026-01-05T17:00:00+01:00
moments:
  - {at: 0, replicas: 3, held: 30, members: [{queue_length: 4}, {queue_length: 4}, {queue_length: 4}]}
  - {at: 15, load: {queue_length: 50}}
  - {at: 30, load: {}}
  - {at: 3540, load: {queue_length: 0}}
  - {at: 3900, load: {queue_length: 0}}
"""

NINE = "queue_length is 42 (30 of them held) over 3 replicas, 14 each; the target is 5, so 9 replicas"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "samples.yaml").write_text(SAMPLES)
    return tmp_path


def decide(files: Path, *more: str) -> Result:
    arguments = ["decide", "--policy", str(files / "policy.yaml"), "--samples", str(files / "samples.yaml"), *more]
    return CliRunner().invoke(cli, arguments)


def test_a_history_is_told_step_by_step(files: Path) -> None:
    result = decide(files)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "0s: 3 → 7 replicas",
        f"  recommend     9  {NINE}",
        "  pace          7  it may grow by 100% in 15s or 4 in 15s, so 7 for now",
        "15s: 7 → 8 replicas",
        "  recommend    10  queue_length is 50 over 7 replicas, 7.14 each; the target is 5, so 10 replicas",
        "  bound         8  the maximum is 8",
        "30s: 8 replicas",
        "  recommend     8  queue_length is missing, as no ready replica has a fresh sample of it, so it stays at 8",
        "59m: 8 → 3 replicas",
        "  recommend     0  queue_length is 0 over 8 replicas; the target is 5, so 0 replicas",
        "  bound         3  the schedule asks for at least 3 replicas until 2026-01-05 18:00 Europe/Berlin",
        "1h5m: 3 → 1 replica",
        "  recommend     0  queue_length is 0 over 3 replicas; the target is 5, so 0 replicas",
        "  bound         1  the minimum is 1",
    ]


def test_as_json_it_has_the_names_of_a_policys_status(files: Path) -> None:
    result = decide(files, "--output", "json")
    first, *_ = json.loads(result.stdout)
    assert first == {
        "at": 0,
        "currentReplicas": 3,
        "desiredReplicas": 7,
        "recommended": 9,
        "limited": "ScaleUpLimit",
        "measured": True,
        "fallenBack": False,
        "trail": [
            {
                "stage": "recommend",
                "replicas": 9,
                "reason": NINE,
            },
            {"stage": "pace", "replicas": 7, "reason": "it may grow by 100% in 15s or 4 in 15s, so 7 for now"},
        ],
        "metrics": [{"metric": "queue_length", "current": 14, "target": 5, "ageSeconds": 0, "replicas": 9}],
    }


def test_replicas_that_are_told_win_over_those_that_were_decided(files: Path) -> None:
    (files / "samples.yaml").write_text(
        "[{at: 0, load: {queue_length: 20}}, {at: 15, replicas: 2, load: {queue_length: 10}}]"
    )
    assert [line for line in decide(files).stdout.splitlines() if line[0] != " "] == [
        "0s: 1 → 4 replicas",
        "15s: 2 replicas",
    ]


def test_what_is_not_known_is_told_and_let_go(files: Path) -> None:
    (files / "policy.yaml").write_text(POLICY.replace("minReplicas: 1", "minReplica: 1"))
    result = decide(files)
    assert result.exit_code == 0
    assert "policy.yaml: spec.minReplica: there is no such field" in result.stderr


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("policy.yaml", None, ["--policy {}: the file cannot be read: No such file or directory"]),
        ("samples.yaml", None, ["--samples {}: the file cannot be read: No such file or directory"]),
        ("policy.yaml", "", ["--policy {}: give one YAML document, and not 0"]),
        ("policy.yaml", POLICY + "---" + POLICY, ["--policy {}: give one YAML document, and not 2"]),
        ("policy.yaml", "- 1", ["--policy {}: this is no vLLMScalingPolicy; give one, as kubectl takes it"]),
        (
            "policy.yaml",
            POLICY.replace("maxReplicas: 8", "maxReplicas: 0"),
            ["--policy {}: spec.maxReplicas: 0 is not accepted; give a number of replicas, at least 1"],
        ),
        (
            "samples.yaml",
            "[{at: 0, held: -1}, {at: never}]",
            [
                "--samples {}: moments[0].held: -1 is not accepted; give a number of requests, 0 or more",
                '--samples {}: moments[1].at: "never" is not accepted; give a number of seconds',
            ],
        ),
        (
            "samples.yaml",
            "[]",
            ["--samples {}: moments: there is none; give at least one, such as {{at: 0, replicas: 1}}"],
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_told_in_sentences(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    name: str, text: str | None, lines: list[str],
) -> None:  # fmt: skip
    file = files / name
    file.unlink() if text is None else file.write_text(text)
    arguments = ["decide", "--policy", str(files / "policy.yaml"), "--samples", str(files / "samples.yaml")]
    monkeypatch.setattr("sys.argv", ["vllm-chill", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines() == [f"vllm-chill: {line.format(file)}" for line in lines]


@pytest.mark.parametrize("text", ["{", "\x00", "a: [", "&a [*a]"])
def test_what_is_no_yaml_or_no_policy_is_told(files: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (files / "policy.yaml").write_text(text)
    arguments = ["decide", "--policy", str(files / "policy.yaml"), "--samples", str(files / "samples.yaml")]
    monkeypatch.setattr("sys.argv", ["vllm-chill", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2

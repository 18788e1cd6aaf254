"""`vllm-chill controller` ends with a sentence, and no traceback, for what cannot work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: a
contexts: [{name: a, context: {cluster: a, user: a}}]
clusters: [{name: a, cluster: {server: "http://127.0.0.1:1"}}]
users: [{name: a, user: {}}]
"""


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ("--leader-elect", "--leader-election-retry-period=20s"),
            "--leader-elect: the renew deadline (10 s) must be longer than 1.2 times the retry period (20 s)",
        ),
        (
            ("--prometheus-base-url=https://one", "--prometheus-client-key-path=/none"),
            "the key /none is of no use alone; give the client's certificate with it",
        ),
        (("--demand-token-path=/none",), "--demand-token-path: /none cannot be read: "),
    ],
)
def test_what_cannot_work_is_a_sentence(tmp_path: Path, flags: tuple[str, ...], words: str) -> None:
    (tmp_path / "config").write_text(KUBECONFIG)
    nowhere = ("--metrics-bind-address=0", "--health-probe-bind-address=0", "--kubeconfig", str(tmp_path / "config"))
    ended = subprocess.run(
        [sys.executable, "-m", "vllm_chill", "controller", *nowhere, *flags],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=30,
    )
    assert ended.returncode == 2
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr

"""The alerts and the dashboard, as Prometheus is asked them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from tests.deploy.kustomized import DEPLOY

FILES = DEPLOY / "helm/vllm-chill/files"
GROUPS: list[dict[str, Any]] = yaml.safe_load((FILES / "rules.yaml").read_text())["spec"]["groups"]
ALERTS: dict[str, dict[str, Any]] = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}
DASHBOARD: dict[str, Any] = json.loads((FILES / "dashboard.json").read_text())

_METRIC = re.compile(r"\b(?:vllm_chill|process)_[a-z0-9_]+")


@dataclass(frozen=True)
class Query:
    """One query of a panel, as Grafana sends it with everything chosen."""

    row: str
    panel: str
    legend: str
    expression: str

    @property
    def metrics(self) -> frozenset[str]:
        """The metrics that it needs."""
        return metrics_of(self.expression)


def metrics_of(expression: str) -> frozenset[str]:
    """The metrics that an expression names."""
    return frozenset(_METRIC.findall(expression))


def queries(interval: str = "1m") -> Iterator[Query]:
    """Every query of the dashboard, with rates over this interval."""
    row = ""
    chosen = {"$__rate_interval": interval, "$__range": "1h", "$namespace": ".*", "$job": ".*", "$target": ".*"}
    for panel in DASHBOARD["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
            continue
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in chosen.items():
                expression = expression.replace(name, value)
            yield Query(row, panel["title"], target["legendFormat"], expression)

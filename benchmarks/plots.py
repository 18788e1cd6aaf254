"""Draws what benchmarks/field.py has measured: the cost of a chunk against the rate, and the time that is added.

    python benchmarks/plots.py RESULTS.json FOLDER

Needs matplotlib, of the dependency group "bench". Writes chunk-cost.svg and latency.svg into the folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")

import matplotlib.pyplot as plt

_RATES = (5, 20, 40)
_COLORS = {
    "vllm-chill": "#0b6bcb",
    "vllm-chill, fast lane off": "#8fbce8",
    "Go ReverseProxy": "#555555",
    "nginx": "#3a9d5d",
    "HAProxy": "#e0900b",
    "vllm-router": "#c0392b",
}


def chunk_cost(found: dict[str, dict[str, float]], file: Path) -> None:
    """CPU per chunk against the rate of chunks, a line for each proxy."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for name, figures in found.items():
        costs = [figures[f"cpu_us_{rate}k"] for rate in _RATES]
        axes.plot(
            _RATES, costs, marker="o", label=name, color=_COLORS.get(name), linewidth=3 if name == "vllm-chill" else 1.5
        )
    axes.set(xlabel="thousand chunks per second", ylabel="CPU per chunk, µs", title="What a streamed chunk costs")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def latency(found: dict[str, dict[str, float]], file: Path) -> None:
    """The time of a small request at 50 a second, from its median to its 99th percentile."""
    figure, axes = plt.subplots(figsize=(7, 3.2))
    names = list(reversed(found))
    for row, name in enumerate(names):
        middle, high = found[name]["tot50"] / 1e3, found[name]["tot99"] / 1e3
        color = _COLORS.get(name, "#999999")
        axes.plot([middle, high], [row, row], color=color, linewidth=3)
        axes.plot(middle, row, marker="o", color=color)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="milliseconds, from the median (dot) to p99", title="A small request at 50 a second")
    axes.set_xlim(left=0)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def main(results: str, folder: str) -> None:
    found = json.loads(Path(results).read_text())
    plt.rcParams["svg.hashsalt"] = "vllm-chill"  # the same picture for the same figures
    Path(folder).mkdir(parents=True, exist_ok=True)
    if "chunks" in found:
        chunk_cost(found["chunks"], Path(folder) / "chunk-cost.svg")
    if "latency" in found:
        latency(found["latency"], Path(folder) / "latency.svg")


if __name__ == "__main__":
    main(*sys.argv[1:])

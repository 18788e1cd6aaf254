"""vLLM's own benchmark client, through the proxy and past it, in turns.

    python benchmarks/vllm_bench.py --vllm DIR/bin/vllm --model NAME --tokenizer DIR -- COMMAND ... {port}

The command after -- starts a vLLM; the proxy wakes it, and `vllm bench serve` then asks the proxy and vLLM itself by
turns, so that both meet the same machine. It prints, for each figure, the median of the rounds and the ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import aiohttp

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.serving import serving

FIGURES = {
    "mean_ttft_ms": "time to first token, mean, ms",
    "median_ttft_ms": "time to first token, median, ms",
    "mean_itl_ms": "time between tokens, mean, ms",
    "median_itl_ms": "time between tokens, median, ms",
    "p99_itl_ms": "time between tokens, p99, ms",
    "request_throughput": "requests per second",
    "output_throughput": "tokens per second",
    "completed": "requests completed",
}


async def one_run(given: argparse.Namespace, url: str, folder: Path) -> dict[str, float]:
    """What `vllm bench serve` measured of the server at `url`."""
    result = folder / "result.json"
    command: Sequence[object] = (
        given.vllm, "bench", "serve", "--backend", "openai", "--base-url", url, "--model", given.model,
        "--tokenizer", given.tokenizer, "--dataset-name", "random", "--random-input-len", 32,
        "--random-output-len", given.tokens, "--num-prompts", given.prompts, "--request-rate", given.rate,
        "--seed", 1, "--ignore-eos", "--disable-tqdm", "--save-result", "--result-dir", folder,
        "--result-filename", result.name,
    )  # fmt: skip
    environment = os.environ | {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    process = await asyncio.create_subprocess_exec(
        *map(str, command), env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await asyncio.wait_for(process.communicate(), 600)
    if process.returncode:
        sys.exit(out.decode(errors="replace")[-2000:])
    found = json.loads(result.read_text())
    return {name: float(found[name]) for name in FIGURES}


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rate", type=float, default=5.0)
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    flags = ("--idle-timeout", "10m", "--wake-timeout", "10m", "--shutdown-delay", "0")
    found: dict[str, list[dict[str, float]]] = {"direct": [], "through the proxy": []}
    async with serving(*flags, command=given.command) as proxy:
        async with aiohttp.ClientSession() as session, session.post(f"{proxy.url}/proxy/operations/start") as response:
            response.raise_for_status()
        urls = {"direct": "http://" + (await proxy.status())["endpoints"][0], "through the proxy": proxy.url}
        with tempfile.TemporaryDirectory() as folder:
            for number in range(given.rounds):
                for name in urls if number % 2 == 0 else reversed(urls):
                    found[name].append(await one_run(given, urls[name], Path(folder)))
        await proxy.stop()
    print("| | direct | through the proxy | ratio |\n|---|---|---|---|")
    for figure, words in FIGURES.items():
        direct, proxied = (statistics.median(run[figure] for run in found[name]) for name in urls)
        print(f"| {words} | {direct:.2f} | {proxied:.2f} | {proxied / direct:.3f} |")


if __name__ == "__main__":
    asyncio.run(main())
